"""A DICOM object for use outside the site, by the Basic Application Level Confidentiality Profile of PS3.15 annex E.

The object is built anew from what the table in ``basic_profile.json`` and its allow-list let through, at every depth;
nothing is taken over because a list forgot it. Private elements, overlays and curves are dropped, UIDs replaced,
pixels decoded and written natively.

What remains is told, and is for a person to judge: numbers and code words are kept by their attribute and form, not
by their meaning, and nobody has looked at the pixels. This is not a certified de-identification.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRLittleEndian

from lvmmed_monai import __version__
from lvmmed_monai.dicom import clean_values as clean
from lvmmed_monai.dicom.archive import Source
from lvmmed_monai.dicom.bare_pixels import bare_pixels
from lvmmed_monai.dicom.headers import header_from_dataset
from lvmmed_monai.dicom.privacy import day_shift, new_uid, pseudonym
from lvmmed_monai.dicom.problems import DicomError, silent_pydicom
from lvmmed_monai.dicom.profile import CLEAN, DUMMY, EMPTY, KEEP, RECURSE, REMOVE, REPLACE, action_for, family_of
from lvmmed_monai.dicom.values import VALUE_ERRORS

__all__ = ["Options", "Remains", "deidentify", "list_remains"]

_BASIC, _MODIFIED_DATES, _CHARACTERISTICS = "113100", "113107", "113108"
_METHODS = {
    _BASIC: "Basic Application Confidentiality Profile",
    _MODIFIED_DATES: "Retain Longitudinal Temporal Information Modified Dates Option",
    _CHARACTERISTICS: "Retain Patient Characteristics Option",
}
_PERSON = ("PatientAge", "PatientSex", "PatientSize", "PatientWeight")
_BIRTH = ("PatientBirthDate", "PatientBirthTime")
_KINDS = {
    **dict.fromkeys(("DA", "DT", "TM"), "date or time, moved by whole days or a dummy"),
    **dict.fromkeys(("DS", "IS", "FD", "FL", "SL", "SS", "SV", "UL", "US", "UV", "AT"), "number"),
    **dict.fromkeys(("OB", "OW"), "lookup table"),
    "AS": "age, at most 89 years",
    "CS": "code word, not checked against a list",
    "UI": "UID, a standard one or replaced",
}


@dataclass(frozen=True)
class Options:
    """What is kept beyond the basic profile.

    Attributes:
        keep_intervals: move all dates of a patient by the same number of days instead of removing them.
        keep_characteristics: keep age (at most 89 years), sex, size and weight of the patient.
    """

    keep_intervals: bool = False
    keep_characteristics: bool = False


@dataclass(frozen=True)
class Remains:
    """What is left in a de-identified object for a person to judge.

    Attributes:
        attributes: what kind of value each keyword still has, at any depth; pixels and empty values are not listed.
        burned_in: "NO" if the header says so of the pixels, else "not stated". Nobody has looked for text in them.
        head: the head may be shown, and a face be made from it.
    """

    attributes: Mapping[str, str]
    burned_in: str
    head: bool


@dataclass(frozen=True)
class _Rules:
    key: bytes
    options: Options
    family: str
    shift: int


def deidentify(dataset: Dataset, key: bytes, options: Options | None = None) -> tuple[Dataset, Remains]:
    """Build the de-identified form of an object. The same key gives the same UIDs and dates in every run.

    Args:
        dataset: with its file meta information and its pixels; it is not changed.
        key: from `load_site_key`.
        options: what to keep beyond the basic profile; None for nothing.

    Returns:
        The new object (explicit little endian, ready to be saved), and what remains in it.

    Raises:
        DicomError: P04 it cannot be de-identified; R03 it is in colour; F03 to F06 its pixels cannot be read.
    """
    try:
        with silent_pydicom():
            return _deidentified(dataset, key, options or Options())
    except DicomError:
        raise
    except (MemoryError, RecursionError) as error:
        raise DicomError("F06", f"ended with {type(error).__name__}", "usual size and nesting") from None
    except Exception as error:
        # A broken header makes the parser raise what it likes, with the header's bytes in the text.
        raise DicomError("P04", f"ended with {type(error).__name__}", "an object that can be read") from None


def _deidentified(dataset: Dataset, key: bytes, options: Options) -> tuple[Dataset, Remains]:
    header = header_from_dataset(dataset, Source(""))
    subject = header.patient or header.study_uid
    result = _build(dataset, _Rules(key, options, family_of(header.sop_class), day_shift(key, subject)))
    if "PixelData" in dataset:
        result.PixelData = bare_pixels(dataset)
        result["PixelData"].VR = "OW" if int(dataset.BitsAllocated) > 8 else "OB"
    _stamp(result, options, pseudonym(key, "patient", subject))
    if not result.get("SOPClassUID") or not result.get("SOPInstanceUID"):
        raise DicomError("P04", "no SOP class or instance UID", "an object that can be named")
    return result, list_remains(result, head=header.head)


def _build(dataset: Dataset, rules: _Rules) -> Dataset:
    result = Dataset()
    for tag in dataset.keys():  # noqa: SIM118 - iterating the data set itself would convert each value outside the try
        if tag.is_private or tag == 0x7FE00010:
            continue
        try:
            element = dataset[tag]
        except VALUE_ERRORS:
            continue  # a value that is not of its type may be anything: it goes
        kept = _element(element, dataset, rules)
        if kept is not None:
            result[tag] = kept
    return result


def _element(element: DataElement, parent: Dataset, rules: _Rules) -> DataElement | None:
    """The element as it may leave, or None."""
    action = _action(element, rules)
    if action == REMOVE:
        return None
    if element.VR == "SQ":
        return _sequence(element, rules) if action == RECURSE else None
    if action == KEEP:
        return element if clean.conforms(element) else None
    if element.is_empty or action == EMPTY:
        return clean.with_value(element, None)
    if action == REPLACE:
        return clean.with_value(element, _new_uids(element, rules.key))
    if action == DUMMY:
        return clean.with_value(element, clean.dummy(element.VR))
    value = clean.moved(element, rules.shift) if action == _MOVE else _listed(element, parent, rules.key)
    return None if value is None else clean.with_value(element, value)


def _listed(element: DataElement, parent: Dataset, key: bytes) -> str | None:
    if element.keyword != "SegmentLabel":
        return clean.listed(element)
    # Labels are free text. Equal ones stay equal and others other, so that two structures never become one.
    return clean.known_label(element, parent) or f"label {pseudonym(key, 'label', str(element.value))}"


_MOVE = "M"


def _action(element: DataElement, rules: _Rules) -> str:
    """The action for an element, after the options; the type that it really has must fit as well."""
    action, name = action_for(BaseTag(element.tag), rules.family), element.keyword
    if rules.options.keep_characteristics and name in _PERSON:
        return CLEAN if name == "PatientAge" else KEEP
    if rules.options.keep_intervals and element.VR in ("DA", "DT", "TM") and name and name not in _BIRTH:
        return _MOVE
    if action == REPLACE and element.VR != "UI":
        return REMOVE
    return action


def _sequence(element: DataElement, rules: _Rules) -> DataElement | None:
    items = [
        clean.coded(item) if clean.is_code(item) else _build(item, rules)
        for item in element.value  # the number of items is kept: frames are counted by it
    ]
    if not any(len(item) for item in items) and element.tag.group != 0x5200:
        return None
    kept = items if element.tag.group == 0x5200 else [item for item in items if len(item)]
    return DataElement(element.tag, "SQ", DicomSequence(kept))


def _new_uids(element: DataElement, key: bytes) -> str | list[str]:
    values = [element.value] if isinstance(element.value, str) else list(element.value)
    replaced = [uid if clean.is_standard_uid(uid) else new_uid(key, uid) for uid in (str(v).strip() for v in values)]
    return replaced[0] if len(replaced) == 1 else replaced


def _stamp(result: Dataset, options: Options, subject: str) -> None:
    """Say who it is now and what was done, and give it a new file header; the preamble goes with the old one."""
    result.PatientID = result.PatientName = subject
    methods = [_BASIC]
    methods += [_MODIFIED_DATES] * options.keep_intervals + [_CHARACTERISTICS] * options.keep_characteristics
    result.PatientIdentityRemoved = "YES"
    result.DeidentificationMethod = f"PS3.15 E.1 with allow-list, lvmmed-monai {__version__}"[:64]
    result.DeidentificationMethodCodeSequence = DicomSequence([clean.code(m, "DCM", _METHODS[m]) for m in methods])
    result.LongitudinalTemporalInformationModified = "MODIFIED" if options.keep_intervals else "REMOVED"
    result.file_meta = FileMetaDataset()
    result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    result.file_meta.MediaStorageSOPClassUID = result.get("SOPClassUID", "")
    result.file_meta.MediaStorageSOPInstanceUID = result.get("SOPInstanceUID", "")


def _elements(dataset: Dataset) -> Iterator[DataElement]:
    for element in dataset:
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)


def list_remains(result: Dataset, *, head: bool) -> Remains:
    """What is left in an object that `deidentify` made.

    Args:
        result: the object, with or without its pixels.
        head: the object that it was made from showed the head; its own header no longer tells.
    """
    filled = {e.keyword: e.VR for e in _elements(result) if e.VR != "SQ" and not e.is_empty}
    filled.pop("PixelData", None)
    attributes = {
        name: _KINDS.get(vr, "text: a pseudonym, a dummy, or out of a fixed list") for name, vr in filled.items()
    }
    burned_in = "NO" if str(result.get("BurnedInAnnotation", "")).strip().upper() == "NO" else "not stated"
    return Remains(dict(sorted(attributes.items())), burned_in, head)
