"""Pseudonyms and the site key."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import stat
import subprocess
import sys

import pytest
from pydicom.uid import UID

from lvmmed_monai.dicom.privacy import (
    _weakness,
    day_shift,
    default_site_key_path,
    load_site_key,
    new_uid,
    pseudonym,
)
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
    path.chmod(0o600)
    with pytest.raises(UserError, match="holds no key"):
        load_site_key(path)


def test_unwritable_place(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be read or made"):
        load_site_key(tmp_path / "file" / "site.key")


def test_key_of_a_group_is_warned_of(tmp_path, caplog):
    path = tmp_path / "site.key"
    key = load_site_key(path)
    path.chmod(0o640)
    assert load_site_key(path) == key
    assert "0600" in caplog.text


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o602, 0o666])
def test_key_that_others_may_read_or_change_is_refused(tmp_path, mode):
    path = tmp_path / "site.key"
    load_site_key(path)
    path.chmod(mode)
    with pytest.raises(UserError, match="chmod 600"):
        load_site_key(path)


def test_folder_in_which_everybody_may_exchange_the_key(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(UserError, match="every user may write to"):
        load_site_key(folder / "site.key")
    # As in /tmp: others cannot exchange what is ours.
    folder.chmod(0o1777)
    key = load_site_key(folder / "site.key")
    status = os.stat(folder / "site.key")
    assert _weakness(status, os.stat(folder)) is None
    foreign = os.stat_result((*status[:4], os.geteuid() + 4711, *status[5:]))
    assert "belongs to another user" in _weakness(foreign, os.stat(folder))
    assert load_site_key(folder / "site.key") == key


def test_link_is_followed_and_its_target_checked(tmp_path):
    target, link = tmp_path / "real" / "site.key", tmp_path / "site.key"
    key = load_site_key(target)
    link.symlink_to(target)
    assert load_site_key(link) == key
    target.chmod(0o644)
    with pytest.raises(UserError, match="read by every user"):
        load_site_key(link)
    target.chmod(0o600)
    target.parent.chmod(0o777)
    with pytest.raises(UserError, match="folder that every user may write to"):
        load_site_key(link)


def test_what_is_no_plain_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match=r"is no plain file|cannot be read"):
            load_site_key(path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be read or made"):
        load_site_key(tmp_path / "dangling")


def test_processes_that_begin_at_once_agree_on_one_key(tmp_path):
    code = "import sys; from lvmmed_monai.dicom.privacy import load_site_key; print(load_site_key(sys.argv[1]).hex())"
    command = [sys.executable, "-c", code, str(tmp_path / "new" / "site.key")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    keys = {process.communicate()[0].strip() for process in running}
    assert keys == {(tmp_path / "new" / "site.key").read_text().strip()}
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["site.key"]


def test_key_does_not_show_itself(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    key = load_site_key(tmp_path / "site.key")
    shown = f"{key} {key!r} {[key]} {caplog.text}"
    assert key.hex() not in shown
    assert repr(bytes(key))[2:-1] not in shown
    assert bytes(key) == bytes.fromhex((tmp_path / "site.key").read_text())


def test_new_uids_are_valid_and_do_not_repeat():
    key = b"k" * 32
    digest = hmac.new(key, b"uid\x001.2.3", hashlib.sha256).digest()
    assert new_uid(key, "1.2.3") == f"2.25.{int.from_bytes(digest[:16], 'big')}"
    uids = {new_uid(key, f"1.2.{number}") for number in range(1000)}
    assert len(uids) == 1000
    assert all(len(uid) <= 64 and UID(uid).is_valid for uid in uids)
    assert new_uid(b"l" * 32, "1.2.3") != new_uid(key, "1.2.3")


def test_day_shift_is_even_over_a_year():
    shifts = [day_shift(b"k" * 32, f"patient {number}") for number in range(5000)]
    assert (min(shifts), max(shifts)) == (-365, -1)
    assert abs(sum(shifts) / len(shifts) + 183) < 6  # standard error of the mean: 1.5
    assert day_shift(b"k" * 32, "patient 7") == shifts[7]


def test_pseudonym_is_the_hmac_and_kinds_differ():
    key = b"k" * 32
    expected = hmac.new(key, b"patient\0ID 1", hashlib.sha256).hexdigest()[:16]
    assert pseudonym(key, "patient", "ID 1") == expected
    assert len({pseudonym(key, kind, "ID 1") for kind in ("patient", "study", "series", "instance")}) == 4
    assert pseudonym(b"l" * 32, "patient", "ID 1") != expected
    with pytest.raises(ValueError, match="kind"):
        pseudonym(key, "name", "x")
