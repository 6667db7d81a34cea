"""Results and pictures of an evaluation, from volumes whose Dice is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted, Compose, EnsureChannelFirstd, Flipd, Invertd, LoadImaged, Spacingd
from PIL import Image

from lvmmed_monai.data import write_datalist
from lvmmed_monai.errors import UserError
from lvmmed_monai.handlers import PreviewWriter, ResultsWriter
from lvmmed_monai.handlers.previews import PALETTE, draw_preview
from lvmmed_monai.networks import build_encoder, save_encoder
from lvmmed_monai.results import read_results
from lvmmed_monai.transforms import LoadImageUprightd

LABELS = {"0": "background", "1": "liver", "2": "lesion"}
AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])


class Halves(torch.nn.Module):
    """Predicts class 1 wherever the image is bright."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = (x > 0.5).float()
        return torch.cat([1 - bright, bright, torch.zeros_like(bright)], dim=1)


@pytest.fixture
def volumes(tmp_path: Path) -> list[dict[str, str]]:
    """Case a: prediction = label. Case b: liver half found, and a lesion that is missed."""
    items = []
    for name in ("a", "b"):
        image, label = np.zeros((16, 20, 6), np.float32), np.zeros((16, 20, 6), np.uint8)
        image[2:10, 4:8, 1:5] = 1
        label[2:10, 4:8, 1:5] = 1
        if name == "b":
            label[2:10, 8:12, 1:5] = 1
            label[12:14, 12:16, 2] = 2
        for kind, array in (("image", image), ("label", label)):
            (tmp_path / kind).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / kind / f"{name}.nii.gz")
        items.append({key: str(tmp_path / key / f"{name}.nii.gz") for key in ("image", "label")})
    return items


def evaluate(items: list[dict[str, str]], handlers: list[Any], *, spacing: bool = False) -> SupervisedEvaluator:
    steps: list[Any] = [LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])]
    post: list[Any] = []
    if spacing:
        # Another grid and another direction for the image alone; the prediction is taken back to the file's grid.
        steps += [Spacingd("image", pixdim=(1.0, 1.0, 5.0), mode="nearest"), Flipd("image", spatial_axis=0)]
        preprocessing = Compose(steps)
        post = [Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False)]
    preprocessing = preprocessing if spacing else Compose(steps)
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(items, preprocessing), batch_size=1),
        network=Halves(),
        postprocessing=Compose([*post, AsDiscreted("pred", argmax=True)]),
        val_handlers=handlers,
    )
    evaluator.run()
    return evaluator


class TestResults:
    def test_rows_and_means(self, tmp_path: Path, volumes: list[dict[str, str]]) -> None:
        evaluate(
            volumes, [ResultsWriter(tmp_path / "out" / "results.json", "evaluation", "seg", seed=0, labels=LABELS)]
        )
        record = read_results(tmp_path / "out" / "results.json")
        rows = {row["case"]: row["metrics"] for row in record["cases"]}
        # Case b: 2 * 1/2 / (1/2 + 1) = 2/3 of the liver; the lesion is missed.
        assert rows["a"] == {"dice/liver": 1.0, "dice/lesion": None, "dice/mean": 1.0}
        assert rows["b"] == {"dice/liver": pytest.approx(2 / 3), "dice/lesion": 0.0, "dice/mean": pytest.approx(1 / 3)}
        assert record["metrics"]["dice/liver"]["value"] == pytest.approx(5 / 6)
        assert record["metrics"]["dice/lesion"] == {"value": 0.0, "n": 1, "interval": None, "higher_is_better": True}
        assert record["metrics"]["dice/mean"]["value"] == pytest.approx(2 / 3)
        assert record["metrics"]["dice/mean"]["n"] == 2
        assert record["timings"]["evaluation"] > 0

    def test_previews_are_named_in_the_rows(self, tmp_path: Path, volumes: list[dict[str, str]]) -> None:
        previews = PreviewWriter(tmp_path / "out" / "previews", LABELS)
        results = ResultsWriter(tmp_path / "out" / "results.json", "evaluation", "seg", labels=LABELS)
        for order in ([previews, results], [results, previews]):
            evaluate(volumes, order)
            rows = read_results(tmp_path / "out" / "results.json")["cases"]
            assert [row["preview"] for row in rows] == ["previews/a.png", "previews/b.png"]

    def test_datalist_and_encoder_of_the_run(self, tmp_path: Path, volumes: list[dict[str, str]]) -> None:
        item = {"image": "image/a.nii.gz", "label": "label/a.nii.gz", "subject": "s"}
        datalist = {"format": "lvmmed-datalist/1", "name": "set", "task": "segmentation", "modality": "CT"}
        path = tmp_path / "datalist.json"
        write_datalist(path, {**datalist, "labels": LABELS, "training": [item], "validation": [], "test": []})
        encoder = build_encoder("resnet18", width=4)
        save_encoder(tmp_path / "encoder.pt", encoder, input={}, provenance={"method": "lvm_med"})
        writer = ResultsWriter(
            tmp_path / "results.json",
            "evaluation",
            "seg",
            labels=LABELS,
            datalists=[path, volumes],
            encoder=tmp_path / "encoder.pt",
        )
        evaluate(volumes, [writer])
        data = read_results(tmp_path / "results.json")["data"]
        assert [one["name"] for one in data["datalists"]] == ["set"]
        assert data["encoder"]["name"] == "resnet18"
        assert data["encoder"]["provenance"] == {"method": "lvm_med"}
        assert len(data["encoder"]["sha256"]) == 64

    def test_inference_has_rows_without_metrics(self, tmp_path: Path, volumes: list[dict[str, str]]) -> None:
        evaluate(volumes, [ResultsWriter(tmp_path / "results.json", "inference", "seg")])
        record = read_results(tmp_path / "results.json")
        assert record["cases"] == [{"case": "a", "metrics": {}}, {"case": "b", "metrics": {}}]
        assert record["metrics"] == {}

    def test_two_cases_of_one_name(self, tmp_path: Path, volumes: list[dict[str, str]]) -> None:
        other = tmp_path / "label" / "a.nii.gz"
        items = [volumes[0], {"image": str(other), "label": str(other)}]
        with pytest.raises(UserError, match="two images are called a"):
            evaluate(items, [ResultsWriter(tmp_path / "results.json", "evaluation", "seg", labels=LABELS)])

    def test_wrong_use(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="unknown kind 'test'"):
            ResultsWriter(tmp_path / "results.json", "test", "seg")
        with pytest.raises(UserError, match="needs labels"):
            ResultsWriter(tmp_path / "results.json", "evaluation", "seg")


