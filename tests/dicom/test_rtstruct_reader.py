"""Structure sets, against every voxel centre taken to millimetres and tested by itself."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from synthetic_dicom import COLUMNS, ROWS, series, uid
from synthetic_rtstruct import contour, structure_set

from lvmmed_monai.dicom.geometry import SliceGrid, plane_axes
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.dicom.rtstruct_reader import StructureSet, read_structure_set

AXIAL = (1.0, 0, 0, 0, 1, 0)
COUNT = 6


def turned(degrees: float, about: int) -> np.ndarray:
    angle = np.radians(degrees)
    a, b = [axis for axis in range(3) if axis != about]
    matrix = np.eye(3)
    matrix[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return matrix


def grid_along(orientation: np.ndarray, step: np.ndarray) -> SliceGrid:
    positions = np.array([-31.0, 17.0, 408.0]) + np.arange(7)[:, None] * step
    return SliceGrid(24, 20, orientation, (0.9, 1.3), positions)


OBLIQUE = np.concatenate([(turned(20, 0) @ turned(-33, 2))[:, 0], (turned(20, 0) @ turned(-33, 2))[:, 1]])
NORMAL = np.cross(OBLIQUE[:3], OBLIQUE[3:])
GRIDS = {
    "axial": grid_along(np.array(AXIAL), np.array([0, 0, 2.5])),
    "sagittal": grid_along(np.array([0, 1.0, 0, 0, 0, -1]), np.array([-3.0, 0, 0])),
    "oblique": grid_along(OBLIQUE, 2.5 * NORMAL),
    "backwards": grid_along(OBLIQUE, -2.5 * NORMAL),
    "tilted": grid_along(np.array(AXIAL), np.array([0, -0.85, 2.5])),
}


def on_slice(grid: SliceGrid, k: float, pixels: np.ndarray) -> np.ndarray:
    """Pixel coordinates (n, 2) of a plane, ``k`` slices along the stack, to mm (n, 3)."""
    row, column, _ = plane_axes(grid.orientation)
    step = (grid.positions[-1] - grid.positions[0]) / (len(grid.positions) - 1)
    across = pixels[:, :1] * grid.pixel_spacing[1] * row + pixels[:, 1:] * grid.pixel_spacing[0] * column
    return grid.positions[0] + k * step + across


def star(seed: int, centre: tuple[float, float] = (11, 9), size: float = 9) -> np.ndarray:
    random = np.random.default_rng(seed)
    angles = np.sort(random.uniform(0, 2 * np.pi, 25))
    radii = random.uniform(size / 3, size, 25)
    return np.array(centre) + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def square(low: float, high: float) -> np.ndarray:
    return np.array([[low, low], [high, low], [high, high], [low, high]])


def structures(grid: SliceGrid, planes: dict[str, list[tuple[float, np.ndarray]]]) -> StructureSet:
    found = {name: [contour(on_slice(grid, k, points)) for k, points in own] for name, own in planes.items()}
    return read_structure_set(structure_set(series(3), found))


def drawn(structure: StructureSet, grid: SliceGrid, number: int = 1) -> np.ndarray:
    volume = np.zeros(grid.shape, dtype=bool)
    for owner, k, mask in structure.masks(grid):
        if owner == number:
            assert not volume[:, :, k].any()
            volume[:, :, k] = mask
    return volume


def inside_in_mm(grid: SliceGrid, k: int, outline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether an outline (n, 3) mm winds round each voxel centre of a slice, and a lower bound of the distance."""
    centres = np.stack(np.meshgrid(np.arange(grid.columns), np.arange(grid.rows), indexing="ij"), axis=-1)
    lps = (np.diag([-1, -1, 1, 1]) @ grid.affine)[:3]
    points = centres @ lps[:, :2].T + k * lps[:, 2] + lps[:, 3]
    normal = plane_axes(grid.orientation)[2]
    to, after = outline - points[..., None, :], np.roll(outline, -1, axis=0) - points[..., None, :]
    angle = np.arctan2(np.cross(to, after) @ normal, np.sum(to * after, axis=-1)).sum(axis=-1)
    nearest = np.abs(np.linalg.norm(np.cross(to, after), axis=-1) / np.linalg.norm(after - to, axis=-1)).min(axis=-1)
    return np.abs(angle) > np.pi, nearest


