"""Files: F01 to F06."""

from __future__ import annotations

from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.ingest.findings import ERROR, Finding

__all__ = ["CHECKS", "REMEDIES", "from_error"]

REMEDIES = {
    "F01": "copy the file again; ignore it if it is not an image",
    "F02": "nothing, if the file is not meant to be an image",
    "F03": "copy or export the file again",
    "F04": "fetch this instance again from the archive",
    "F05": "install a decoder for the transfer syntax, or let the archive transcode",
    "F06": "inspect the file; raise the limit only if you trust its source",
    "M02": "export the images that the label was drawn on together with it",
    "M05": "export overlapping structures as separate label objects, one folder each",
}
"""What to do about an error that was met while reading."""


def from_error(error: DicomError) -> Finding:
    """The finding for an error that was met while reading."""
    return Finding(error.code, ERROR, error.measured, error.expected, REMEDIES[error.code])


def incomplete_header(header: Header) -> list[Finding]:
    """F03: an image whose size is not stated, as when the file was cut within its header."""
    lacking = [
        name
        for name, present in (
            ("Rows", header.rows > 0),
            ("Columns", header.columns > 0),
            ("BitsAllocated", header.bits_allocated > 0),
        )
        if not present
    ]
    if not lacking:
        return []
    return [Finding("F03", ERROR, f"the header lacks {', '.join(lacking)}", "a whole header", REMEDIES["F03"])]


CHECKS = [incomplete_header]
