"""Privacy: text in the pixels P01, faces P03."""

from __future__ import annotations

from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.ingest.findings import ERROR, WARNING, Finding, counted
from lvmmed_monai.ingest.series import Series

__all__ = ["CHECKS", "risk_of_text"]

_RISKY_MODALITIES = {"US", "IVUS", "XA", "RF", "SC", "OT", "MG", "DX", "CR", "DR", "ES", "XC", "GM", "OP", "DOC"}
_MOSTLY_WRITTEN_ON = {"US", "IVUS", "ES", "SC", "OT", "XC", "GM", "OP", "DOC"}
_RISKY_WORDS = {
    "DOSE",
    "DOSEREPORT",
    "DOSE_INFO",
    "SCREEN SAVE",
    "SCREENCAPTURE",
    "SCREENSAVE",
    "SCREENSHOT",
    "SECONDARY CAPTURE",
}
_CAPTURES = ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7.")  # secondary capture, and its multi-frame kinds


def risk_of_text(header: Header) -> str:
    """Why text may be burned into the pixels: "BurnedInAnnotation", "modality", "secondary capture", or "" for no sign.

    A header that denies it does not make a screenshot safe: the header is often wrong there.
    """
    if header.burned_in == "YES":
        return "BurnedInAnnotation"
    if header.sop_class == _CAPTURES[0] or header.sop_class.startswith(_CAPTURES[1]):
        return "secondary capture"
    if not _RISKY_WORDS.isdisjoint(header.image_type):
        return "secondary capture"
    return "modality" if header.modality in _RISKY_MODALITIES else ""


def _members(series: Series) -> tuple[Header, ...]:
    """What may become an image; captures and reports are refused as what they are."""
    return series.stack or series.planar


def burned_in(series: Series) -> list[Finding]:
    """P01: the header says that text is burned into the pixels; it may name the patient."""
    count = sum(header.burned_in == "YES" for header in _members(series))
    if not count:
        return []
    return [
        Finding(
            "P01",
            ERROR,
            f"BurnedInAnnotation is YES in {counted(count, 'instance')}",
            "pixels without text",
            "remove the text at the source, or use another series",
        )
    ]


def may_be_burned_in(series: Series) -> list[Finding]:
    """P01: the header does not say whether text is burned into the pixels, in a kind of image where that is usual.

    Ultrasound, endoscopy and captures mostly show the patient's name: they stay out until somebody has looked.
    """
    members = [header for header in _members(series) if header.burned_in not in ("YES", "NO")]
    risks = {header: risk_of_text(header) for header in members}
    risky = [header for header in members if risks[header]]
    if not risky:
        return []
    stated = f"BurnedInAnnotation is not stated in {counted(len(risky), 'instance')}"
    measured = f"{stated}, and the {_sign(risks[risky[0]])} is of a kind that often has text"
    if any(header.modality in _MOSTLY_WRITTEN_ON or risks[header] != "modality" for header in risky):
        remedy = "look at the images; if they show no name, accept them with --keep-burned-in"
        return [Finding("P01", ERROR, measured, "BurnedInAnnotation NO", remedy)]
    return [Finding("P01", WARNING, measured, "BurnedInAnnotation NO", "look at the preview before sharing")]


def _sign(risk: str) -> str:
    return "modality" if risk == "modality" else "image type"


def face(series: Series) -> list[Finding]:
    """P03: a volume of the head may show a face, which can be recognised."""
    count = sum(header.head for header in series.stack)
    if not count:
        return []
    return [
        Finding(
            "P03",
            WARNING,
            f"the head is named in {counted(count, 'instance')}",
            "a volume without a face",
            "deface it, or have an agreement, before it leaves the site",
        )
    ]


CHECKS = [burned_in, may_be_burned_in, face]
