"""What a DICOMweb request needs of the user: an address, credentials and a query, each checked before it is used."""

from __future__ import annotations

import ipaddress
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pydicom.datadict import tag_for_keyword

from lvmmed_monai.errors import UserError

__all__ = ["CREDENTIAL_VARIABLES", "Credentials", "checked_address", "load_credentials", "parse_query"]

_SERIES_KEYWORDS = {"Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "BodyPartExamined"}
_ENVIRONMENT = {
    "user": "LVMMED_DICOMWEB_USER",
    "password": "LVMMED_DICOMWEB_PASSWORD",
    "token": "LVMMED_DICOMWEB_TOKEN",
}

CREDENTIAL_VARIABLES = ", ".join(_ENVIRONMENT.values())
"""Names of the environment variables, for messages."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Credentials:
    """Name and password, or a bearer token; all empty for a server that asks for none. Never shown."""

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


def load_credentials(file: Path | None = None, environment: Mapping[str, str] = os.environ) -> Credentials:
    """Credentials from a file, else from LVMMED_DICOMWEB_USER, _PASSWORD and _TOKEN.

    Args:
        file: lines ``user=...``, ``password=...`` or ``token=...``; only its owner may have access (mode 0600).
        environment: where the variables stand.

    Raises:
        UserError: the file cannot be read, is open to others, or holds other lines.
    """
    if file is None:
        return Credentials(**{name: environment.get(variable, "") for name, variable in _ENVIRONMENT.items()})
    try:
        with file.open(encoding="utf-8") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            lines = [line.strip() for line in stream] if not mode & 0o077 else []
    except (OSError, UnicodeDecodeError):
        raise UserError(f"the credentials cannot be read; {file}; name a text file of your own") from None
    if mode & 0o077:
        raise UserError(f"others may open the credentials (mode {mode:04o}); {file}; run: chmod 600 on the file")
    pairs = dict(line.partition("=")[::2] for line in lines if line)
    if not pairs or not set(pairs) <= set(_ENVIRONMENT):
        raise UserError(f"the credentials hold other lines than user=, password= and token=; {file}; correct the file")
    return Credentials(**pairs)


def parse_query(query: str) -> tuple[dict[str, str], dict[str, str]]:
    """Keys of the studies and of the series that are wanted.

    Args:
        query: ``Keyword=value`` pairs joined by ``&``, as in ``StudyDate=20200101-20201231&Modality=CT``.

    Raises:
        UserError: it is empty, or a key is unknown, without a value or given twice. Values are not repeated.
    """
    pairs = parse_qsl(query, keep_blank_values=True)
    known = [name for name, value in pairs if tag_for_keyword(name) is not None and value]
    if not pairs or len(known) < len(pairs) or len(set(known)) < len(known):
        raise UserError(
            "the query must be one or more DICOM keywords, each once with a value; --query; "
            "for example: PatientID=...&StudyDate=20200101-20201231&Modality=CT"
        )
    keys = dict(pairs)
    if set(keys) == {"StudyDate"}:
        _log.warning("a query by date alone does not find studies without a date")
    series = {name: value for name, value in keys.items() if name in _SERIES_KEYWORDS}
    studies = {name: value for name, value in keys.items() if name not in series}
    if "Modality" in series:
        studies["ModalitiesInStudy"] = series["Modality"]
    return studies, series


def checked_address(url: str, *, allow_http: bool) -> str:
    """The address without a slash at its end.

    Raises:
        UserError: it is none, holds credentials, or is plain http to another machine. It is not repeated.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise UserError("the DICOMweb address must be https://HOST[:PORT]/PATH; --dicomweb; check the address")
    if parts.username or parts.password:
        raise UserError(
            f"the DICOMweb address holds credentials; --dicomweb; set {CREDENTIAL_VARIABLES} instead, or name a file"
        )
    if parts.scheme == "http" and not allow_http and not _loopback(host):
        raise UserError("plain http would show patients' data on the network; --dicomweb; use https, or --allow-http")
    return url.rstrip("/")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
