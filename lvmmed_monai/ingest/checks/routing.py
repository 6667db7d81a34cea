"""Routing: R01 to R05, and G04 for planar images among slices."""

from __future__ import annotations

from lvmmed_monai.ingest.findings import ERROR, WARNING, Finding, counted
from lvmmed_monai.ingest.routes import PLANAR_ROUTES
from lvmmed_monai.ingest.series import Series

__all__ = ["CHECKS"]

_EXPECTED = "slices of CT, MR or PET, or planar images"
_ROUTES = {
    "localizer": ("R01", "localizer", "choose another series of the study"),
    "capture": ("R02", "secondary capture", "choose the series that it was made from"),
    "report": ("R02", "report without image", "nothing; reports are not read"),
    "colour": ("R03", "colour image among slices", "export it as a series of its own"),
    "mosaic": ("R04", "mosaic", "convert it to NIfTI with dcm2niix and describe that with a manifest"),
    "multi-frame": (
        "R05",
        "multi-frame object",
        "export it as single-frame slices, or convert it with dcm2niix and describe that with a manifest",
    ),
    "2d": ("G04", "planar image among slices", "export it as a series of its own"),
    "other": ("R05", "object of a class that is not read", "choose an image series of the study"),
}


def _finding(name: str, count: int, whole: bool) -> Finding:
    code, what, remedy = _ROUTES[name]
    return Finding(code, ERROR if whole else WARNING, f"{what}: {counted(count, 'instance')}", _EXPECTED, remedy)


def other_routes(series: Series) -> list[Finding]:
    """R01 to R05, G04: instances that are no slices. They cost the series only when nothing else is in it."""
    images = series.stack or series.planar
    return [
        _finding(name, len(members), whole=not images)
        for name, members in series.routes.items()
        if name in _ROUTES and (series.stack or name not in PLANAR_ROUTES)
    ]


CHECKS = [other_routes]
