"""Masks of real label objects: the published NIfTI masks for RTSTRUCT, dcmqi's reading for SEG, voxel for voxel."""

from __future__ import annotations

import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from lvmmed_monai.dicom.archive import Source, SourceReader
from lvmmed_monai.dicom.geometry import SliceGrid, plane_axes, slice_order
from lvmmed_monai.dicom.headers import Header, read_dataset, read_header
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.dicom.rtstruct_reader import read_structure_set
from lvmmed_monai.dicom.seg_reader import Segmentation, read_segmentation
from lvmmed_monai.ingest.checks.masks import CHECKS
from lvmmed_monai.ingest.findings import codes, run_checks
from lvmmed_monai.ingest.labels import draw_labels, label_table, pair_labels, read_label_object, segment_names

pytestmark = pytest.mark.real_data

STS = {
    "STS_001/CT": 117145,
    "STS_001/PET": 5095,
    "STS_002/CT": 17090,
    "STS_002/MR_T1": 17090,
    "STS_002/PET": 555,
}


@dataclass(frozen=True)
class Images:
    """The slices of one folder."""

    slices: tuple[Header, ...]

    @property
    def first(self) -> Header:
        return self.slices[0]

    @property
    def grid(self) -> SliceGrid:
        first, positions = self.first, np.array([header.position for header in self.slices])
        return SliceGrid(
            first.columns, first.rows, np.array(first.orientation), first.pixel_spacing or (0, 0), positions
        )


def header_of(path: Path) -> Header:
    return read_header(path.read_bytes(), Source(str(path)))


def images_of(folder: Path) -> Images:
    headers = [header_of(path) for path in folder.rglob("*") if path.is_file()]
    headers = [header for header in headers if header.position is not None]
    normal = plane_axes(headers[0].orientation or ())[2]
    return Images(tuple(headers[i] for i in slice_order([header.position for header in headers], normal)))


def unzipped(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder)
    return folder


@pytest.fixture
def sts(real_data, tmp_path):
    """Image series and structure set of each pair."""
    folder = real_data("sts_dicom_rtstruct")
    roots = {"STS_001": unzipped(folder / "STS_001.zip", tmp_path), "STS_002": folder}
    return {
        name: (images_of(roots[name[:7]] / name / "image"), next((roots[name[:7]] / name / "rtstruct").glob("*.dcm")))
        for name in STS
    }


def test_structures_equal_the_published_masks(sts, real_data):
    for name, (images, path) in sts.items():
        structure = read_structure_set(read_dataset(path.read_bytes(), pixels=False))
        volume = np.zeros(images.grid.shape, dtype=bool)
        for _, k, mask in structure.masks(images.grid):
            volume[:, :, k] |= mask
        published = nib.load(real_data("sts_dicom_rtstruct") / "nifti_masks" / f"{name.replace('/', '_')}_mask.nii.gz")
        assert np.allclose(published.affine, images.grid.affine, atol=1e-4)
        assert np.array_equal(volume, np.asarray(published.dataobj) > 0)
        assert int(volume.sum()) == STS[name]


def test_structures_find_their_images_among_all_modalities(sts):
    """None of the images that they name is there, and all modalities of a patient share one space."""
    candidates = [images for images, _ in sts.values()]
    with SourceReader() as reader:
        labels = [read_label_object(header_of(path), reader) for _, path in sts.values()]
        pairings = pair_labels(labels, candidates)
        assert [pairing.stack for pairing in pairings] == candidates
        for pairing, (name, voxels) in zip(pairings, STS.items(), strict=True):
            findings = run_checks(CHECKS, pairing)
            assert (codes(findings), codes(findings, "warning")) == ([], ["M02"])
            assert segment_names(pairing.label) == {1: f"gtv_mass_{name.partition('/')[2].lower()}"}
            table = label_table([pairing.label], {"1": ["tumour", "gtv_mass_ct", "gtv_mass_pet", "gtv_mass_mr_t1"]})
            drawn = draw_labels([pairing], pairing.stack.grid, table, reader)
            assert drawn.map is not None
            assert (int((drawn.map == 1).sum()), drawn.findings) == (voxels, ())


def read_seg(path: Path) -> Segmentation:
    return read_segmentation(read_dataset(path.read_bytes(), pixels=True))