@pytest.mark.parametrize("name", GRIDS)
def test_contours_are_filled_where_they_lie(name):
    grid = GRIDS[name]
    planes = [(k, star(10 * k + len(name))) for k in (1, 2, 3, 5)]
    volume = drawn(structures(grid, {"lesion": planes}), grid)
    assert volume[:, :, [0, 4, 6]].sum() == 0
    for k, outline in planes:
        inside, distance = inside_in_mm(grid, k, on_slice(grid, k, outline))
        clear = distance > 1e-4
        assert np.array_equal(volume[:, :, k][clear], inside[clear])
        assert inside.sum() > 20


def test_a_contour_in_another_is_a_hole_and_one_beside_it_a_part():
    grid = GRIDS["axial"]
    planes = [(2, square(1.5, 9.5)), (2, square(3.5, 6.5)), (2, square(12.5, 14.5)), (3, square(3.5, 6.5))]
    volume = drawn(structures(grid, {"ring": planes}), grid)
    expected = np.zeros(grid.shape, dtype=bool)
    expected[2:10, 2:10, 2] = True
    expected[4:7, 4:7, 2] = False
    expected[13:15, 13:15, 2] = True
    expected[4:7, 4:7, 3] = True
    assert np.array_equal(volume, expected)


def test_structures_may_overlap_and_keep_their_numbers():
    grid = GRIDS["axial"]
    structure = structures(grid, {"Outer": [(2, square(1.5, 9.5))], "Inner": [(2, square(3.5, 6.5))]})
    assert structure.segments == {1: "Outer", 2: "Inner"}
    assert (drawn(structure, grid, 1).sum(), drawn(structure, grid, 2).sum()) == (64, 9)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(("offset", "inside"), [(0.3, True), (-0.45, True), (6.49, True), (6.6, False), (-0.6, False)])
def test_the_nearest_slice_within_half_a_step(name, offset, inside):
    grid = GRIDS[name]
    structure = structures(grid, {"lesion": [(offset, star(1))]})
    placed = structure.place(grid)
    assert (placed.inside.tolist(), placed.drawn.tolist()) == ([inside], [inside])
    assert placed.slices.tolist() == [int(np.clip(round(offset), 0, 6))]
    step = abs((grid.positions[1] - grid.positions[0]) @ plane_axes(grid.orientation)[2])
    assert np.allclose(placed.distances_mm, abs(offset - placed.slices[0]) * step)
    assert (drawn(structure, grid).sum() > 0) == structure.lies_on(grid) == inside


def test_contours_across_the_slices_and_beside_the_image_lie_off():
    grid = GRIDS["axial"]
    across = on_slice(grid, 3, square(3, 8))
    across[:, 2] += across[:, 0] - across[:, 0].mean()
    beside = on_slice(grid, 3, square(3, 8) + np.array([40, 0]))
    cut = on_slice(grid, 3, square(18, 40))
    structure = read_structure_set(structure_set(series(3), {"all": [contour(c) for c in (across, beside, cut)]}))
    assert structure.place(grid).inside.tolist() == [False, False, True]
    assert drawn(structure, grid).sum() == 6 * 2


def test_few_contours_may_lie_off():
    grid = GRIDS["axial"]
    on = [(k, square(3, 8)) for k in range(7)] * 3
    assert structures(grid, {"a": [*on, (9, square(3, 8))]}).lies_on(grid)
    assert not structures(grid, {"a": [*on, (9, square(3, 8)), (10, square(3, 8))]}).lies_on(grid)


def test_planes_denser_than_slices_do_not_cancel_each_other():
    grid = GRIDS["oblique"]
    planes = [(k / 2, square(3.5, 8.5 + k)) for k in range(12)]
    structure = structures(grid, {"lesion": planes})
    assert structure.place(grid).drawn.tolist() == [True, False] * 6
    volume = drawn(structure, grid)
    assert [int(volume[:, :, k].sum()) for k in range(6)] == [
        (5 + 2 * k) * min(5 + 2 * k, grid.rows - 4) for k in range(6)
    ]


def test_open_contours_and_points_are_counted_and_left_out():
    grid = GRIDS["axial"]
    points = on_slice(grid, 2, square(3, 8))
    found = [contour(points), contour(points, "OPEN_PLANAR"), contour(points[:1], "POINT"), contour(points[:2])]
    structure = read_structure_set(
        structure_set(series(3), {"lesion": found, "isocentre": [contour(points[:1], "POINT")]})
    )
    assert (structure.open_contours, len(structure.owners), dict(structure.segments)) == (4, 1, {1: "lesion"})
    with pytest.raises(DicomError, match="M04: no closed contour among 1"):
        read_structure_set(structure_set(series(3), {"isocentre": [contour(points[:1], "POINT")]}))


