"""Addresses, queries, credentials, and multipart answers cut anywhere."""

from __future__ import annotations

import builtins
import socket
import sys

import pytest

from lvmmed_monai.dicom._multipart import Multipart, MultipartError
from lvmmed_monai.dicom.web import DicomWeb, WebError
from lvmmed_monai.dicom.web_access import Credentials, load_credentials, parse_query
from lvmmed_monai.errors import UserError


class TestAddress:
    @pytest.mark.parametrize("url", ["http://pacs.example/dicom-web", "http://10.0.0.1/x"])
    def test_plain_http_only_to_this_machine(self, url):
        with pytest.raises(UserError, match="plain http"):
            DicomWeb(url)
        DicomWeb(url, allow_http=True).close()

    @pytest.mark.parametrize("url", ["http://127.0.0.1:8042/dicom-web", "http://localhost/x", "https://pacs.example/x"])
    def test_accepted(self, url):
        DicomWeb(url).close()

    @pytest.mark.parametrize("url", ["ftp://a/b", "pacs.example", "https://", "https://a:b/c", "https://a/b?c=secret"])
    def test_no_address(self, url):
        with pytest.raises(UserError, match="address must be") as caught:
            DicomWeb(url)
        assert "secret" not in str(caught.value)

    def test_no_credentials_in_it(self):
        with pytest.raises(UserError, match="holds credentials") as caught:
            DicomWeb("https://reader:planted@pacs.example/x")
        assert "planted" not in str(caught.value)

    def test_certificate_file(self, tmp_path):
        with pytest.raises(UserError, match="certificate file"):
            DicomWeb("https://pacs.example", ca_file=tmp_path / "none.pem")
        web = DicomWeb("https://pacs.example")
        assert web._session.verify is True
        assert web._session.trust_env is False
        web.close()

    def test_nobody_listens(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            web = DicomWeb(f"http://127.0.0.1:{taken.getsockname()[1]}", wait_s=0.0)
            with pytest.raises(WebError, match="ConnectionError"):
                web.search_series("PatientID=planted")
            web.close()


def test_missing_library_is_named_with_its_extra(monkeypatch):
    original = builtins.__import__
    monkeypatch.delitem(sys.modules, "dicomweb_client", raising=False)

    def without(name, *arguments, **options):
        if name.startswith("dicomweb_client"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(UserError, match=r"pip install 'lvmmed-monai\[dicomweb\]'"):
        DicomWeb("https://pacs.example")


class TestQuery:
    def test_keys_of_studies_and_series(self):
        studies, series = parse_query("StudyDate=20200101-20201231&Modality=CT&PatientID=A%26B")
        assert studies == {"StudyDate": "20200101-20201231", "PatientID": "A&B", "ModalitiesInStudy": "CT"}
        assert series == {"Modality": "CT"}

    @pytest.mark.parametrize("query", ["", "PatientID", "PatientID=", "Patient=planted", "limit=3",
                                       "PatientID=planted&PatientID=b"])  # fmt: skip
    def test_refused_without_its_values(self, query):
        with pytest.raises(UserError, match="keywords") as caught:
            parse_query(query)
        assert "planted" not in str(caught.value)

    def test_date_alone_is_warned_of(self, caplog):
        parse_query("StudyDate=20200101")
        assert "studies without a date" in caplog.text
        assert "2020" not in caplog.text


class TestCredentials:
    def test_from_the_environment(self):
        found = load_credentials(environment={"LVMMED_DICOMWEB_USER": "a", "LVMMED_DICOMWEB_PASSWORD": "b"})
        assert found == Credentials("a", "b", "")
        assert repr(found) == "Credentials()"

    def test_from_a_file(self, tmp_path):
        path = tmp_path / "credentials"
        path.write_text("user=a\n\npassword=b=c\n")
        path.chmod(0o600)
        assert load_credentials(path) == Credentials("a", "b=c")

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
    def test_file_that_others_may_open(self, tmp_path, mode):
        path = tmp_path / "credentials"
        path.write_text("token=planted")
        path.chmod(mode)
        with pytest.raises(UserError, match="others may open") as caught:
            load_credentials(path)
        assert "planted" not in str(caught.value)

    @pytest.mark.parametrize("content", [b"planted", b"secret=planted", b"", b"\xff\xfe"])
    def test_file_of_other_content(self, tmp_path, content):
        path = tmp_path / "credentials"
        path.touch(0o600)
        path.write_bytes(content)
        with pytest.raises(UserError, match="credentials") as caught:
            load_credentials(path)
        assert "planted" not in str(caught.value)

    def test_no_file(self, tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            load_credentials(tmp_path / "none")


class TestMultipart:
    CONTENT = (b"first\r\n--mar", b"", b"\r\n\r\n--", bytes(300), b"--mark\r\n")

    def message(self, start=b"--mark\r\n"):
        body = b"\r\n--mark\r\n".join(b"Content-Type: application/dicom\r\n\r\n" + part for part in self.CONTENT)
        return start + body + b"\r\n--mark--\r\nepilogue\r\n--mark\r\n\r\nnothing"

    @pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 10_000])
    @pytest.mark.parametrize("start", [b"--mark\r\n", b"\r\n--mark\r\n", b"preamble\r\n--mark\r\n"])
    def test_split_at_any_place(self, tmp_path, piece, start):
        message = self.message(start)
        parts = Multipart(b"mark", tmp_path, 1000)
        paths = [path for at in range(0, len(message), piece) for path in parts.feed(message[at : at + piece])]
        assert parts.end() == []
        assert tuple(path.read_bytes() for path in paths) == self.CONTENT

    def test_cut_anywhere_leaves_whole_parts_only(self, tmp_path):
        message = self.message()
        message = message[: message.index(b"--mark--")]
        for length in range(0, len(message) + 1, 5):
            parts = Multipart(b"mark", tmp_path, 1000)
            paths = parts.feed(message[:length])
            with pytest.raises(MultipartError, match="too early"):
                parts.end()
            parts.abandon()
            assert tuple(path.read_bytes() for path in paths) == self.CONTENT[: len(paths)]
            assert sorted(tmp_path.iterdir()) == sorted(paths)
            for path in paths:
                path.unlink()
        assert length > 400

    def test_limits(self, tmp_path):
        parts = Multipart(b"mark", tmp_path, 299)
        with pytest.raises(MultipartError, match="more than 299 bytes"):
            parts.feed(self.message())
        parts = Multipart(b"mark", tmp_path, 299)
        with pytest.raises(MultipartError, match="of headers"):
            parts.feed(b"--mark\r\n" + bytes(100_000))

    def test_lone_part(self, tmp_path):
        parts = Multipart(None, tmp_path, 100)
        assert parts.feed(b"one ") == []
        assert parts.feed(b"file") == []
        assert [path.read_bytes() for path in parts.end()] == [b"one file"]