def masks_by_dcmqi(path: Path, out: Path, grid: SliceGrid) -> dict[int, np.ndarray]:
    """Stored values of each segment as dcmqi reads them, taken to the grid by world coordinates."""
    dcmqi = pytest.importorskip("dcmqi")
    tool = Path(dcmqi.__file__).parent / "bin" / "segimage2itkimage"
    sitk = pytest.importorskip("SimpleITK")
    out.mkdir()
    arguments = ["--inputDICOM", str(path), "--outputDirectory", str(out), "--outputType", "nrrd", "--prefix", "s"]
    assert subprocess.run([tool, *arguments], capture_output=True, check=False).returncode == 0
    found = {}
    lps = np.diag([-1.0, -1, 1, 1]) @ grid.affine
    for file in out.glob("s-*.nrrd"):
        image = sitk.ReadImage(str(file))
        values = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
        direction = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        indices = np.argwhere(values)
        world = indices @ direction.T + image.GetOrigin()
        voxels = (world - lps[:3, 3]) @ np.linalg.inv(lps[:3, :3]).T
        assert np.abs(voxels - np.round(voxels)).max(initial=0) < 0.02
        volume = np.zeros(grid.shape, dtype=np.int32)
        volume[tuple(np.round(voxels).astype(int).T)] = values[tuple(indices.T)]
        found[int(file.stem.removeprefix("s-"))] = volume
    return found


def masks_by_us(segmentation: Segmentation, grid: SliceGrid) -> dict[int, np.ndarray]:
    found = {number: np.zeros(grid.shape, dtype=bool) for number in segmentation.segments}
    for number, k, mask in segmentation.masks(grid):
        found[number][:, :, k] |= mask
    return found


def assert_equal_to_dcmqi(path: Path, out: Path, grid: SliceGrid, voxels: list[int]) -> None:
    segmentation = read_seg(path)
    oracle, ours = masks_by_dcmqi(path, out, grid), masks_by_us(segmentation, grid)
    assert oracle.keys() == ours.keys()
    assert [int(ours[number].sum()) for number in sorted(ours)] == voxels
    for number, values in oracle.items():
        threshold = segmentation.threshold if segmentation.kind == "FRACTIONAL" else 1
        assert np.array_equal(values >= threshold, ours[number])


@pytest.mark.parametrize(
    ("name", "voxels"), [("liver", [107098]), ("partial_overlaps", [9602, 11888, 10743, 6693, 4713])]
)
def test_binary_and_overlapping_segments_equal_dcmqi(name, voxels, real_data, tmp_path):
    folder = real_data("dicom_seg_small")
    images = images_of(unzipped(folder / "ct_3slice_image.zip", tmp_path / "images"))
    assert_equal_to_dcmqi(folder / "ct_3slice_seg" / f"{name}.dcm", tmp_path / "out", images.grid, voxels)


@pytest.mark.parametrize(
    ("name", "voxels"),
    [
        ("seg_image_ct_binary", [638]),
        ("seg_image_ct_binary_fractional", [638]),
        ("seg_image_ct_true_fractional", [638]),
        ("seg_image_ct_binary_overlap", [64, 16]),
    ],
)
def test_kinds_of_highdicom_equal_dcmqi(name, voxels, real_data, tmp_path):
    folder = real_data("dicom_seg_small") / "highdicom"
    # The four slices stand 202.5, 1.25 and 1.25 mm apart; the grid that dcmqi gives them has 165.
    first = images_of(folder / "source_CT2").grid
    positions = first.positions[0] + np.arange(165)[:, None] * np.array([0, 0, 1.25])
    grid = SliceGrid(first.columns, first.rows, first.orientation, first.pixel_spacing, positions)
    assert_equal_to_dcmqi(folder / f"{name}.dcm", tmp_path / "out", grid, voxels)


def test_other_sizes_and_single_frames_equal_dcmqi(real_data, tmp_path):
    folder = real_data("dicom_seg_small")
    source = next(path.parent for path in folder.rglob("IMG0001.dcm"))
    assert_equal_to_dcmqi(folder / "24x38x3" / "seg" / "label.seg", tmp_path / "a", images_of(source).grid, [315])
    single = folder / "highdicom" / "seg_image_ct_binary_single_frame.dcm"
    header = header_of(folder / "highdicom" / "ct_image.dcm")
    positions = np.array(header.position) + np.array([[0, 0, 0], [0, 0, 5.0]])
    grid = SliceGrid(128, 128, np.array(header.orientation), header.pixel_spacing or (0, 0), positions)
    assert_equal_to_dcmqi(single, tmp_path / "b", grid, [1832])


def test_fractional_segment_of_a_sagittal_series_equals_dcmqi(real_data, tmp_path):
    unzipped(real_data("breast_mr_dicom_seg") / "UCSF-BR-06_PE1_SEG.zip", tmp_path / "images")
    paths = list((tmp_path / "images").rglob("*.dcm"))
    (seg,) = [path for path in paths if header_of(path).modality == "SEG"]
    images = images_of(next(path.parent for path in paths if path.parent != seg.parent))
    assert images.grid.shape == (256, 256, 60)
    assert_equal_to_dcmqi(seg, tmp_path / "out", images.grid, [82527])


