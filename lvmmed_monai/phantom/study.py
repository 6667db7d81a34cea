"""Phantom subjects as folders of DICOM: the series, and its labels as DICOM SEG."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lvmmed_monai import __version__
from lvmmed_monai.dicom.seg_writer import write_segmentation
from lvmmed_monai.errors import UserError
from lvmmed_monai.files import output_folder, read_json, sha256_json, write_json
from lvmmed_monai.phantom.brain import brain_mr
from lvmmed_monai.phantom.dicom_series import series_of
from lvmmed_monai.phantom.torso import torso_ct
from lvmmed_monai.phantom.volume import PhantomVolume

__all__ = ["KINDS", "generate", "generate_studies", "write_studies"]

FORMAT = "lvmmed-phantom/1"
KINDS = ("torso_ct", "brain_mr")
LESION_SHARE = 0.4
_DEFAULT_SLICE_MM = {"torso_ct": (5.0, 6.0), "brain_mr": (3.2, 4.0)}
_FIRST_DATE = datetime.date(2020, 1, 1)
# Hidden, so that ingest, which takes every file for a candidate, does not report it.
_MARKER = ".phantom.json"


def generate(
    kind: str, seed: int, subject: int, *, size: int = 96, slice_mm: tuple[float, float] | None = None
) -> PhantomVolume:
    """Generate one subject in memory.

    Args:
        kind: "torso_ct" or "brain_mr".
        seed: of the whole set.
        subject: number within the set, from 0; its anatomy depends on nothing but kind, seed and this number.
        size: columns and rows.
        slice_mm: range that the distance between slices is drawn from (millimetres); by default 5 to 6 for
            the torso and 3.2 to 4 for the brain.
    """
    _check_settings(kind, subject + 1, seed, size, slice_mm)
    entropy, steps = (seed, KINDS.index(kind), subject), slice_mm or _DEFAULT_SLICE_MM[kind]
    if kind == "brain_mr":
        return brain_mr(entropy, size=size, slice_mm=steps)
    return torso_ct(entropy, size=size, slice_mm=steps, lesion=_has_lesion(seed, subject))


def generate_studies(
    out: str | os.PathLike[str],
    kind: str = "torso_ct",
    subjects: int = 24,
    seed: int = 0,
    size: int = 96,
    *,
    slice_mm: tuple[float, float] | None = None,
) -> Iterator[Path]:
    """Write the subjects one after the other; yields each subject's folder when it is whole.

    Subjects that are already there are kept, so that an interrupted run goes on where it was. The same
    settings give the same bytes. See `write_studies` for the arguments.
    """
    settings = _check_settings(kind, subjects, seed, size, slice_mm)
    folder = _claim(Path(out), settings)
    for subject in range(subjects):
        yield _write_subject(folder, settings, subject)


def write_studies(
    out: str | os.PathLike[str],
    kind: str = "torso_ct",
    subjects: int = 24,
    seed: int = 0,
    size: int = 96,
    *,
    slice_mm: tuple[float, float] | None = None,
) -> list[Path]:
    """Write a set of phantom subjects, each a folder with a DICOM series and its labels as DICOM SEG.

    Args:
        out: folder, empty or holding a phantom of the same settings.
        kind: "torso_ct" or "brain_mr".
        subjects: how many.
        seed: another seed gives other subjects.
        size: columns and rows of an image; 512 is a full-size CT.
        slice_mm: range of the distance between slices (millimetres), see `generate`.

    Returns:
        The subjects' folders.

    Raises:
        UserError: a setting is out of range, or the folder holds something else.
    """
    return list(generate_studies(out, kind, subjects, seed, size, slice_mm=slice_mm))


def _check_settings(
    kind: str, subjects: int, seed: int, size: int, slice_mm: tuple[float, float] | None
) -> dict[str, Any]:
    if kind not in KINDS:
        raise UserError(f"unknown kind of phantom {kind!r}; phantom; choose one of {', '.join(KINDS)}")
    if subjects < 1 or seed < 0:
        raise UserError(
            f"subjects must be 1 or more and seed 0 or more, got {subjects} and {seed}; phantom; correct them"
        )
    if not 32 <= size <= 1024:
        raise UserError(f"size must be from 32 to 1024 pixels, got {size}; phantom; 96 is quick, 512 a full-size CT")
    low, high = slice_mm or _DEFAULT_SLICE_MM[kind]
    if not 0.3 <= low <= high <= 20.0:
        raise UserError(
            f"slice_mm must be a range within 0.3 to 20 mm, got {low} to {high}; phantom; give for example 5 6"
        )
    return {
        "format": FORMAT,
        "version": __version__,
        "kind": kind,
        "subjects": subjects,
        "seed": seed,
        "size": size,
        "slice_mm": [float(low), float(high)],
    }


def _claim(folder: Path, settings: dict[str, Any]) -> Path:
    """Make the folder ours, or recognise it as ours by its marker."""
    marker = folder / _MARKER
    if marker.is_file():
        found = read_json(marker, "phantom settings")
        if found != settings:
            names = sorted(set(settings) | set(found)) if isinstance(found, dict) else ["format"]
            differing = [name for name in names if not isinstance(found, dict) or found.get(name) != settings.get(name)]
            raise UserError(
                f"the folder holds a phantom of other settings ({', '.join(differing)}); {folder}; "
                "choose another folder or delete this one"
            )
        return output_folder(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"the output is not empty and holds no phantom; {folder}; choose an empty folder")
    output_folder(folder)
    write_json(marker, settings)
    return folder


def _has_lesion(seed: int, subject: int) -> bool:
    """Spread evenly, so that a set of any size has its share."""
    offset = float(np.random.default_rng((seed, 7)).random())
    return int((subject + 1) * LESION_SHARE + offset) > int(subject * LESION_SHARE + offset)


def _write_subject(folder: Path, settings: dict[str, Any], subject: int) -> Path:
    kind, seed = settings["kind"], settings["seed"]
    modality = "CT" if kind == "torso_ct" else "MR"
    patient_id = f"PHANTOM-{modality}-{seed:03d}-{subject:04d}"
    final = folder / patient_id
    if final.is_dir():
        return final
    volume = generate(kind, seed, subject, size=settings["size"], slice_mm=tuple(settings["slice_mm"]))
    drawn_by = {name: value for name, value in settings.items() if name != "subjects"}
    date = _FIRST_DATE + datetime.timedelta(days=subject % 3650)
    instances = series_of(
        volume, patient_id=patient_id, date=date.strftime("%Y%m%d"), identity=(sha256_json(drawn_by), str(subject))
    )
    # Written beside its place and renamed: a subject's folder is whole or absent.
    partial = folder / f".partial-{patient_id}"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / modality).mkdir(parents=True)
    try:
        for instance in instances:
            name = f"IM{int(instance.InstanceNumber):04d}.dcm"
            instance.save_as(partial / modality / name, enforce_file_format=True)
        write_segmentation(
            partial / "SEG" / "SEG0001.dcm",
            volume.labels,
            volume.affine,
            instances,
            volume.names,
            algorithm_name="lvmmed phantom",
            series_description="PHANTOM labels (research, not for diagnosis)",
            created=datetime.datetime.combine(date, datetime.time(9)),
        )
        os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final
