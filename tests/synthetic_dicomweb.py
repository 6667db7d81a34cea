"""A small DICOMweb archive on 127.0.0.1 that can be told to fail in many ways."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from pydicom.dataset import Dataset

TAGS = {"study": "0020000D", "series": "0020000E", "instance": "00080018"}
PAGE = 10  # answers to a search come in pages, as in many archives


class Archive:
    """What the server holds and how it behaves; change it while it runs.

    Attributes:
        fail: the first answers to addresses that end with a key are these statuses, or "reset", "slow", "cut" (length
            kept), "short" (length consistent, the last half of the parts left out), "other type", "lone", "open end".
        hidden: instance UIDs that are listed and never handed out; unlisted: the other way round.
        secret: the Authorization header that is asked for, or "".
        queries: what stood behind the addresses, as it came.
        requests: how often each address was asked for; received: all headers that came.
    """

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self.datasets = list(datasets)
        self.fail: dict[str, list[object]] = {}
        self.hidden: set[str] = set()
        self.unlisted: set[str] = set()
        self.search_of_instances = True
        self.ignore_offset = False
        self.secret = ""
        self.queries: list[str] = []
        self.requests: Counter[str] = Counter()
        self.received: list[dict[str, str]] = []
        self.url = ""

    def fault(self, path: str) -> object:
        for ending, faults in self.fail.items():
            if path.endswith(ending) and faults:
                return faults.pop(0)
        return None


def to_bytes(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


class _Handler(BaseHTTPRequestHandler):
    archive: Archive
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = address.path.removeprefix("/dicom-web")
        self.archive.requests[path] += 1
        self.archive.queries.append(address.query)
        self.archive.received.append(dict(self.headers))
        if self.archive.secret and self.headers.get("Authorization") != self.archive.secret:
            return self.send_status(401)
        fault = self.archive.fault(path)
        if isinstance(fault, int):
            return self.send_status(fault)
        if fault == "reset":
            return self.connection.close()
        if fault == "slow":
            time.sleep(1.5)
        parts = path.strip("/").split("/")
        if parts[-1] in ("studies", "series", "instances", "metadata"):
            return self.search(parts, {name: values[0] for name, values in parse_qs(address.query).items()})
        return self.hand_out(parts, fault)

    def send_status(self, status: int) -> None:
        self.send_response(status)
        if status in (301, 302):
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_body(self, body: bytes, kind: str, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")  # said, as the client would else run into the closing
        self.end_headers()
        self.wfile.write(body)

    def below(self, parts: list[str]) -> list[Dataset]:
        named = dict(zip(parts[::2], parts[1::2], strict=False))
        keywords = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}
        return [
            dataset
            for dataset in self.archive.datasets
            if all(dataset[keywords[level]].value == uid for level, uid in named.items() if level in keywords)
        ]

    def search(self, parts: list[str], query: dict[str, str]) -> None:
        level = parts.pop()
        if level == "instances" and not self.archive.search_of_instances:
            return self.send_status(501)
        offset = 0 if self.archive.ignore_offset else int(query.pop("offset", 0))
        query.pop("offset", None)
        query.pop("ModalitiesInStudy", None)
        rows: dict[str, dict[str, object]] = {}
        for dataset in self.below(parts):
            if any(not fnmatchcase(str(dataset.get(name)), value) for name, value in query.items()):
                continue
            if dataset.SOPInstanceUID in self.archive.unlisted:
                continue
            uids = {"study": dataset.StudyInstanceUID, "series": dataset.SeriesInstanceUID}
            uids["instance"] = dataset.SOPInstanceUID
            rows[uids[{"studies": "study", "series": "series"}.get(level, "instance")]] = {
                TAGS[name]: {"vr": "UI", "Value": [uid]} for name, uid in uids.items()
            }
        found = list(rows.values())
        if level != "metadata":
            found = found[offset : offset + PAGE]
        self.send_body(json.dumps(found).encode(), "application/dicom+json")
        return None

    def hand_out(self, parts: list[str], fault: object) -> None:
        datasets = [dataset for dataset in self.below(parts) if dataset.SOPInstanceUID not in self.archive.hidden]
        if not datasets:
            return self.send_status(404)
        if fault == "short":
            datasets = datasets[: len(datasets) // 2]
        if fault == "lone":
            return self.send_body(to_bytes(datasets[0]), "application/dicom")
        body = b""
        for dataset in datasets:
            body += b"--mark\r\nContent-Type: application/dicom\r\n\r\n" + to_bytes(dataset) + b"\r\n"
        kind = 'multipart/related; type="application/dicom"; boundary="mark"'
        if fault == "open end":
            return self.send_body(body[:-200], kind)
        body += b"--mark--"
        if fault == "cut":
            return self.send_body(body[: len(body) // 2], kind, len(body))
        return self.send_body(body, "text/html" if fault == "other type" else kind)


@contextmanager
def serving(datasets: Sequence[Dataset]) -> Iterator[Archive]:
    """A running archive; stopped again at the end."""
    archive = Archive(datasets)
    handler = type("Handler", (_Handler,), {"archive": archive})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    archive.url = f"http://127.0.0.1:{server.server_port}/dicom-web"
    try:
        yield archive
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def basic(user: str, password: str) -> str:
    """The header of a name and a password."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