def test_references_frame_and_vocabulary():
    source = series(COUNT)
    points = on_slice(GRIDS["axial"], 2, square(3, 8))
    dataset = structure_set(source, {"lesion": [contour(points)]})
    structure = read_structure_set(dataset)
    assert structure.frame_of_reference == source[0].FrameOfReferenceUID
    assert structure.referenced_series == {source[0].SeriesInstanceUID}
    assert structure.referenced_instances == {image.SOPInstanceUID for image in source}
    assert structure.referenced_classes == {source[0].SOPClassUID}
    # The images that contours name are more exact than the list of all.
    dataset = structure_set(source, {"lesion": [contour(points, image=source[2])]})
    observation, code = Dataset(), Dataset()
    code.CodeMeaning = "Gross tumor volume"
    observation.RTROIIdentificationCodeSequence = Sequence([code])
    dataset.RTROIObservationsSequence = Sequence([observation])
    structure = read_structure_set(dataset)
    assert structure.referenced_instances == {source[2].SOPInstanceUID}
    assert structure.vocabulary == {"gross", "tumor", "volume"}
    bare = read_structure_set(structure_set(source, {"lesion": [contour(points)]}, reference=False))
    assert bare.referenced_series == bare.referenced_instances == bare.referenced_classes == frozenset()


def test_structures_of_two_spaces_are_refused():
    points = on_slice(GRIDS["axial"], 2, square(3, 8))
    dataset = structure_set(series(3), {"a": [contour(points)], "b": [contour(points)]})
    dataset.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = uid("other space")
    with pytest.raises(DicomError, match="M01: structures in 2 frames"):
        read_structure_set(dataset)


def saved(dataset: Dataset) -> Dataset:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return pydicom.dcmread(buffer)


def test_the_raw_text_of_a_file_gives_the_same_points():
    dataset = structure_set(series(3), {"lesion": [contour(on_slice(GRIDS["oblique"], 2, star(7)))]})
    ours, raw = read_structure_set(dataset), read_structure_set(saved(dataset))
    assert np.array_equal(ours.contours[0], raw.contours[0])
    assert ours.contours[0].shape == (25, 3)


@pytest.mark.parametrize("damage", ["points", "text", "nan", "number", "owner"])
def test_broken_objects_are_refused(damage):
    dataset = structure_set(series(3), {"lesion": [contour(on_slice(GRIDS["axial"], 2, star(7)))]})
    structure = dataset.ROIContourSequence[0]
    if damage == "points":
        structure.ContourSequence[0].ContourData = structure.ContourSequence[0].ContourData[:-1]
    elif damage in ("text", "nan"):
        dataset = saved(dataset)
        structure = dataset.ROIContourSequence[0]
        element = structure.ContourSequence[0].get_item("ContourData")
        word = b"four" if damage == "text" else b"nan"
        structure.ContourSequence[0]._dict[element.tag] = element._replace(
            value=element.value + b"\\" + b"\\".join([word] * 3)
        )
    elif damage == "number":
        del structure.ReferencedROINumber
    else:
        del dataset.StructureSetROISequence[0].ROINumber
    with pytest.raises(DicomError, match="F03"):
        read_structure_set(dataset)


def test_a_summary_is_small_and_judges_alike():
    grid = GRIDS["oblique"]
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circle = 10 + 5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    whole = structures(grid, {"lesion": [(k, circle) for k in (0.2, 1, 2, 9)]})
    summary = pickle.loads(pickle.dumps(whole.summary()))
    assert len(pickle.dumps(whole.summary())) < len(pickle.dumps(whole)) / 10
    assert np.array_equal(summary.place(grid).inside, whole.place(grid).inside)
    assert summary.segments == whole.segments
    with pytest.raises(ValueError, match="read the structure set again"):
        list(summary.masks(grid))


def test_the_whole_grid_of_a_synthetic_series_can_be_drawn_on():
    source = series(COUNT)
    positions = np.array([dataset.ImagePositionPatient for dataset in source], dtype=float)
    grid = SliceGrid(COLUMNS, ROWS, np.array(AXIAL), (0.8, 0.5), positions)
    planes = [(k, np.array([[-1, -1], [COLUMNS, -1], [COLUMNS, ROWS], [-1, ROWS]])) for k in range(COUNT)]
    assert drawn(structures(grid, {"body": planes}), grid).all()
