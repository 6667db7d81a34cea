"""Looks for identifying values in everything that a command leaves behind: file names, bytes, texts, databases.

    secrets = Secrets((*header_secrets(files), "text of a folder name"))
    assert not scan_folder(out, secrets) + scan_text("stderr", stderr, secrets)

A value is looked for as it stands, in any case of letters, in UTF-8, Latin-1 and UTF-16, and as hex, base64, MD5,
SHA-1, SHA-256 and percent code of itself. Packed things are unpacked first (gzip, zip, texts of PNG, base64 in HTML,
zlib in the cells of a database).
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import re
import sqlite3
import urllib.parse
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pydicom
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR, keyword_dict, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID

SECRET_VRS = ("PN", "LO", "SH", "LT", "ST", "UT", "UC", "UR", "DA", "TM", "DT", "UI", "AE", "AS")
SOFTWARE = (PYDICOM_IMPLEMENTATION_UID, f"PYDICOM {pydicom.__version__}")
"""What the software that we write with says of itself in every file; no secret of a source that it wrote too."""
SHORTEST = 4
SHORTEST_NUMBER = 8
_NOT_PLANTED = {"SpecificCharacterSet", "TransferSyntaxUID", "CodingSchemeDesignator", "MappingResource"}
_MARKS = {"PN": "Qzmark{}^Q", "AE": "QZMARK{}", "AS": "047Y", "UI": "1.2.840.99999.77.{}", "UR": "http://qzmark.org/{}"}
_INLINE = re.compile(rb"data:[\w/+.-]+;base64,([A-Za-z0-9+/=]+)")


def is_telling(value: str) -> bool:
    """Whether finding a value means something.

    The rule: at least 4 characters; at least 8 if there are digits, points and signs only (shorter ones turn up by
    chance among the numbers of any output); not one and the same character all along; no UID of the standard; nothing
    that pydicom says of itself.
    """
    if len(value) < SHORTEST or len(set(value)) == 1 or value in SOFTWARE:
        return False
    if UID(value, validation_mode=IGNORE).name != value:
        return False
    return len(value) >= SHORTEST_NUMBER if re.fullmatch(r"[\d.:+-]+", value) else True


def _values(dataset: Dataset) -> Iterator[str]:
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
        except Exception:  # a value that pydicom cannot read is looked at as it is written
            raw = dataset.get_item(tag).value
            yield from raw.decode("latin-1").split("\\") if isinstance(raw, bytes) else ()
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from _values(item)
        elif element.VR in SECRET_VRS or (element.VR == "UN" and isinstance(element.value, bytes | str)):
            value = element.value
            if isinstance(value, bytes):
                value = value.decode("latin-1")
            for one in value if isinstance(value, list | pydicom.multival.MultiValue) else [value]:
                yield str(one)


def dataset_secrets(dataset: Dataset) -> set[str]:
    """Telling values of a data set and its file meta information, names also word by word."""
    values = set(_values(dataset)) | set(_values(getattr(dataset, "file_meta", None) or Dataset()))
    values |= {part for value in values if "^" in value for part in re.split(r"[\^=]", value)}
    return {text for text in (value.strip(" \0") for value in values) if is_telling(text)}


def header_secrets(files: Iterable[Path]) -> set[str]:
    """Telling values of all DICOM files, those in zip archives included."""
    found: set[str] = set()
    for path in files:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                streams = [io.BytesIO(archive.read(info)) for info in archive.infolist() if not info.is_dir()]
        else:
            streams = [io.BytesIO(path.read_bytes())]
        for stream in streams:
            with warnings.catch_warnings(action="ignore"):  # of values that were cut on purpose
                dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
                # Forced reading makes values even of what is no DICOM; those are noise.
                if stream.getvalue()[128:132] == b"DICM" or "SOPClassUID" in dataset:
                    found |= dataset_secrets(dataset)
    return found


def mark(representation: str, number: int) -> str:
    """A value of a VR that occurs nowhere by chance; times and dates lie in 1948."""
    day = f"1948{1 + number % 12:02d}{1 + number % 28:02d}"
    if representation == "DA":
        return day
    if representation in ("TM", "DT"):
        return f"{day if representation == 'DT' else ''}{number % 24:02d}5948.{number:06d}"
    return _MARKS.get(representation, "Qzmark {}").format(number)


@cache
def _marked_elements() -> tuple[DataElement, ...]:
    elements = []
    for number, keyword in enumerate(sorted(keyword_dict)):
        tag = Tag(tag_for_keyword(keyword))
        representation = dictionary_VR(tag)
        wanted = representation in SECRET_VRS and tag.group not in (0x0000, 0x0002) and tag.element != 0
        if wanted and keyword not in _NOT_PLANTED:
            elements.append(DataElement(tag, representation, mark(representation, number)))
    return tuple(elements)


def plant_marks(dataset: Dataset) -> set[str]:
    """Put a mark into every attribute of the dictionary that may hold a secret and is not there; give the marks."""
    absent = [element for element in _marked_elements() if element.tag not in dataset]
    for element in absent:
        dataset.add(element)
    return {text for text in (str(element.value) for element in absent) if is_telling(text)}


@dataclass(frozen=True)
class Secrets:
    """Values to look for, with all their forms, as one pattern."""

    values: tuple[str, ...]

    @cached_property
    def _by_prefix(self) -> dict[int, list[tuple[bytes, str]]]:
        """Each form in lower case with the value that it stands for, by its first three bytes as a number."""
        found: dict[int, list[tuple[bytes, str]]] = {}
        for value in self.values:
            for form in {form.lower() for form in _forms(value)}:
                found.setdefault(int.from_bytes(form[:3], "big"), []).append((form, value))
        return found

    @cached_property
    def _prefixes(self) -> np.ndarray:
        table = np.zeros(1 << 24, dtype=bool)
        table[list(self._by_prefix)] = True
        return table

    def find(self, data: bytes) -> set[str]:
        """Values that occur in ``data`` in any form."""
        lower = data.lower()
        codes = np.frombuffer(lower, dtype=np.uint8).astype(np.uint32)
        codes = codes[:-2] << 16 | codes[1:-1] << 8 | codes[2:]
        return {
            value
            for place in np.flatnonzero(self._prefixes[codes]).tolist()
            for form, value in self._by_prefix[int(codes[place])]
            if lower.startswith(form, place)
        }


def _forms(value: str) -> Iterator[bytes]:
    for codec in ("utf-8", "latin-1", "utf-16-le"):
        yield value.encode(codec, errors="replace")
    raw = value.encode()
    yield raw.hex().encode()
    # The middle of a base64 text depends on where the value begins in it: all three places.
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + raw)
        whole = text[4 if shift else 0 : len(text) - 4]
        if len(whole) >= 8:
            yield whole
    yield urllib.parse.quote(value).encode()
    for digest in (hashlib.md5, hashlib.sha1, hashlib.sha256):
        yield digest(raw).hexdigest()[:16].encode()


def _png_parts(data: bytes) -> Iterator[bytes]:
    position = 8
    while position + 8 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        body = data[position + 8 : position + 8 + length]
        if kind in (b"zTXt", b"iTXt"):
            start = body.rfind(b"x")
            yield body
            yield from (zlib.decompressobj().decompress(body[i:]) for i in range(start, len(body)) if body[i] == 0x78)
        position += 12 + length


def unpacked(data: bytes) -> Iterator[bytes]:
    """``data``, and what is packed in it."""
    yield data
    if data[:2] == b"\x1f\x8b":
        yield from unpacked(gzip.decompress(data))
    elif data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from unpacked(archive.read(name))
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        yield from _png_parts(data)
    for match in _INLINE.finditer(data):
        yield from unpacked(base64.b64decode(match[1]))


def scan_bytes(where: str, data: bytes, secrets: Secrets) -> list[tuple[str, str]]:
    """(where, value) of each value in ``data`` or in what is packed in it."""
    return sorted({(where, value) for part in unpacked(data) for value in secrets.find(part)})


def scan_text(where: str, text: str, secrets: Secrets) -> list[tuple[str, str]]:
    """As `scan_bytes`, of a text such as stderr."""
    return scan_bytes(where, text.encode(), secrets)


def _cell(value: object) -> bytes:
    """A cell of a database as bytes, unpacked where zlib packed it."""
    if not isinstance(value, bytes):
        return str(value).encode(errors="surrogateescape")
    try:
        return zlib.decompress(value)
    except zlib.error:
        return value


def scan_sqlite(path: Path, secrets_of: Callable[[str, str], Secrets]) -> list[tuple[str, str]]:
    """(table.column, value) in a database, of the values ``secrets_of(table, column)``; ("", "") stands for the schema.

    Free pages are not rows: use `scan_bytes` where nothing at all is allowed.
    """
    leaks = []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        tables = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
        for table, sql in tables:
            leaks += scan_text(f"{path.name} schema", sql, secrets_of("", ""))
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info('{table}')")]
            for column in columns:
                rows = connection.execute(f"SELECT DISTINCT \"{column}\" FROM '{table}'").fetchall()
                data = b"\n".join(_cell(value) for (value,) in rows)
                leaks += scan_bytes(f"{table}.{column}", data, secrets_of(table, column))
    return leaks


def scan_folder(folder: Path, secrets: Secrets, skip: Iterable[str] = ()) -> list[tuple[str, str]]:
    """(relative path, value) for all names and bytes below a folder; files called as in ``skip`` are left out."""
    leaks = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        leaks += scan_text(f"name {name}", name, secrets)
        if path.is_file() and path.name not in set(skip):
            leaks += scan_bytes(name, path.read_bytes(), secrets)
    return leaks
