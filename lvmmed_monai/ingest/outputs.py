"""What an ingest writes beside the images: datalists and ``qc.json``; no path, name or header value in either."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvmmed_monai.data.datalist import FORMAT, SECTIONS, write_datalist
from lvmmed_monai.data.splits import split_subjects
from lvmmed_monai.errors import UserError
from lvmmed_monai.files import read_json, write_json
from lvmmed_monai.ingest.findings import Finding
from lvmmed_monai.ingest.journal import Journal

__all__ = ["QC_FORMAT", "ImageEntry", "file_rows", "write_datalists", "write_qc"]

QC_FORMAT = "lvmmed-qc/1"
_PATTERN = "datalist*.json"
_SPLIT = "split"  # its key in the journal
_SIDES = {"left", "right", "l", "r"}


@dataclass(frozen=True)
class ImageEntry:
    """One accepted volume or image: what a datalist says of it. All ids are pseudonyms.

    Attributes:
        id, subject, study, series: of the image.
        modality: as the datalist calls it.
        images: paths below the output folder: one, or one for each frame of a clip.
        labelled: it has a label map.
    """

    id: str
    subject: str
    study: str
    series: str
    modality: str
    images: tuple[str, ...]
    labelled: bool


def _earlier(out: Path) -> dict[Path, dict[str, Any]]:
    """Datalists of earlier runs. One that cannot be read is an error: making it anew could move subjects."""
    found = {}
    for path in sorted(out.glob(_PATTERN)):
        content = read_json(path, "earlier datalist")
        if isinstance(content, dict) and content.get("format") == FORMAT:
            found[path] = content
    return found


def _earlier_sections(datalists: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {
        item["subject"]: section for datalist in datalists for section in SECTIONS for item in datalist.get(section, [])
    }


def _datalist(
    task: str, modality: str, volumes: Sequence[ImageEntry], sections: Mapping[str, str], table: Mapping[str, int]
) -> dict[str, Any]:
    segmentation = task == "segmentation"
    labels = {"0": "background", **{str(index): name for name, index in sorted(table.items(), key=lambda row: row[1])}}
    sided = any(_SIDES.intersection(name.split("_")) for name in table)
    datalist: dict[str, Any] = {
        "format": FORMAT,
        "name": f"ingest_{modality.lower()}",
        "task": task,
        "modality": modality,
        "labels": labels if segmentation else {},
        # Mirroring makes a left kidney a right one; an image without label has nothing to be made wrong.
        "flip_safe": not (segmentation and sided),
    }
    for section in SECTIONS:
        members = [volume for volume in volumes if sections[volume.subject] == section]
        datalist[section] = [item for volume in members for item in _items(volume, segmentation)]
    return datalist


def _items(entry: ImageEntry, with_label: bool) -> list[dict[str, str]]:
    label = {"label": f"labels/{entry.id}.nii.gz"} if with_label else {}
    ids = {"subject": entry.subject, "study": entry.study, "series": entry.series}
    return [{"image": image, **label, **ids} for image in entry.images]


def write_datalists(
    out: Path,
    volumes: Sequence[ImageEntry],
    table: Mapping[str, int],
    split: Sequence[float],
    seed: int,
    journal: Journal,
) -> list[str]:
    """Write one datalist for each modality, and one of the labelled part where only a part is labelled.

    Subjects keep the section that an earlier run in this folder gave them, also one that was killed between two
    datalists. Unchanged files are not touched; datalists of earlier runs that no longer apply are removed.

    Returns:
        File names, in the order written.

    Raises:
        UserError: an earlier datalist cannot be read.
    """
    earlier = _earlier(out)
    settled = {**(journal.outcome(_SPLIT, "") or {}), **_earlier_sections(earlier.values())}
    sections = split_subjects((volume.subject for volume in volumes), tuple(split), seed, settled)
    modalities = sorted({volume.modality for volume in volumes})
    wanted: dict[str, dict[str, Any]] = {}
    for modality in modalities:
        members = [volume for volume in volumes if volume.modality == modality]
        labelled = [volume for volume in members if volume.labelled]
        stem = "datalist" if len(modalities) == 1 else f"datalist_{modality.lower()}"
        task = "segmentation" if len(labelled) == len(members) else "unlabelled"
        wanted[f"{stem}.json"] = _datalist(task, modality, members, sections, table)
        if labelled and task == "unlabelled":
            wanted[f"{stem}_segmentation.json"] = _datalist("segmentation", modality, labelled, sections, table)
    changed = {out / name: datalist for name, datalist in wanted.items() if earlier.get(out / name) != datalist}
    if len(changed) > 1:
        journal.keep_outcome(_SPLIT, "", sections, {})
        journal.flush()
    for path, datalist in changed.items():
        write_datalist(path, datalist)
    for path, content in earlier.items():
        if path.name not in wanted and str(content.get("name", "")).startswith("ingest_"):
            path.unlink()
    journal.forget(_SPLIT)
    return list(wanted)


def file_rows(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings of single files, counted by code."""
    found = list(findings)
    counts = Counter(finding.code for finding in found)
    remedies = {finding.code: finding.remedy for finding in found}
    return [{"code": code, "count": counts[code], "remedy": remedies[code]} for code in sorted(counts)]


def write_qc(path: Path, record: dict[str, Any]) -> None:
    """Write ``qc.json`` unless only its timings differ from what stands there."""
    try:
        before = read_json(path, "quality record") if path.is_file() else None
    except UserError:
        before = None  # damaged: it is written anew
    if isinstance(before, dict) and {**before, "timings": None} == {**record, "timings": None}:
        return
    write_json(path, record)