def coloured(picture: np.ndarray, number: int) -> np.ndarray:
    return (picture == PALETTE[number - 1]).all(axis=-1)


class TestPreviews:
    def test_slice_shows_every_structure_not_only_the_largest(self) -> None:
        label = torch.zeros(12, 12, 4)
        label[:, :, 1] = 1
        label[:9, :, 2] = 1
        label[10:, 4:8, 2] = 2
        image = MetaTensor(torch.rand(1, 12, 12, 4), affine=torch.eye(4))
        picture = draw_preview(image, label.long(), torch.zeros_like(label), LABELS)
        assert coloured(picture[:320], 2).any()

    def test_label_left_prediction_right_each_class_in_its_colour(
        self, tmp_path: Path, volumes: list[dict[str, str]]
    ) -> None:
        evaluate(volumes, [PreviewWriter(tmp_path / "previews", LABELS)])
        picture = np.array(Image.open(tmp_path / "previews" / "b.png"))
        # 16 x 20 voxels of 2 x 2 mm: 256 x 320 pixels a panel, then a line of text and one for each class.
        assert picture.shape == (320 + 3 * 16, 2 * 256, 3)
        panels = picture[:320]
        assert coloured(panels[:, :256], 1).sum() > 1.3 * coloured(panels[:, 256:], 1).sum() > 0
        assert coloured(panels[:, :256], 2).any()
        assert not coloured(panels[:, 256:], 2).any()
        # The affine is that of an axial series read from DICOM: columns go left, rows go back, nothing is turned.
        rows, columns = np.nonzero(coloured(panels[:, 256:], 1))
        assert (rows.min(), columns.min()) == (4 * 16, 2 * 16)
        assert (rows.max(), columns.max()) == (8 * 16 - 1, 10 * 16 - 1)

    def test_image_is_read_again_where_the_prediction_was_taken_back(
        self, tmp_path: Path, volumes: list[dict[str, str]]
    ) -> None:
        results = ResultsWriter(tmp_path / "results.json", "evaluation", "seg", labels=LABELS)
        evaluate(volumes, [PreviewWriter(tmp_path / "plain", LABELS)])
        evaluate(volumes, [PreviewWriter(tmp_path / "inverted", LABELS), results], spacing=True)
        plain, inverted = (np.array(Image.open(tmp_path / one / "a.png")) for one in ("plain", "inverted"))
        np.testing.assert_array_equal(plain, inverted)
        assert read_results(tmp_path / "results.json")["cases"][0]["metrics"]["dice/liver"] == 1.0

    def test_directions_of_the_file_do_not_turn_the_picture(
        self, tmp_path: Path, volumes: list[dict[str, str]]
    ) -> None:
        """The same anatomy stored with its axes reversed and permuted gives the same picture."""
        image = LoadImaged("image")({"image": volumes[1]["image"]})["image"][None]
        label = torch.as_tensor(LoadImaged("image")({"image": volumes[1]["label"]})["image"]).long()
        expected = draw_preview(image, label, label, LABELS)
        turned = nib.orientations.axcodes2ornt(("A", "S", "R"))
        paths = {}
        for key in ("image", "label"):
            source = nib.load(volumes[1][key])
            turn = nib.orientations.ornt_transform(nib.io_orientation(source.affine), turned)
            paths[key] = tmp_path / f"turned_{key}.nii.gz"
            nib.save(source.as_reoriented(turn), paths[key])
        image = LoadImaged("image")({"image": str(paths["image"])})["image"][None]
        label = torch.as_tensor(LoadImaged("image")({"image": str(paths["label"])})["image"]).long()
        assert image.shape == (1, 20, 6, 16)
        np.testing.assert_array_equal(draw_preview(image, label, label, LABELS), expected)

    def test_colour_picture_stands_upright(self, tmp_path: Path) -> None:
        pixels = np.zeros((30, 60, 3), np.uint8)
        pixels[:10, :, 0] = 255
        Image.fromarray(pixels).save(tmp_path / "a.png")
        read = Compose([LoadImageUprightd("image"), EnsureChannelFirstd("image")])
        image = read({"image": str(tmp_path / "a.png")})["image"]
        label = torch.zeros(30, 60, dtype=torch.long)
        label[20:25, 5:10] = 1
        picture = draw_preview(image, label, torch.zeros_like(label), LABELS)
        assert picture.shape[1] == 2 * 320
        assert picture[10, 100, 0] > 200
        assert picture[10, 100, 1] < 50
        rows, columns = np.nonzero(coloured(picture[:160], 1))
        assert 105 <= rows.min() <= 108
        assert 25 <= columns.min() <= 28

    def test_max_cases(self, tmp_path: Path, volumes: list[dict[str, str]]) -> None:
        evaluate(volumes, [PreviewWriter(tmp_path / "previews", LABELS, max_cases=1)])
        assert [path.name for path in (tmp_path / "previews").iterdir()] == ["a.png"]
