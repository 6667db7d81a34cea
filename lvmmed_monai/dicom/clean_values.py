"""Single values that may leave the site: of the right form, moved in time, or out of a fixed list."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID

from lvmmed_monai.dicom.segment_codes import segment_code

__all__ = [
    "code",
    "coded",
    "conforms",
    "dummy",
    "is_code",
    "is_standard_uid",
    "known_label",
    "listed",
    "moved",
    "with_value",
]

_NUMBERS = ("AT", "FD", "FL", "OB", "OW", "SL", "SS", "SV", "UL", "US", "UV")
_FORMS = {"CS": r"[A-Z0-9 _]{0,16}", "DS": r" *[-+0-9.eE]{0,32} *", "IS": r" *[-+]?[0-9.]{0,16} *"}
_DUMMIES = {
    "DA": "19000101",
    "TM": "000000",
    "DT": "19000101000000",
    **dict.fromkeys(("LO", "LT", "PN", "SH", "ST", "UC", "UT"), "removed"),
    "AE": "REMOVED",
}
_TIME = re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?")
_DATE_TIME = re.compile(r"(\d{8})(\d{0,6}(\.\d{1,6})?([-+]\d{4})?)")
_AGE = re.compile(r"(\d{3})([DWMY])")
_AGES_IN_A_YEAR = {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}
_OLDEST_YEARS = 89

_MAKERS = {
    "ge": "GE",
    "siemens": "SIEMENS",
    "philips": "Philips",
    "toshiba": "TOSHIBA",
    "canon": "CANON",
    "hitachi": "HITACHI",
    "fujifilm": "FUJIFILM",
    "hyperfine": "Hyperfine",
    "bruker": "Bruker",
    "neusoft": "Neusoft",
    "uih": "UIH",
    "united": "UIH",
}
_KERNELS = re.compile(
    r"(STANDARD|SOFT|DETAIL|BONE|BONEPLUS|EDGE|LUNG|CHST|ULTRA|STND|[A-Z]{1,2}\d{2}[a-z]?|FC\d{2}|[A-F]|[EUY][A-D])"
)
_RESCALE_TYPES = re.compile(r"HU|US|OD|HGML|Z_EFF|ED|EDW|HU_MOD|PCT")
_STACK = re.compile(r"\d{1,16}")


def with_value(element: DataElement, value: Any) -> DataElement:
    """The same attribute with another value; None empties it."""
    return DataElement(element.tag, element.VR, value)


def is_standard_uid(uid: str) -> bool:
    """Whether the standard defines it: SOP classes, transfer syntaxes, coding schemes; not what only looks like it."""
    return bool(UID(uid).name != uid)


def conforms(element: DataElement) -> bool:
    """Whether the values have the form of a number or a code word, so that no free text passes for one."""
    if element.VR in _NUMBERS:
        return element.is_empty or not isinstance(element.value, str)
    form = _FORMS.get(element.VR)
    if form is None:
        return False
    values = [] if element.is_empty else [element.value] if element.VM == 1 else list(element.value)
    # What is written is the original text of a decimal, not its value.
    return all(re.fullmatch(form, str(getattr(value, "original_string", value))) for value in values)


def dummy(representation: str) -> str | None:
    """A value that says nothing, or None where there is none of that type."""
    return _DUMMIES.get(representation)


def _moved_one(representation: str, text: str, days: int) -> str | None:
    if representation == "TM":
        return text if _TIME.fullmatch(text) else None
    match = _DATE_TIME.fullmatch(text)
    if match is None or (representation == "DA" and match[2]):
        return None
    try:
        date = datetime.strptime(match[1], "%Y%m%d") + timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return f"{date:%Y%m%d}".zfill(8) + match[2]


def moved(element: DataElement, days: int) -> str | list[str] | None:
    """Dates moved by whole days, so that times of day stay; None if one of them is no full date."""
    values = [element.value] if element.VM == 1 else list(element.value)
    found = [_moved_one(element.VR, str(value).strip(), days) for value in values]
    whole = [value for value in found if value is not None]
    if len(whole) < len(values):
        return None
    return whole[0] if len(whole) == 1 else whole


def _maker(text: str) -> str | None:
    words = re.findall(r"[a-z]+", text.lower())
    return next((_MAKERS[word] for word in words if word in _MAKERS), None)


def _age(text: str) -> str | None:
    match = _AGE.fullmatch(text)
    if match is None:
        return None
    return text if int(match[1]) / _AGES_IN_A_YEAR[match[2]] < _OLDEST_YEARS else f"{_OLDEST_YEARS:03d}Y"


def _matching(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    return lambda text: text if pattern.fullmatch(text) else None


_LISTED: dict[str, Callable[[str], str | None]] = {
    "ConvolutionKernel": _matching(_KERNELS),
    "Manufacturer": _maker,
    "ModalityLUTType": _matching(_RESCALE_TYPES),
    "PatientAge": _age,
    "RescaleType": _matching(_RESCALE_TYPES),
    "StackID": _matching(_STACK),
}


def listed(element: DataElement) -> str | None:
    """The value as far as a fixed list knows it, or None."""
    text = str(element.value[0] if element.VM > 1 else element.value).strip()
    return _LISTED[element.keyword](text)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def known_label(element: DataElement, segment: Dataset) -> str | None:
    """A segment's label, if it names a structure of our list or says no more than the segment's standard code."""
    text = str(element.value).strip()
    if segment_code(text) != segment_code(""):
        return text
    items = segment.get("SegmentedPropertyTypeCodeSequence") or []
    meanings = (str(coded(item).get("CodeMeaning", "")) for item in items if is_code(item))
    known = {word for meaning in meanings for word in _words(meaning)}
    return text if _words(text) and _words(text) <= known else None


def is_code(item: Dataset) -> bool:
    """Whether a sequence item is a code of a coding scheme."""
    return "CodingSchemeDesignator" in item


@cache
def _meanings() -> dict[tuple[str, str], str]:
    """Meaning of each code that pydicom's dictionaries know, by scheme and value."""
    from pydicom.sr.codedict import codes

    concepts = (concept for scheme in codes.schemes() for concept in getattr(codes, scheme).concepts.values())
    return {(concept.scheme_designator, concept.value): concept.meaning for concept in concepts}


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """A code item."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning[:64]
    return item


def coded(item: Dataset) -> Dataset:
    """The code with the standard's own meaning; an unknown one becomes an empty item, since codes can be local."""
    try:
        value, scheme = str(item.get("CodeValue", "")).strip(), str(item.CodingSchemeDesignator).strip()
    except ValueError:
        return Dataset()
    meaning = _meanings().get((scheme, value))
    return Dataset() if meaning is None else code(value, scheme, meaning)
