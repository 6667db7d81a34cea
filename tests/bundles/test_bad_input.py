"""Bad input to the commands: one clear sentence, a non-zero exit, and nothing half-written."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle_material import NAMES, PRETRAINING, SEGMENTATION, small

from lvmmed_monai.cli._bundle_files import copy_bundle
from lvmmed_monai.cli.app import execute
from lvmmed_monai.phantom import write_studies


@pytest.fixture
def refusal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``refusal(code, *words)``: the one sentence with which a command line ends."""
    monkeypatch.setenv("LVMMED_DEBUG", "0")

    def run(code: int, *words: str | Path) -> str:
        assert execute([str(word) for word in words]) == code
        captured = capfd.readouterr()
        assert "Traceback" not in captured.out + captured.err
        sentences = [line for line in captured.err.splitlines() if line.startswith("lvmmed: ")]
        assert len(sentences) == 1
        assert len(re.findall(";", sentences[0])) >= 2  # what is wrong; where; what to do
        return sentences[0]

    return run


def settings(name: str, **more: object) -> list[str]:
    values = {**small(name, "train"), "device": "$torch.device('cpu')", "amp": False, **more}
    return [
        f"{key}={json.dumps(value) if not isinstance(value, str | Path) else value}" for key, value in values.items()
    ]


def files_in(*folders: Path) -> list[Path]:
    """The models and results below folders, half-written ones too."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [
        path for path in files if path.suffix in (".pt", ".gz") or path.name == "results.json" or "partial" in path.name
    ]


# -- ingest -------------------------------------------------------------------------------------------


def test_empty_folder(tmp_path: Path, refusal: Callable[..., str]) -> None:
    (tmp_path / "in").mkdir()
    assert "no files" in refusal(3, "ingest", tmp_path / "in", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_of_text_files(tmp_path: Path, refusal: Callable[..., str]) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.txt").write_text("no image")
    assert "no DICOM" in refusal(3, "ingest", tmp_path / "in", "--out", tmp_path / "out")
    assert not list(tmp_path.glob("out/**/*.nii.gz"))


def test_truncated_dicom(tmp_path: Path, refusal: Callable[..., str]) -> None:
    write_studies(tmp_path / "in", subjects=1, size=32, seed=0)
    image = sorted(path for path in (tmp_path / "in").rglob("*.dcm"))[3]
    image.write_bytes(image.read_bytes()[:-700])
    sentence = refusal(3, "ingest", tmp_path / "in", "--out", tmp_path / "out")
    assert "qc.html" in sentence
    assert not list(tmp_path.glob("out/**/*.nii.gz"))
    series = json.loads((tmp_path / "out" / "qc.json").read_text())["series"]
    assert any(item["findings"] and not item["accepted"] for item in series)


# -- bundles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_missing_image(name: str, datalist: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    content = json.loads(datalist.read_text())
    for section in ("training", "validation", "test"):
        for item in content[section]:
            item.update({key: str(datalist.parent / item[key]) for key in ("image", "label")})
    content["training"][1]["image"] = "not_there.nii.gz"
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    bundle = copy_bundle(name, tmp_path)
    sentence = refusal(3, "run", bundle, "train", *settings(name, datalist=tmp_path / "datalist.json"))
    assert "not_there.nii.gz" in sentence
    assert not files_in(bundle)


@pytest.mark.parametrize("name", SEGMENTATION)
def test_label_of_another_shape(name: str, datalist: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    shutil.copytree(datalist.parent, tmp_path / "data")
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 7), np.uint8), np.eye(4)), tmp_path / "data" / "label_training2.nii.gz")
    bundle = copy_bundle(name, tmp_path)
    sentence = refusal(3, "run", bundle, "train", *settings(name, datalist=tmp_path / "data" / "datalist.json"))
    assert "label_training2.nii.gz" in sentence
    assert not files_in(bundle)


@pytest.mark.parametrize("name", SEGMENTATION)
def test_encoder_of_another_architecture(
    name: str, datalist: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    other = next(one for one in PRETRAINING if one[:4] != name[:4])
    source = copy_bundle(other, tmp_path)
    assert execute(["run", str(source), "train", *settings(other, datalist=datalist)]) == 0
    encoder = source / "models" / "encoder.pt"
    bundle = copy_bundle(name, tmp_path)
    sentence = refusal(2, "run", bundle, "train", *settings(name, datalist=datalist, pretrained_encoder=encoder))
    assert "encoder.pt" in sentence
    assert not files_in(bundle)


def test_batch_that_does_not_fit_the_groups(datalist: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    bundle = copy_bundle("lvmmed_pretrain", tmp_path)
    nodes = 4
    wrong = settings(
        bundle.name, datalist=datalist, batch_size=6, loss_options={"nodes_per_graph": nodes, "neighbours": 2}
    )
    sentence = refusal(2, "run", bundle, "train", *wrong)
    assert "6" in sentence
    assert f"{nodes} or {2 * nodes}" in sentence
    assert not files_in(bundle)


@pytest.mark.parametrize("name", NAMES)
def test_output_that_cannot_be_written(name: str, datalist: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("in the way")
    bundle = copy_bundle(name, tmp_path)
    wrong = settings(name, datalist=datalist, output_dir=tmp_path / "file" / "out")
    assert str(tmp_path / "file") in refusal(2, "run", bundle, "train", *wrong)
    assert not files_in(bundle)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.fixture
def files_stay_small() -> Iterator[None]:
    """No file may grow beyond 20 kB, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", NAMES)
def test_output_that_is_full(
    name: str, datalist: Path, tmp_path: Path, refusal: Callable[..., str], files_stay_small: None
) -> None:
    bundle = copy_bundle(name, tmp_path)
    assert "free some space" in refusal(2, "run", bundle, "train", *settings(name, datalist=datalist))
    assert not [path for path in files_in(bundle) if path.suffix == ".pt"]
