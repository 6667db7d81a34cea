"""Pictures, slices and frames on their way into view pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from lvmmed_monai.data.sampling import StepBatchSampler
from lvmmed_monai.dicom.planar import PlanarImage
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.files import write_json
from lvmmed_monai.ingest.planar import write_planar
from lvmmed_monai.methods._balance import repeats_of
from lvmmed_monai.methods._pictures import PicturePreparation, ViewPairs, view_pairs
from lvmmed_monai.transforms.views_2d import ViewSettings

RNG = np.random.default_rng(0)
GREY = RNG.integers(20, 230, (24, 30)).astype(np.uint8)
DEEP = RNG.integers(100, 4000, (24, 30)).astype(np.uint16)
COLOUR = RNG.integers(20, 230, (24, 30, 3)).astype(np.uint8)


def by_percentiles(array: np.ndarray, low: float = 0.5, high: float = 99.5) -> np.ndarray:
    first, last = np.percentile(array.astype(float), (low, high))
    return np.clip((array - first) / (last - first), 0, 1)


def prepared(path: Path, modality: str, **options: Any) -> list[np.ndarray]:
    planes = options.pop("planes", ["axial"])
    return PicturePreparation(planes, **options)({"image": str(path), "modality": modality})


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "tif", "tiff", "bmp"])
@pytest.mark.parametrize("modality", ["XR", "US", "OTHER", "COLOR"])
def test_grey_of_8_bits_keeps_its_display_range(tmp_path: Path, ending: str, modality: str) -> None:
    Image.fromarray(GREY).save(tmp_path / f"x.{ending}")
    (stack,) = prepared(tmp_path / f"x.{ending}", modality)
    assert stack.shape == (1, 1, 24, 30)
    np.testing.assert_allclose(stack[0, 0], GREY / 255, atol=1e-6)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("modality", ["XR", "US", "MR", "CT", "PET"])
def test_grey_of_16_bits_goes_by_its_percentiles(tmp_path: Path, ending: str, modality: str) -> None:
    # No value below 0: a "CT" that is not in HU.
    Image.fromarray(DEEP).save(tmp_path / f"x.{ending}")
    (stack,) = prepared(tmp_path / f"x.{ending}", modality)
    np.testing.assert_allclose(stack[0, 0], by_percentiles(DEEP), atol=1e-6)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_colour_is_one_picture_without_its_transparency(tmp_path: Path, ending: str) -> None:
    Image.fromarray(np.dstack([COLOUR, GREY])).save(tmp_path / f"x.{ending}")
    (stack,) = prepared(tmp_path / f"x.{ending}", "COLOR")
    np.testing.assert_allclose(stack[:, 0], np.moveaxis(COLOUR, 2, 0) / 255, atol=1e-6)
    Image.fromarray(np.dstack([GREY, GREY])).save(tmp_path / "grey.png")
    assert [one.shape for one in prepared(tmp_path / "grey.png", "XR")] == [(1, 1, 24, 30)]


def test_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GREY > 100).save(tmp_path / "x.png")
    np.testing.assert_array_equal(prepared(tmp_path / "x.png", "OTHER")[0][0, 0], GREY > 100)


def test_files_of_one_item_are_channels_with_their_own_range(tmp_path: Path) -> None:
    Image.fromarray(DEEP // 16).save(tmp_path / "a.png")
    Image.fromarray(DEEP).save(tmp_path / "b.png")
    item = {"image": [str(tmp_path / "a.png"), str(tmp_path / "b.png")], "modality": "MR"}
    stacks = PicturePreparation(["axial"])(item)
    assert [one.shape for one in stacks] == [(1, 1, 24, 30)] * 2
    np.testing.assert_allclose(stacks[0][0, 0], by_percentiles(DEEP // 16), atol=1e-6)
    np.testing.assert_allclose(stacks[1][0, 0], by_percentiles(DEEP), atol=1e-6)


# -- volumes -----------------------------------------------------------------------------------------------------------


def test_volumes_are_cut_in_each_plane_and_scaled_as_a_whole(tmp_path: Path) -> None:
    volume = RNG.integers(-1200, 900, (18, 20, 22)).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "v.nii.gz")
    ct = prepared(tmp_path / "v.nii.gz", "CT", planes=["axial", "coronal", "sagittal"])
    assert [one.shape for one in ct] == [(1, 22, 20, 18), (1, 20, 22, 18), (1, 18, 22, 20)]
    expected = np.clip((volume + 500.0) / 900, 0, 1)
    # Rows run to the back and columns to the left of the patient, sagittal slices to the left; the array the other way.
    np.testing.assert_allclose(ct[0][0, 3], expected[::-1, ::-1, 3].T, atol=1e-6)
    np.testing.assert_allclose(ct[2][0, 5], expected[12, ::-1, ::-1].T, atol=1e-6)
    (mr,) = prepared(tmp_path / "v.nii.gz", "MR")
    np.testing.assert_allclose(np.sort(mr.ravel()), np.sort(by_percentiles(volume).ravel()), atol=1e-6)


def test_channels_of_a_volume_have_their_own_range(tmp_path: Path) -> None:
    volume = np.stack([RNG.random((18, 20, 4)), 1000 * RNG.random((18, 20, 4))], axis=3).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "v.nii.gz")
    stacks = prepared(tmp_path / "v.nii.gz", "MR")
    assert [one.shape for one in stacks] == [(1, 4, 20, 18)] * 2
    for number, stack in enumerate(stacks):
        expected = by_percentiles(volume[..., number])
        np.testing.assert_allclose(np.sort(stack.ravel()), np.sort(expected.ravel()), atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "low", "high"), [({"window": [-1000, 400]}, -1000, 400), ({"percentiles": [1, 99]}, None, None)]
)
def test_rules_of_a_modality_can_be_replaced(tmp_path: Path, rule: dict, low: float, high: float) -> None:
    volume = RNG.integers(-1200, 900, (18, 20, 5)).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "v.nii.gz")
    (stack,) = prepared(tmp_path / "v.nii.gz", "CT", intensity={"CT": rule})
    expected = by_percentiles(volume, 1, 99) if low is None else np.clip((volume - low) / (high - low), 0, 1)
    np.testing.assert_allclose(np.sort(stack.ravel()), np.sort(expected.ravel()), atol=1e-6)
    other = prepared(tmp_path / "v.nii.gz", "CT", intensity={"MR": rule})[0]
    assert np.array_equal(other, prepared(tmp_path / "v.nii.gz", "CT")[0])
    assert PicturePreparation(["axial"], {"CT": rule}).settings != PicturePreparation(["axial"]).settings


@pytest.mark.parametrize(
    "rules",
    [
        {"CAT": {"window": [0, 1]}},
        {"CT": {"windows": [0, 1]}},
        {"CT": {"window": [1, 0]}},
        {"CT": {"window": [0, 1, 2]}},
        {"CT": {"window": [0, 1], "percentiles": [0, 100]}},
        {"MR": {"percentiles": [-1, 99]}},
        {"MR": {"percentiles": [1, 101]}},
        {"MR": {"percentiles": "19"}},
        {"MR": [1, 99]},
        {"MR": {"window": [0, float("nan")]}},
    ],
)
def test_wrong_rules_are_refused_in_one_sentence(rules: Any) -> None:
    with pytest.raises(UserError) as caught:
        PicturePreparation(["axial"], rules)
    assert str(caught.value).count("; ") == 2


def test_what_cannot_be_read_is_named_without_its_folder(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    (tmp_path / "y.nii.gz").write_bytes(b"no volume")
    for name in ("x.png", "y.nii.gz"):
        with pytest.raises(DataError, match=f"cannot be read .*; {name}; repair") as caught:
            prepared(tmp_path / name, "CT")
        assert str(tmp_path) not in str(caught.value)


# -- datasets ----------------------------------------------------------------------------------------------------------

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def datalist(name: str, modality: str, items: list[dict[str, str]]) -> Path:
        content = {"format": "lvmmed-datalist/1", "name": name, "task": "unlabelled", "modality": modality}
        write_json(tmp_path / f"{name}.json", {**content, "training": items, "validation": [], "test": []})
        return tmp_path / f"{name}.json"

    return datalist


@pytest.fixture
def pool(write: Write, tmp_path: Path) -> list[Path]:
    """A CT of 5 slices, two clips of 4 frames and a picture as ingest writes them, and 6 coloured pictures."""
    volume = RNG.integers(-400, 300, (18, 20, 5)).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "v.nii.gz")
    (tmp_path / "images").mkdir()
    (tmp_path / "previews").mkdir()
    frames = RNG.integers(0, 256, (4, 24, 30)).astype(np.uint8)
    items = []
    for image_id, count in (("a" * 16, 4), ("b" * 16, 4), ("c" * 16, 1)):
        for path in write_planar(tmp_path, image_id, PlanarImage(frames[:count], None, "none", ())):
            items.append({"image": f"images/{path.name}", "subject": "s", "series": "t"})
    for number in range(6):
        Image.fromarray(np.roll(COLOUR, number, 0)).save(tmp_path / f"training_0000{number}.png")
    colour = [{"image": f"training_0000{number}.png", "subject": str(number)} for number in range(6)]
    return [
        write("ct", "CT", [{"image": "v.nii.gz", "subject": "v"}]),
        write("us", "US", items),
        write("colour", "COLOR", colour),
    ]


def pairs(pool: list[Path], tmp_path: Path, **options: Any) -> ViewPairs:
    views = ViewSettings(**options.pop("views", {"size": 16}))
    standard: dict[str, Any] = {"planes": ["axial"], "cache_size": 48, "in_channels": 3, "seed": 0}
    return view_pairs(pool, "training", tmp_path / "cache", views=views, **{**standard, **options})


def test_slices_and_frames_are_groups(pool: list[Path], tmp_path: Path) -> None:
    assert pairs(pool, tmp_path).groups.tolist() == [0] * 5 + [1] * 4 + [2] * 4 + [3, 4, 5, 6, 7, 8, 9]
    both = pairs(pool[:1], tmp_path, planes=["axial", "axial"])
    assert both.groups.tolist() == [0] * 5 + [1] * 5


def test_frames_of_a_clip_come_through(pool: list[Path], tmp_path: Path) -> None:
    dataset = pairs(pool, tmp_path)
    for index in range(5, 13):
        expected = np.asarray(Image.open(dataset.data[index]["image"]))
        np.testing.assert_array_equal(dataset.cache[index][0].numpy(), expected)


def test_shares_of_datalists_and_modalities() -> None:
    items = [{"datalist": 0, "modality": "CT"}] * 60 + [{"datalist": 1, "modality": "CT"}] * 20
    items += [{"datalist": 2, "modality": "US"}] * 10

    def shares(**options: Any) -> list[float]:
        repeats = repeats_of(items, **options)
        assert repeats is not None
        assert repeats.min() == 1
        return [float(part.sum() / repeats.sum()) for part in np.split(repeats, [60, 80])]

    assert repeats_of(items) is None
    assert shares(weights=[1, 2, 1]) == pytest.approx([0.25, 0.5, 0.25])
    assert shares(balance=1.0) == pytest.approx([0.375, 0.125, 0.5])
    assert shares(weights=[3, 1, 1], balance=1.0) == pytest.approx([0.375, 0.125, 0.5])
    # Half way: 80 and 10 pictures become parts in proportion to their roots.
    assert shares(balance=0.5)[2] == pytest.approx(np.sqrt(10) / (np.sqrt(80) + np.sqrt(10)))


def test_wrong_shares_are_named(pool: list[Path], tmp_path: Path) -> None:
    items = [{"datalist": 0, "modality": "CT"}, {"datalist": 1, "modality": "CT"}]
    with pytest.raises(UserError, match=r"balance = 1\.5"):
        repeats_of(items, balance=1.5)
    with pytest.raises(UserError, match="leave a datalist out for 0"):
        repeats_of(items, [1, 0])
    with pytest.raises(UserError, match="5000 times as often"):
        repeats_of(items, [1, 5000])
    with pytest.raises(UserError, match="2 weights for 3 datalists"):
        pairs(pool, tmp_path, weights=[1, 1])


def test_over_sampled_pictures_are_drawn_as_crops(pool: list[Path], tmp_path: Path) -> None:
    # Views that show all that they are given: the location tells the crop.
    views = {"size": 8, "area": (1.0, 1.0), "aspect": (1.25, 1.25), "flip": 0.0}
    dataset = pairs(pool[1:], tmp_path, weights=[1, 2], views=views)
    assert dataset.repeats is not None
    np.testing.assert_allclose(dataset.repeats, [1.0] * 9 + [3.0] * 6)
    whole = 0
    for draw in range(300):
        sample = dataset[(draw, 12)]
        top, left, height, width, _ = sample["location1"].tolist()
        assert float((sample["location1"] - sample["location2"]).abs().max()) <= 1  # rounded
        if (height, width) == (24, 30):
            whole += 1
            assert top == left == 0
            continue
        assert 0.8 < height * width / (24 * 30) < 0.98
        assert top + height <= 24
        assert left + width <= 30
    # One in three draws is the picture itself.
    assert 70 < whole < 130
    assert all(dataset[(draw, 0)]["location1"].tolist()[2:4] == [24, 30] for draw in range(20))
    again = pairs(pool[1:], tmp_path, weights=[1, 2], views=views)
    assert torch.equal(again[(7, 12)]["view1"], dataset[(7, 12)]["view1"])
    assert dataset.draw(12, np.random.default_rng(0))["location1"].tolist() == [0, 0, 24, 30, 0]


def test_the_sampler_gives_the_shares(pool: list[Path], tmp_path: Path) -> None:
    dataset = pairs(pool, tmp_path, balance=1.0)
    sampler = StepBatchSampler(len(dataset), 4, 1200, 0, repeats=dataset.repeats, groups=dataset.groups, neighbours=2)
    drawn = [dataset.data[index]["modality"] for step in sampler for _, index in step]
    assert [drawn.count(one) / len(drawn) for one in ("CT", "US", "COLOR")] == pytest.approx([1 / 3] * 3, abs=0.02)


def test_small_views(pool: list[Path], tmp_path: Path) -> None:
    views = {"size": 16, "small_views": 3, "small_size": 8, "small_area": (0.1, 0.2)}
    sample = pairs(pool, tmp_path, views=views)[14]
    assert sample["small"].shape == (3, 3, 8, 8)
    assert sample["small_location"].shape == (3, 5)
    area = sample["small_location"][:, 2] * sample["small_location"][:, 3] / (24 * 30)
    assert ((area > 0.08) & (area < 0.22)).all()
    assert len(sample["small_location"].unique(dim=0)) == 3
    # The large views are what they are without small ones.
    plain = pairs(pool, tmp_path)[14]
    assert torch.equal(sample["view2"], plain["view2"])
    assert "small" not in plain
    assert pairs(pool, tmp_path, views=views, in_channels=1)[14]["small"].shape == (3, 1, 8, 8)
