"""Routing: R01 to R06, G04 for planar images, P01."""

from __future__ import annotations

from lvmmed_monai.ingest.findings import ERROR, WARNING, Finding, counted
from lvmmed_monai.ingest.series import Series

__all__ = ["CHECKS"]

_EXPECTED = "a stack of single-frame grey CT, MR or PET slices"
_ROUTES = {
    "localizer": ("R01", "localizer", "choose another series of the study"),
    "capture": ("R02", "secondary capture", "choose the series that it was made from"),
    "report": ("R02", "report without image", "nothing; reports are not read"),
    "colour": ("R03", "colour", "export it as PNG and describe it with a manifest"),
    "mosaic": ("R04", "mosaic", "convert it to NIfTI with dcm2niix and describe that with a manifest"),
    "multi-frame": (
        "R05",
        "multi-frame object",
        "export it as single-frame slices, or convert it to NIfTI with dcm2niix and describe that with a manifest",
    ),
    "2d": ("G04", "planar image without a position in space", "export it as PNG and describe it with a manifest"),
    "other": ("R05", "object of a class that is not read", "choose an image series of the study"),
}


def _finding(name: str, count: int, whole: bool) -> Finding:
    code, what, remedy = _ROUTES[name]
    return Finding(code, ERROR if whole else WARNING, f"{what}: {counted(count, 'instance')}", _EXPECTED, remedy)


def other_routes(series: Series) -> list[Finding]:
    """R01 to R05, G04: instances that are no slices. They cost the series only when nothing else is in it."""
    return [
        _finding(name, len(members), whole=not series.stack)
        for name, members in series.routes.items()
        if name in _ROUTES
    ]


def burned_in(series: Series) -> list[Finding]:
    """P01: the header says that text is burned into the pixels; it may name the patient."""
    count = sum(header.burned_in == "YES" for header in series.stack or series.headers)
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


CHECKS = [other_routes, burned_in]
