"""Fetches series from a DICOMweb archive into a folder, and knows which of them did not arrive whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lvmmed_monai.dicom.archive import Source
from lvmmed_monai.dicom.headers import header_from_dataset, read_dataset
from lvmmed_monai.dicom.privacy import pseudonym
from lvmmed_monai.dicom.problems import DicomError, silent_pydicom
from lvmmed_monai.dicom.web import ATTEMPTS, DicomWeb, RemoteSeries, WebError
from lvmmed_monai.errors import UserError
from lvmmed_monai.files import atomic_path, output_folder, storage_error
from lvmmed_monai.ingest.checks import files as file_checks
from lvmmed_monai.ingest.findings import Finding
from lvmmed_monai.ingest.inventory import Progress, no_progress

__all__ = ["STATE_FILE", "Download", "download"]

STATE_FILE = ".download.json"
"""What came of each series: pseudonyms and counts. Hidden, so that no ingest takes it for an image."""

_FORMAT = 1
_PARTS = ".parts"


@dataclass
class Download:
    """What was fetched.

    Attributes:
        folder: holds one folder for each series, with one file for each instance; their names are pseudonyms.
        instances: number of instances in it.
        fetched: how many of them this run brought.
        incomplete: UIDs of the series that are not whole: how many of the expected instances are there, and how many
            the archive expects. An ingest refuses them (S03): nothing else notices a series that lacks its end.
        findings: instances that arrived unreadable or were not asked for.
    """

    folder: Path
    instances: int = 0
    fetched: int = 0
    incomplete: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    findings: list[Finding] = field(default_factory=list)


def download(web: DicomWeb, query: str, folder: Path, key: bytes, progress: Progress = no_progress) -> Download:
    """Fetch all series that a query finds; a second run fetches only what is missing.

    Args:
        web: the archive.
        query: see `lvmmed_monai.dicom.web_access.parse_query`.
        folder: made with mode 0700 if it is absent.
        key: the site key, from `load_site_key`.
        progress: shows how far it is.

    Raises:
        UserError: the query or the credentials are wrong, the archive does not answer at all, nothing was found, or
            the folder cannot be written to.
    """
    try:
        series = web.search_series(query)
    except WebError as error:
        raise UserError(f"the archive cannot be searched ({error}); {web.url}; check address and network") from None
    if not series:
        raise UserError(f"the archive has no series for the query; {web.url}; check --query")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    output_folder(folder)
    result = Download(folder)
    rows: dict[str, dict[str, int]] = {}
    parts = folder / _PARTS
    try:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(mode=0o700)
        for remote in progress(series, "fetching series", len(series)):
            have, expected = _Fetch(web, remote, key, result).run()
            rows[pseudonym(key, "series", remote.series)] = {"have": have, "expected": expected}
            _write_state(folder / STATE_FILE, rows)
    except OSError as error:
        raise storage_error(error) or error from None
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    return result


def _write_state(path: Path, rows: dict[str, dict[str, int]]) -> None:
    with atomic_path(path) as temporary:
        temporary.chmod(0o600)
        temporary.write_text(json.dumps({"format": _FORMAT, "series": rows}, indent=1) + "\n", encoding="utf-8")


class _Fetch:
    """One series on its way."""

    def __init__(self, web: DicomWeb, remote: RemoteSeries, key: bytes, result: Download) -> None:
        self.web, self.remote, self.key, self.result = web, remote, key, result
        self.folder = result.folder / pseudonym(key, "series", remote.series)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.strangers: set[str] = set()

    def run(self) -> tuple[int, int]:
        """Fetch what is missing; returns how many of the expected instances are there, and how many are expected."""
        expected = self._expected()
        before = len(self._missing(expected))
        for attempt in range(ATTEMPTS):
            missing = self._missing(expected)
            if not missing:
                break
            self.web.pause(attempt)
            # A server that fails on the series may still hand out most of its instances.
            self._fetch(missing, expected, whole=attempt < 2 and 2 * len(missing) > len(expected))
        if self.strangers:
            # The archive may have got them since it was asked.
            expected |= self._expected()
        wanted = max(len(expected), self.remote.count or 0)
        have = len(expected) - len(self._missing(expected))
        self.result.instances += have
        self.result.fetched += before - len(self._missing(expected))
        if have < wanted or not wanted or self.strangers - expected:
            self.result.incomplete[self.remote.series] = (have, wanted)
        return have, wanted

    def _expected(self) -> frozenset[str]:
        try:
            return self.web.instance_uids(self.remote)
        except WebError:
            return frozenset()

    def _path(self, uid: str) -> Path:
        return self.folder / f"{pseudonym(self.key, 'instance', uid)}.dcm"

    def _missing(self, expected: frozenset[str]) -> list[str]:
        return [uid for uid in sorted(expected) if not self._path(uid).exists()]

    def _fetch(self, missing: list[str], expected: frozenset[str], *, whole: bool) -> None:
        """Ask for the whole series at once when most of it is missing, else for each instance."""
        for uid in [""] if whole else missing:
            try:
                self._keep(self.web.retrieve(self.remote, self.result.folder / _PARTS, uid), expected)
            except WebError as error:
                if error.passing and not whole:
                    return  # the server is in trouble: wait before the next ones

    def _keep(self, files: Iterator[Path], expected: frozenset[str]) -> None:
        for file in files:
            try:
                with silent_pydicom():
                    header = header_from_dataset(read_dataset(file.read_bytes(), pixels=False), Source(""))
            except DicomError as error:
                self.result.findings.append(file_checks.from_error(error))
                file.unlink()
                continue
            if header.series_uid != self.remote.series or not header.sop_uid:
                other = DicomError("F02", "an instance of another series than was asked for", "the series asked for")
                self.result.findings.append(file_checks.from_error(other))
                file.unlink()
                continue
            if header.sop_uid not in expected:
                self.strangers.add(header.sop_uid)
            os.replace(file, self._path(header.sop_uid))
