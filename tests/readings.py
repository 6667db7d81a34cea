"""What our ingest makes of a folder, and whether it does what a row of the fault matrix demands."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from damage import Damage, damaged
from pydicom.dataset import Dataset
from world import Volume, planes, same_volumes

from lvmmed_monai.errors import DataError
from lvmmed_monai.ingest import ingest


@dataclass
class Reading:
    """Volumes and reason codes.

    Attributes:
        volumes: what was accepted.
        refused: codes for which a series or a file was left out.
        reported: all codes, those of what was accepted and of what was left out.
    """

    volumes: list[Volume] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    reported: set[str] = field(default_factory=set)


def our_reader(folder: Path, scratch: Path) -> Reading:
    """Ingest a folder into ``scratch`` and read what was written."""
    with suppress(DataError):  # nothing was accepted; the record says why
        ingest(folder, scratch / "out", site_key=scratch / "site.key")
    record = scratch / "out" / "qc.json"
    if not record.is_file():
        return Reading(refused={"no image"}, reported={"no image"})
    qc = json.loads(record.read_text())
    reading = Reading(refused={row["code"] for row in qc["files"]})
    for entry in qc["series"]:
        found = entry["findings"]
        reading.reported |= {finding["code"] for finding in found}
        if not entry["accepted"]:
            reading.refused |= {finding["code"] for finding in found if finding["severity"] == "error"}
            continue
        image = nib.load(scratch / "out" / "images" / f"{entry['id']}.nii.gz")
        reading.volumes.append((np.asarray(image.dataobj), np.asarray(image.affine)))
    reading.reported |= reading.refused
    return reading


def check_damage(damage: Damage, good: list[Dataset], folder: Path) -> None:
    """Read a damaged copy of a good series and hold the result against what the row demands."""
    truth = damaged(damage, good, folder / "dicom")
    reading = our_reader(folder / "dicom", folder)
    if not reading.volumes:
        assert reading.refused & damage.refuse, f"refused with {sorted(reading.refused)}"
        return
    assert damage.accept, f"accepted {[array.shape for array, _ in reading.volumes]}"
    wanted = [planes(slices) for slices in truth]
    assert same_volumes(reading.volumes, wanted, resampled=damage.resampled), "not what the slices show"
    assert not damage.report or reading.reported & damage.report, f"reported only {sorted(reading.reported)}"
