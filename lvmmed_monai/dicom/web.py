"""DICOMweb: what an archive holds (QIDO-RS), and its instances as files (WADO-RS).

Addresses, queries and answers hold identifiers. So what the libraries beneath would log is kept back, and no message
of this module holds more than the server's name, a status and numbers.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lvmmed_monai._optional import optional_import
from lvmmed_monai.dicom._members import DEFAULT_LIMITS
from lvmmed_monai.dicom._multipart import Multipart, MultipartError
from lvmmed_monai.dicom.web_access import CREDENTIAL_VARIABLES, Credentials, checked_address, parse_query
from lvmmed_monai.errors import UserError

if TYPE_CHECKING:
    import requests

__all__ = ["ATTEMPTS", "DicomWeb", "RemoteSeries", "WebError"]

ATTEMPTS = 4
"""How often a request is tried in all."""

_UID = re.compile(r"[0-9.]{1,64}")
_CHUNK_BYTES = 256 * 1024
_LONGEST_WAIT_S = 30.0
_PASSING = (408, 429, 500, 502, 503, 504)  # statuses that may be another one a moment later
_STUDY_UID, _SERIES_UID, _INSTANCE_UID, _INSTANCES = "0020000D", "0020000E", "00080018", "00201209"
_log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class WebError(Exception):
    """A request failed, after all tries. The text holds numbers and our own words only.

    Attributes:
        passing: the same request may succeed later.
    """

    def __init__(self, text: str, *, passing: bool) -> None:
        super().__init__(text)
        self.passing = passing


@dataclass(frozen=True)
class RemoteSeries:
    """A series in the archive. Holds identifiers: never written out or logged.

    Attributes:
        study, series: UIDs.
        count: number of its instances as the archive says, or None.
    """

    study: str = field(repr=False)
    series: str = field(repr=False)
    count: int | None = None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the libraries log: addresses, which hold UIDs and names."""
    loggers = [logging.getLogger(name) for name in ("dicomweb_client", "urllib3", "requests")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _value(entry: Mapping[str, Any], tag: str) -> str:
    """The first value of an attribute in DICOM JSON, "" where there is none."""
    element = entry.get(tag)
    values = element.get("Value") if isinstance(element, Mapping) else None
    return str(values[0]) if isinstance(values, list) and values else ""


def _uids(entries: Any, tag: str) -> dict[str, Mapping[str, Any]]:
    """Entries of an answer by their UID; without those that have none. The answer may be any JSON."""
    maps = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    found = {_value(entry, tag): entry for entry in maps}
    return {uid: entry for uid, entry in found.items() if _UID.fullmatch(uid)}


def _session(credentials: Credentials, ca_file: Path | None) -> requests.Session:
    import requests

    class Session(requests.Session):
        """Leaves wildcards as they are: some archives (Orthanc's plugin 1.7) take "%2A" by the letter."""

        def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
            prepared = super().prepare_request(request)
            prepared.url = (prepared.url or "").replace("%2A", "*").replace("%3F", "?")
            return prepared

    session = Session()
    session.trust_env = False  # else .netrc, proxies and another certificate file would come in unasked
    session.max_redirects = 0
    session.verify = str(ca_file) if ca_file is not None else True
    if credentials.token:
        session.headers["Authorization"] = f"Bearer {credentials.token}"
    elif credentials.user:
        session.auth = (credentials.user.encode(), credentials.password.encode())  # type: ignore[assignment]
    return session


class DicomWeb:
    """One DICOMweb server. No other is ever asked: redirections and proxies are not followed.

    Args:
        url: root of the service, ``https://HOST[:PORT]/PATH``.
        credentials: from `load_credentials`.
        ca_file: certificates to trust instead of the system's.
        allow_http: allow plain http to another machine.
        timeouts: seconds to wait for the connection, and for the next bytes of an answer.
        wait_s: before the second try; doubled for each further one, and varied by half.

    Raises:
        UserError: dicomweb-client is not installed, or the address or the certificate file is unusable.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials | None = None,
        *,
        ca_file: Path | None = None,
        allow_http: bool = False,
        timeouts: tuple[float, float] = (10.0, 60.0),
        wait_s: float = 1.0,
    ) -> None:
        optional_import("dicomweb_client", extra="dicomweb")
        from dicomweb_client import DICOMwebClient

        self.url = checked_address(url, allow_http=allow_http)
        self.timeouts, self.wait_s = timeouts, wait_s
        if ca_file is not None and not ca_file.is_file():
            raise UserError(f"the certificate file does not exist; {ca_file}; check the path")
        session = _session(credentials or Credentials(), ca_file)
        self._session = session
        self._client = DICOMwebClient(self.url, session=session, timeout=timeouts, permissive_uid=True)
        self._client.set_http_retry_params(retry=False)  # it leaves out 500 and 502; `_tried` does this

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def search_series(self, query: str) -> list[RemoteSeries]:
        """The series that a query finds, in the order of their UIDs.

        Raises:
            UserError: the query is wrong, or the server refuses the credentials.
            WebError: the server does not answer it.
        """
        study_keys, series_keys = parse_query(query)
        found: list[RemoteSeries] = []
        studies = self._pages(
            lambda offset: self._client.search_for_studies(search_filters=study_keys, offset=offset), _STUDY_UID
        )
        for study in sorted(studies):
            series = self._pages(
                lambda offset, study=study: self._client.search_for_series(  # type: ignore[misc]
                    study, search_filters=series_keys, offset=offset
                ),
                _SERIES_UID,
            )
            for uid in sorted(series):
                count = _value(series[uid], _INSTANCES)
                found.append(RemoteSeries(study, uid, int(count) if count.isdecimal() else None))
        return found

    def instance_uids(self, series: RemoteSeries) -> frozenset[str]:
        """UIDs of the instances that the archive holds of a series: by search, and by metadata where that lacks some.

        Raises:
            UserError: the server refuses the credentials.
            WebError: neither way is answered.
        """
        try:
            uids = set(
                self._pages(
                    lambda offset: self._client.search_for_instances(series.study, series.series, offset=offset),
                    _INSTANCE_UID,
                )
            )
        except WebError as error:
            _log.warning("the archive does not list the instances of a series (%s); its metadata are asked", error)
            uids = set()
        if not uids or len(uids) < (series.count or 0):
            entries = self._tried(lambda: self._client.retrieve_series_metadata(series.study, series.series))
            uids |= set(_uids(entries, _INSTANCE_UID))
        return frozenset(uids)

    def retrieve(self, series: RemoteSeries, folder: Path, instance: str = "") -> Iterator[Path]:
        """Instances of a series, or one of them, as they are stored, each a new file of mode 0600; tried once.

        Every file that is handed out is whole, also when an error follows.

        Raises:
            UserError: the server refuses the credentials.
            WebError: the answer failed or was cut.
        """
        address = f"{self.url}/studies/{series.study}/series/{series.series}"
        address += f"/instances/{instance}" if instance else ""
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        with self._translated(), _quiet():
            response = self._session.get(address, headers={"Accept": accept}, stream=True, timeout=self.timeouts)
            with response:
                response.raise_for_status()
                parts = Multipart(_boundary(response.headers), folder, DEFAULT_LIMITS.member_bytes)
                try:
                    for chunk in response.iter_content(_CHUNK_BYTES):
                        yield from parts.feed(chunk)
                    yield from parts.end()
                finally:
                    parts.abandon()

    def pause(self, attempt: int) -> None:
        """Wait before try number ``attempt`` (the first is 0, without a wait)."""
        if attempt:
            time.sleep(min(self.wait_s * 2 ** (attempt - 1), _LONGEST_WAIT_S) * random.uniform(0.5, 1.5))

    def _pages(self, search: Callable[[int], list[Any]], tag: str) -> dict[str, Mapping[str, Any]]:
        """All answers by their UID; asked on until a page brings nothing new, as some servers ignore the offset."""
        found: dict[str, Mapping[str, Any]] = {}
        offset = 0
        while True:
            page = _uids(self._tried(partial(search, offset)), tag)
            if page.keys() <= found.keys():
                return found
            found |= page
            offset += len(page)

    def _tried(self, request: Callable[[], Answer]) -> Answer:
        for attempt in range(ATTEMPTS):
            self.pause(attempt)
            try:
                with self._translated(), _quiet():
                    return request()
            except WebError as error:
                if not error.passing or attempt == ATTEMPTS - 1:
                    raise
                _log.info("the DICOMweb server failed (%s); try %d of %d", error, attempt + 1, ATTEMPTS)
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of the libraries in our own words: theirs hold addresses. Ends with ``from None`` for this reason."""
        from requests import exceptions

        try:
            yield
        except exceptions.HTTPError as error:
            raise self._refused(error.response.status_code if error.response is not None else 0) from None
        except exceptions.SSLError:
            raise UserError(
                f"the server's certificate is not trusted; {self.url}; name the file of your authority's certificate"
            ) from None
        except exceptions.TooManyRedirects:
            raise UserError(f"the server redirects to another address; {self.url}; name the final address") from None
        except exceptions.Timeout:
            raise WebError("no answer in time", passing=True) from None
        except exceptions.JSONDecodeError:
            raise WebError("an answer that is not JSON", passing=False) from None
        except MultipartError as error:
            raise WebError(str(error), passing=True) from None
        except exceptions.RequestException as error:
            lost = isinstance(error, exceptions.ConnectionError | exceptions.ChunkedEncodingError)
            raise WebError(f"the request failed ({type(error).__name__})", passing=lost) from None

    def _refused(self, status: int) -> UserError | WebError:
        if status in (401, 403):
            return UserError(
                f"the server refuses the credentials ({status}); {self.url}; set {CREDENTIAL_VARIABLES}, or name a file"
            )
        return WebError(f"status {status}", passing=status in _PASSING)


def _boundary(headers: Mapping[str, str]) -> bytes | None:
    """Mark between the parts; None for a lone instance, which some servers send against the standard."""
    message = Message()
    message["Content-Type"] = headers.get("Content-Type", "")
    boundary = message.get_param("boundary")
    if message.get_content_type() == "multipart/related" and boundary:
        return str(boundary).encode()
    if message.get_content_type() == "application/dicom":
        return None
    raise MultipartError("an answer of another content type")
