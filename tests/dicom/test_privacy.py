"""Pseudonyms and the site key."""

from __future__ import annotations

import hashlib
import hmac
import stat

import pytest

from lvmmed_monai.dicom.privacy import default_site_key_path, load_site_key, pseudonym
from lvmmed_monai.errors import UserError


def test_key_is_made_once_for_the_owner_only(tmp_path):
    path = tmp_path / "new" / "site.key"
    key = load_site_key(path)
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_site_key(path) == key
    assert [entry.name for entry in path.parent.iterdir()] == ["site.key"]


def test_default_place_follows_the_configuration_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    load_site_key()
    assert default_site_key_path() == tmp_path / "lvmmed" / "site.key"
    assert default_site_key_path().is_file()


@pytest.mark.parametrize("text", ["", "no hex", "abcd", "é"])
def test_a_file_without_a_key_is_refused(tmp_path, text):
    path = tmp_path / "site.key"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="holds no key"):
        load_site_key(path)


def test_unwritable_place(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be read or made"):
        load_site_key(tmp_path / "file" / "site.key")


def test_readable_key_is_warned_of(tmp_path, caplog):
    path = tmp_path / "site.key"
    load_site_key(path)
    path.chmod(0o644)
    load_site_key(path)
    assert "0600" in caplog.text


def test_pseudonym_is_the_hmac_and_kinds_differ():
    key = b"k" * 32
    expected = hmac.new(key, b"patient\0ID 1", hashlib.sha256).hexdigest()[:16]
    assert pseudonym(key, "patient", "ID 1") == expected
    assert len({pseudonym(key, kind, "ID 1") for kind in ("patient", "study", "series", "instance")}) == 4
    assert pseudonym(b"l" * 32, "patient", "ID 1") != expected
    with pytest.raises(ValueError, match="kind"):
        pseudonym(key, "name", "x")
