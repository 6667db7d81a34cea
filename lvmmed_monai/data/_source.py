"""A source being read: its files, the items found, and what was left out."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvmmed_monai.data.images import image_stem
from lvmmed_monai.errors import UserError

__all__ = ["DROP_CODES", "Source", "SourceItem", "as_list", "find_files", "read_table"]

# Code: what was left out, and what to do about it. Codes are never reused.
DROP_CODES: dict[str, tuple[str, str]] = {
    "SRC-001": ("image without label", "add the label, or leave it out on purpose"),
    "SRC-002": ("label without image", "add the image, or remove the label"),
    "SRC-003": ("image excluded by the manifest", "see the reason in the manifest"),
    "SRC-004": ("box of zero size", "draw the box again; the other boxes of the image are kept"),
    "SRC-005": ("image in no section of the split", "add it to the split file"),
    "SRC-006": ("label outside the label map", "correct the label, or add it to the manifest's labels"),
    "SRC-007": ("image listed but missing", "bring the file back, or remove its row"),
    "SRC-008": ("image or label unreadable, or of different shape", "replace the file"),
    "SRC-009": ("file that no pattern of the manifest covers", "nothing, or widen the patterns"),
    "SRC-010": ("id that the subject pattern does not match", "correct the file name or the pattern"),
}


@dataclass
class SourceItem:
    """One image of a source.

    Attributes:
        key: its id within the source, from the file name.
        image: path of the image.
        label: path, class number, list of numbers, or None.
        boxes: [[x0, y0, x1, y1], ...] in pixels; None but for detection.
        section: section of the split where the layout itself names it.
    """

    key: str
    image: Path
    label: Path | int | float | list[Any] | None = None
    boxes: list[list[float]] | None = None
    section: str | None = None


@dataclass
class Source:
    """A source being read: where it lies, where new files go, and what was left out.

    Attributes:
        root: folder of the source.
        staging: folder for new files; its subfolders ``images`` and ``labels`` are moved to the output later.
        dropped: names (relative to the root) by code, each name as often as it was dropped.
        claimed: files that a pattern, table or list of the manifest accounts for.
    """

    root: Path
    staging: Path
    dropped: dict[str, list[str]] = field(default_factory=dict)
    claimed: set[Path] = field(default_factory=set)

    def drop(self, code: str, name: str | Path) -> None:
        """Note that a file (or one of its boxes) is left out."""
        shown = name.relative_to(self.root).as_posix() if isinstance(name, Path) else name
        self.dropped.setdefault(code, []).append(shown)

    def file(self, relative: str, what: str) -> Path:
        """Path of a file that the manifest names.

        Raises:
            UserError: it is missing.
        """
        path = self.root / relative
        if not path.is_file():
            raise UserError(f"{what} not found ({relative}); {self.root}; name the folder that holds it as root")
        self.claimed.add(path)
        return path


def as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def find_files(root: Path, patterns: Iterable[str]) -> dict[Path, str]:
    """Files that match one of the patterns, with their id, in the order of patterns and names.

    The id is what ``{id}`` stands for, or the name without its ending where the pattern has none.
    """
    found: dict[Path, str] = {}
    for pattern in patterns:
        pieces = [re.escape(piece).replace(r"\*", "[^/]*") for piece in pattern.split("{id}")]
        expression = re.compile("(?P<id>[^/]+)".join(pieces[:2]) + "".join(r"(?P=id)" + piece for piece in pieces[2:]))
        for path in sorted(root.glob(pattern.replace("{id}", "*"))):
            match = expression.fullmatch(path.relative_to(root).as_posix())
            if match and path.is_file() and not path.name.startswith("."):
                found.setdefault(path, match.groupdict().get("id") or image_stem(path))
    return found


def read_table(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Rows of a CSV file with a header line.

    Raises:
        UserError: a column is missing, or the file is no text.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"table cannot be read ({error}); {path.name}; save it as CSV in UTF-8") from None
    for column in columns:
        if column not in (reader.fieldnames or []):
            raise UserError(
                f"the table has no column {column!r}; {path.name}; its columns are {', '.join(reader.fieldnames or [])}"
            )
    return rows
