"""``lvmmed demo``: the whole way, from studies to a report, by the commands that a user would type."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lvmmed_monai.cli._steps import Step, run_steps

__all__ = ["demo", "demo_steps"]

# ---------------------------------------------------------------------------------------------------------------
# The settings of the demo, all of them. Chosen for two CPU cores and 12 minutes; a GPU is used where there is one.

PHANTOM = {"subjects": 24, "size": 96, "seed": 0}

PRETRAIN_2D: dict[str, Any] = {
    "encoder_name": "resnet18",
    "encoder_options": {"width": 16},
    "image_size": 64,
    "batch_size": 64,
    "learning_rate": 3e-3,
    "max_epochs": 4,
    "epoch_length": 60,
    "monitor_interval": 60,
}
PRETRAIN_3D: dict[str, Any] = {
    "encoder_name": "segresnet_tiny",
    "spacing": [5, 5, 5],
    "grid": [3, 3],
    "crop_size": 16,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "max_epochs": 5,
    "epoch_length": 100,
    "monitor_interval": 250,
}
# A user's own studies: finer voxels than those of the generated ones.
PRETRAIN_3D_DICOM = {**PRETRAIN_3D, "spacing": [2, 2, 2], "crop_size": 24}

SEGMENT_2D_NETWORK: dict[str, Any] = {
    "encoder_name": PRETRAIN_2D["encoder_name"],
    "encoder_options": PRETRAIN_2D["encoder_options"],
    "decoder_channels": [64, 32, 16, 16, 8],
    "roi_size": [96, 96],
}
# Few steps and organs of 1 % of the voxels: a high rate, and a loss in which small classes count more.
SEGMENT_2D_TRAINING: dict[str, Any] = {
    "batch_size": 4,
    "num_samples": 8,
    "learning_rate": 0.01,
    "class_balance": 0.5,
    "max_epochs": 34,
    "val_interval": 17,
}

SEGMENT_3D_NETWORK: dict[str, Any] = {
    "encoder_name": PRETRAIN_3D["encoder_name"],
    "decoder_channels": [32, 16, 8],
    "spacing": PRETRAIN_3D["spacing"],
    "roi_size": [48, 48, 32],
}
SEGMENT_3D_TRAINING: dict[str, Any] = {
    "batch_size": 1,
    "num_samples": 1,
    "learning_rate": 0.01,
    "class_balance": 0.5,
    "max_epochs": 18,
    "val_interval": 9,
}

NEEDED_BYTES = 2_000_000_000
VOLUME_MODALITIES = ("CT", "MR", "PET")
# ---------------------------------------------------------------------------------------------------------------

_MADE = ("studies", "data", "bundles", "runs", "report.html", ".steps")


def demo(
    dicom: Annotated[Path | None, typer.Option(help="Your own DICOM: ingest, both pre-trainings, report.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("demo"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again, also what was done before.")] = False,
) -> None:
    """Studies, ingest, pre-training in 2D and 3D, fine-tuning, evaluation, inference, report; every command is shown.

    Example: lvmmed demo --dicom /data/export --out trial
    """
    from lvmmed_monai.cli._steps import minutes, remove
    from lvmmed_monai.errors import UserError
    from lvmmed_monai.files import output_folder

    if dicom is not None and not dicom.is_dir():
        raise UserError(f"not a folder; {dicom}; name the folder that holds your DICOM files")
    output_folder(out, need_bytes=NEEDED_BYTES)
    if fresh and (out / ".steps").is_dir():
        remove([out / name for name in _MADE])
    print(f"Python {sys.version.split()[0]}; everything goes to {out}; a repeated call keeps what is done", flush=True)
    seconds = run_steps(demo_steps(out, dicom), out / ".steps")
    print(f"\nAll steps done in {minutes(seconds)}.")
    for line in _results(out):
        print(f"  {line}")
    print(f"\nReport: {(out / 'report.html').resolve()}")


def demo_steps(out: Path, dicom: Path | None) -> list[Step]:
    """The steps of the demo, in order.

    Args:
        out: folder of everything that is made.
        dicom: the user's own studies; None for generated ones, with labels, which are fine-tuned on too.
    """
    data, page = out / "data", out / "report.html"
    report = Step("report", "Report", lambda: [["report", str(data), str(out / "runs"), "--out", str(page)]], [page])
    if dicom is not None:
        words = ["ingest", str(dicom.resolve()), "--out", str(data)]
        ingest = Step("ingest", "Ingest your studies", lambda: [words], [data])
        copy = _copy_step(out, ("lvmmed_pretrain", "voco_pretrain"), ())
        return [ingest, copy, *_pretrain_steps(out, PRETRAIN_3D_DICOM), report]
    return [
        *_study_steps(out),
        _copy_step(out, ("lvmmed_pretrain", "voco_pretrain"), ("lvmmed_segmentation_2d", "voco_segmentation_3d")),
        *_pretrain_steps(out, PRETRAIN_3D),
        *_segment_steps(out, "2d", "lvmmed", SEGMENT_2D_NETWORK, SEGMENT_2D_TRAINING),
        *_segment_steps(out, "3d", "voco", SEGMENT_3D_NETWORK, SEGMENT_3D_TRAINING),
        report,
    ]


def _settings(**settings: Any) -> list[str]:
    """``key=value`` words of ``lvmmed run``; paths and texts as they stand, the rest as JSON."""
    return [f"{key}={value if isinstance(value, str | Path) else json.dumps(value)}" for key, value in settings.items()]


def _study_steps(out: Path) -> list[Step]:
    studies, data, key = out / "studies", out / "data", out / "phantom.key"

    def ingest() -> list[list[str]]:
        # Nobody has to be protected, and with a known key the subjects fall into the same splits everywhere.
        if not key.exists():
            key.touch(mode=0o600)
            key.write_text(hashlib.sha256(b"generated studies").hexdigest() + "\n", encoding="ascii")
        return [["ingest", str(studies), "--out", str(data), "--site-key", str(key)]]

    words = [word for name, value in PHANTOM.items() for word in (f"--{name}", str(value))]
    return [
        Step(
            "phantom", "Make DICOM studies of generated anatomy", lambda: [["phantom", str(studies), *words]], [studies]
        ),
        Step("ingest", "Ingest them: checked volumes, labels, splits", ingest, [data]),
    ]


def _copy_step(out: Path, plain: Sequence[str], labelled: Sequence[str]) -> Step:
    bundles = out / "bundles"
    datalist = ["--datalist", str(out / "data" / "datalist.json")]
    commands = [["bundles", "copy", name, str(bundles)] for name in plain]
    commands += [["bundles", "copy", name, str(bundles), *datalist] for name in labelled]
    return Step("bundles", "Copy the MONAI bundles", lambda: commands, [bundles])


def _datalists(data: Path, modalities: Sequence[str] = ()) -> list[Path]:
    """What ingest wrote, of the given modalities (all, if none is given).

    Raises:
        DataError: there is none.
    """
    from lvmmed_monai.data.datalist import datalist_modality
    from lvmmed_monai.errors import DataError
    from lvmmed_monai.files import read_json

    names = [data / name for name in read_json(data / "qc.json", "ingest summary")["datalists"]]
    # A second list of the labelled part holds images that the first one holds too.
    whole = [path for path in names if not path.stem.endswith("_segmentation")]
    found = [path for path in whole if not modalities or datalist_modality(path) in modalities]
    if not found:
        raise DataError(f"no volumes of {', '.join(modalities)} were taken in; {data}; qc.json names the reasons")
    return found


def _data_settings(datalists: Sequence[Path]) -> list[str]:
    """The data of a pre-training; without validation subjects nothing is measured on held-out images."""
    from lvmmed_monai.data.datalist import summarise

    held_out = any(summarise(path)["counts"].get("validation") for path in datalists)
    paths = [str(path) for path in datalists]
    return _settings(datalist=paths[0] if len(paths) == 1 else paths, **({} if held_out else {"held_out": None}))


def _fitting(settings: dict[str, Any], available: int) -> dict[str, Any]:
    """The settings with a batch that a few studies can fill."""
    return {**settings, "batch_size": max(1, min(settings["batch_size"], available))}


def _training_amounts(data: Path, datalists: Sequence[Path]) -> tuple[int, int]:
    """Number of axial slices and of volumes in the training sections; half the slices, for some show only air."""
    from lvmmed_monai.data.datalist import read_datalist
    from lvmmed_monai.files import read_json

    slices = {
        item["id"]: item["shape"][2]
        for item in read_json(data / "qc.json", "ingest summary")["series"]
        if item["accepted"]
    }
    items = [item for path in datalists for item in read_datalist(path)["training"]]
    names = [Path(item["image"]).name.split(".")[0] for item in items]
    return sum(slices.get(name, 1) for name in names) // 2, len(items)


def _pretrain_steps(out: Path, settings_3d: dict[str, Any]) -> list[Step]:
    def step(name: str, bundle: str, title: str, settings: dict[str, Any], modalities: Sequence[str]) -> Step:
        folder, run = out / "bundles" / bundle, out / "runs" / name

        def commands() -> list[list[str]]:
            lists = _datalists(out / "data", modalities)
            slices, volumes = _training_amounts(out / "data", lists)
            fitting = _fitting(settings, volumes if modalities else slices)
            return [["run", str(folder), "train", *_data_settings(lists), *_settings(output_dir=run, **fitting)]]

        return Step(name, title, commands, [run, folder / "models"], continues=True)

    return [
        step("pretrain_2d", "lvmmed_pretrain", "Pre-train a 2D encoder (LVM-Med)", PRETRAIN_2D, ()),
        step("pretrain_3d", "voco_pretrain", "Pre-train a 3D encoder (VoCo)", settings_3d, VOLUME_MODALITIES),
    ]


def _segment_steps(out: Path, dims: str, method: str, network: dict[str, Any], training: dict[str, Any]) -> list[Step]:
    bundle, run = out / "bundles" / f"{method}_segmentation_{dims}", out / "runs" / f"segment_{dims}"
    data = _settings(datalist=out / "data" / "datalist.json")
    encoder = _settings(pretrained_encoder=out / "bundles" / f"{method}_pretrain" / "models" / "encoder.pt")
    sources = _settings(dicom_sources=out / "data" / "journal.sqlite")

    def words(config: str, part: str, *more: str) -> list[str]:
        return ["run", str(bundle), config, *data, *_settings(output_dir=run / part, **network), *more]

    def step(name: str, title: str, command: list[str], outputs: list[Path], continues: bool = False) -> Step:
        return Step(f"{name}_{dims}", f"{title} in {dims.upper()}", lambda: [command], outputs, continues)

    train = words("train", "train", *encoder, *_settings(**training))
    return [
        step("train", "Fine-tune a segmentation", train, [run / "train", bundle / "models"], True),
        step("evaluate", "Evaluate on the test subjects", words("evaluate", "evaluate", *encoder), [run / "evaluate"]),
        step(
            "infer",
            "Segment the test subjects, to NIfTI and DICOM SEG",
            words("inference", "inference", *sources),
            [run / "inference"],
        ),
    ]


def _results(out: Path) -> list[str]:
    """The numbers to read first, one line each."""
    from lvmmed_monai.report.build import headlines
    from lvmmed_monai.report.collect import collect

    inputs = collect([out / "data", out / "runs"])
    lines = []
    for headline in headlines(inputs):
        note = f" ({headline.note})" if headline.note else ""
        lines.append(f"{headline.title}: {headline.value}{note}")
    return lines + [line for run in inputs.of_kind("evaluation") if (line := _organ_line(run.record))]


def _organ_line(record: dict[str, Any]) -> str | None:
    """Mean Dice over the organs: without lesions, which some subjects have and which are small."""
    classes = {name: metric["value"] for name, metric in record["metrics"].items() if name.startswith("dice/")}
    organs = [
        value for name, value in classes.items() if name not in ("dice/mean", "dice/lesion") and value is not None
    ]
    return f"{record['name']}: mean Dice over {len(organs)} organs {sum(organs) / len(organs):.3f}" if organs else None
