"""Files: F01 to F07."""

from __future__ import annotations

from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.ingest.findings import ERROR, Finding
from lvmmed_monai.ingest.reason_table import remedy

__all__ = ["CHECKS", "from_error"]


def from_error(error: DicomError) -> Finding:
    """The finding for an error that was met while reading."""
    return Finding(error.code, ERROR, error.measured, error.expected, remedy(error.code))


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
    return [Finding("F03", ERROR, f"the header lacks {', '.join(lacking)}", "a whole header", remedy("F03"))]


CHECKS = [incomplete_header]