@pytest.mark.parametrize("name", ["seg_image_cr_binary", "seg_image_sm_control_labelmap"])
def test_segments_over_planar_images_are_refused(name, real_data):
    path = real_data("dicom_seg_small") / "highdicom" / f"{name}.dcm"
    with SourceReader() as reader, pytest.raises(DicomError) as refusal:
        read_label_object(header_of(path), reader)
    assert refusal.value.code == "G04"


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """Bytes changed, cut out or put in at a few places of the header."""
    content = bytearray(data)
    for _ in range(random.integers(1, 4)):
        place, length = int(random.integers(132, min(len(content), 60_000))), int(random.integers(1, 9))
        content[place : place + int(random.integers(0, 9))] = random.bytes(length)
    return bytes(content)


@pytest.mark.parametrize(
    "name", ["sts_dicom_rtstruct/STS_002/CT/rtstruct/RS.dcm", "dicom_seg_small/24x38x3/seg/label.seg"]
)
def test_damaged_objects_give_masks_or_a_reason(name, real_data):
    folder, _, member = name.partition("/")
    data = (real_data(folder) / member).read_bytes()
    grid = SliceGrid(
        161,
        143,
        np.array([1.0, 0, 0, 0, 1, 0]),
        (0.977, 0.977),
        np.array([[2, 60, -629 + 3.27 * k] for k in range(48)]),
    )
    random, outcomes = np.random.default_rng(7), []
    for _ in range(120):
        try:
            dataset = read_dataset(damaged(data, random), pixels=True)
            content = read_segmentation(dataset) if name.endswith(".seg") else read_structure_set(dataset)
            outcomes.append(all(mask.shape == (161, 143) for _, _, mask in content.masks(grid)))
        except DicomError as error:
            outcomes.append(error.code)
    assert {"F03"} < set(outcomes) <= {True, "F02", "F03", "F04", "F05", "G04", "M01", "M02", "M04"}


def label_map_object(sources: list[pydicom.Dataset], labels: np.ndarray, numbers: list[int], path: Path) -> None:
    """A LABELMAP written by highdicom; ``labels`` (slices, rows, columns) in the order of ``sources``."""
    highdicom: Any = pytest.importorskip("highdicom")
    from pydicom.sr.codedict import codes as coded

    for source in sources:
        for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber"):
            setattr(source, name, source.get(name) or "")
        source.SOPClassUID = source.file_meta.MediaStorageSOPClassUID
        source.SOPInstanceUID = source.file_meta.MediaStorageSOPInstanceUID
        source.StudyInstanceUID, source.SeriesInstanceUID = "2.25.1", "2.25.2"
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"structure {number}",
            segmented_property_category=coded.SCT.Organ,
            segmented_property_type=coded.SCT.Liver,
            algorithm_type="MANUAL",
        )
        for number in numbers
    ]
    highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=labels,
        segmentation_type="LABELMAP",
        segment_descriptions=descriptions,
        series_instance_uid="2.25.4",
        series_number=900,
        sop_instance_uid="2.25.5",
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
    ).save_as(path)


def test_label_map_object_equals_its_volume_and_dcmqi(real_data, tmp_path):
    folder = real_data("totalsegmentator_example")
    images = Images(images_of(folder / "example_ct_dicom").slices[:8])
    published = nib.load(folder / "example_ct_dicom_seg.nii.gz")
    # The published volume may be stored along other axes: it is taken to the grid by its affine.
    to_published = np.linalg.inv(published.affine) @ images.grid.affine
    indices = np.stack(np.meshgrid(*map(np.arange, images.grid.shape), indexing="ij"), axis=-1)
    volume = np.asarray(published.dataobj)[
        tuple(np.round(indices @ to_published[:3, :3].T + to_published[:3, 3]).astype(int).transpose(3, 0, 1, 2))
    ]
    numbers = [int(number) for number in np.unique(volume) if number][:12]
    labels = np.where(np.isin(volume, numbers), volume, 0).astype(np.uint8)
    sources = [pydicom.dcmread(header.source.path) for header in images.slices]
    path = tmp_path / "labelmap.dcm"
    label_map_object(sources, labels.transpose(2, 1, 0), numbers, path)
    segmentation = read_seg(path)
    assert (segmentation.kind, sorted(segmentation.segments)) == ("LABELMAP", numbers)
    ours = masks_by_us(segmentation, images.grid)
    assert all(np.array_equal(ours[number], labels == number) for number in numbers)
    (merged,) = masks_by_dcmqi(path, tmp_path / "out", images.grid).values()
    assert np.array_equal(merged, labels)
