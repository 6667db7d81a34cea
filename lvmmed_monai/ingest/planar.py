"""The 2D way: pictures and clips as PNG, what ``qc.json`` says of them, and their items for datalists.

    images/<id>.png           a picture
    images/<id>_000.png ...   the frames of a clip
    previews/<id>.png

One bad image costs that image only. The PNG files hold pixels and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lvmmed_monai.dicom.archive import Source, SourceReader
from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.dicom.planar import PlanarImage, decode_planar
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.files import atomic_path
from lvmmed_monai.ingest.checks import planar as checks
from lvmmed_monai.ingest.checks.files import from_error
from lvmmed_monai.ingest.findings import WARNING, Finding, run_checks
from lvmmed_monai.ingest.preview import planar_preview

__all__ = [
    "PlanarPaths",
    "PlanarResult",
    "make_planar",
    "planar_modality",
    "write_planar",
]

_X_RAY = {"CR", "DX", "MG", "RF", "XA", "IO", "PX"}
_DIGITS = 3
_PNG_COMPRESSION = 3  # of 9: several times as fast as the default for a noisy radiograph, and 1 % larger


class PlanarPaths:
    """Where the files of a picture (1 frame) or clip lie below the output folder."""

    def __init__(self, out: Path, image_id: str, frames: int) -> None:
        digits = max(_DIGITS, len(str(frames - 1)))
        names = [image_id] if frames == 1 else [f"{image_id}_{number:0{digits}d}" for number in range(frames)]
        self.images = [out / "images" / f"{name}.png" for name in names]
        self.preview = out / "previews" / f"{image_id}.png"

    def complete(self) -> bool:
        """Whether all files are there."""
        return self.preview.is_file() and all(path.is_file() for path in self.images)


@dataclass(frozen=True)
class PlanarResult:
    """What became of one image.

    Attributes:
        index: of its header among those given; the first one's where there were copies.
        id: pseudonym.
        paths: its files, relative to the output folder, "/" between parts; empty when it was refused.
        facts: what ``qc.json`` says of it: "shape" [columns, rows], "frames", "spacing_mm" [x, y] or None,
            "value_range", "decoders"; empty when it was refused.
        findings: about it.
    """

    index: int
    id: str
    paths: tuple[str, ...]
    facts: Mapping[str, Any]
    findings: tuple[Finding, ...]

    @property
    def accepted(self) -> bool:
        """Whether its files were written."""
        return bool(self.paths)

    def as_dict(self) -> dict[str, Any]:
        """For the journal."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> PlanarResult:
        """From the journal."""
        findings = tuple(Finding(**found) for found in record["findings"])
        return cls(record["index"], record["id"], tuple(record["paths"]), record["facts"], findings)


def write_planar(folder: Path, image_id: str, image: PlanarImage) -> list[Path]:
    """Write a picture, or each frame of a clip, and the preview; each file is whole or absent.

    Args:
        folder: output folder, with ``images`` and ``previews`` in it.
        image_id: 16 hex digits.
        image: what to write, in its own bits (8 or 16 bits grey, 8 bits RGB).

    Returns:
        The images' paths, in the order of the frames.
    """
    paths = PlanarPaths(folder, image_id, len(image.frames))
    for path, frame in zip(paths.images, image.frames, strict=True):
        _save(path, Image.fromarray(frame))
    _save(paths.preview, planar_preview(image.frames, image.spacing_mm))
    return paths.images


def _save(path: Path, picture: Image.Image) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", compress_level=_PNG_COMPRESSION)


def _instances(headers: Sequence[Header]) -> Iterator[list[int]]:
    """Indices of the headers of each instance; several are copies. Frames of one file count once."""
    groups: dict[str | Source, list[int]] = {}
    seen: set[Source] = set()
    for index, header in enumerate(headers):
        if header.source not in seen:
            seen.add(header.source)
            groups.setdefault(header.sop_uid or header.source, []).append(index)
    return iter(groups.values())


def _facts(image: PlanarImage) -> dict[str, Any]:
    count, rows, columns = image.frames.shape[:3]
    return {
        "shape": [columns, rows],
        "frames": count,
        "spacing_mm": [round(step, 6) for step in reversed(image.spacing_mm)] if image.spacing_mm else None,
        "value_range": [float(image.frames.min()), float(image.frames.max())],
        "decoders": [image.decoder],
    }


def _decode(headers: Sequence[Header], reader: SourceReader) -> tuple[PlanarImage | None, list[Finding]]:
    """The image that copies of one instance agree on, or None; and what was found."""
    image: PlanarImage | None = None
    broken: list[Finding] = []
    equal = other = 0
    for header in headers:
        try:
            copy = decode_planar(reader.read(header.source), header)
        except DicomError as error:
            broken.append(from_error(error))
            continue
        if image is None:
            image = copy
        elif np.array_equal(copy.frames, image.frames):
            equal += 1
        else:
            other += 1
    if image is None:
        return None, broken[:1]
    findings = [*checks.copies(equal), *checks.conflicts(other), *(replace(one, severity=WARNING) for one in broken)]
    return (None if other else image), findings


def make_planar(
    headers: Sequence[Header], reader: SourceReader, out: Path, id_of: Callable[[Header], str]
) -> list[PlanarResult]:
    """Decode, check and write pictures and clips.

    Args:
        headers: of instances that go the 2D way; of copies with equal pixels one is made.
        reader: of their files.
        out: output folder.
        id_of: pseudonym (16 hex digits) of an instance, another one for each SOPInstanceUID.

    Returns:
        One result for each instance (copies together), in the order of ``headers``.

    Raises:
        OSError: the output cannot be written to.
    """
    results = []
    for members in _instances(headers):
        image_id = id_of(headers[members[0]])
        image, findings = _decode([headers[index] for index in members], reader)
        if image is None:
            results.append(PlanarResult(members[0], image_id, (), {}, tuple(findings)))
            continue
        findings += run_checks(checks.CHECKS, image)
        names = tuple(path.relative_to(out).as_posix() for path in write_planar(out, image_id, image))
        results.append(PlanarResult(members[0], image_id, names, _facts(image), tuple(findings)))
    return results


def planar_modality(header: Header) -> str:
    """What the datalist calls a picture of this kind: "XR", "US", "COLOR" or "OTHER"."""
    if header.modality in _X_RAY:
        return "XR"
    if header.modality in ("US", "IVUS"):
        return "US"
    colour = header.samples > 1 or header.photometric == "PALETTE COLOR"
    return "COLOR" if colour else "OTHER"
