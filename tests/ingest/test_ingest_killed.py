"""An ingest that is killed at any moment and run again gives what an uninterrupted one gives."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ingest_studies import command, difference, environment, lvmmed, outputs, write_ten
from synthetic_dicom import save, series

from lvmmed_monai.errors import UserError
from lvmmed_monai.files import atomic_path
from lvmmed_monai.ingest import outputs as outputs_module
from lvmmed_monai.ingest.hold import hold
from lvmmed_monai.ingest.pipeline import ingest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the children are found in /proc")

KILLS = int(os.environ.get("LVMMED_KILLS", "4"))
TEMPORARY = "tmp"


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


def worker_processes(parent: int) -> list[int]:
    """Worker processes that ``parent`` started, whoever is their parent now; those that have ended do not count."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if b"lvmmed_monai.ingest.worker_child" in words and str(parent).encode() in words:
            found.append(int(folder.name))
    return found


class Study:
    """Sources, a site key, and the command that is killed and run again."""

    def __init__(self, folder: Path, *options: object) -> None:
        self.folder, self.options = folder, options
        (folder / TEMPORARY).mkdir()

    def words(self, out: str) -> list[object]:
        key = self.folder / "site.key"
        return ["ingest", self.folder / "src", "--out", self.folder / out, "--site-key", key, *self.options]

    def start(self, out: str) -> subprocess.Popen[bytes]:
        """Begin, up to the moment at which the output folder is there."""
        process = subprocess.Popen(
            command(*self.words(out)),
            env=environment(TMPDIR=str(self.folder / TEMPORARY)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until((self.folder / out).exists)
        return process

    def finish(self, out: str) -> None:
        done = lvmmed(*self.words(out), TMPDIR=str(self.folder / TEMPORARY))
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("killed")
    write_ten(folder / "src")
    return Study(folder, "--workers", 2, "--quiet")


def killed_after(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kill it after a while, unless it was done before; none of its workers may outlive it."""
    time.sleep(seconds)
    process.kill()
    code = process.wait()
    wait_until(lambda: not worker_processes(process.pid), seconds=5.0)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_killed_at_random_moments_and_run_again(study: Study) -> None:
    process, begin = study.start("whole"), time.monotonic()
    wait_until(lambda: bool(worker_processes(process.pid)))
    assert process.wait() == 0
    seconds = time.monotonic() - begin
    wanted = outputs(study.folder / "whole")
    assert len([name for name in wanted if name.startswith("images/")]) == 14
    rng, killed = random.Random(13), 0
    for number in range(KILLS):
        out = f"out{number}"
        moment = seconds * (number + rng.random()) / KILLS
        killed += killed_after(study.start(out), moment)
        left = outputs_so_far(study.folder / out)
        assert not difference(left, {name: wanted[name] for name in left}), "what is there is whole"
        study.finish(out)
        assert difference(outputs(study.folder / out), wanted) == [], f"killed after {moment:.3f} s"
        assert [path.name for path in (study.folder / out).glob("journal*")] == ["journal.sqlite"]
        assert not any((study.folder / TEMPORARY).iterdir())
    assert killed >= max(1, KILLS // 4)  # some of the later moments may come too late


def outputs_so_far(folder: Path) -> dict[str, bytes]:
    """Files under their own names; the journal's and half-written ones are left out."""
    return {
        name: data
        for name, data in outputs(folder).items()
        if not Path(name).name.startswith((".partial-", "journal.sqlite")) and not name.startswith(".unpacked-")
    }


def test_what_a_killed_run_left_half_written_goes(study: Study, tmp_path: Path) -> None:
    names = [f"{folder}.partial-x1y2z3" for folder in ("", "images/", "labels/", "previews/")]
    out, exported = tmp_path / "out", tmp_path / "exported"
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"half")
    (out / ".unpacked-x1y2" / "tar-z3").mkdir(parents=True)
    (out / ".unpacked-x1y2" / "tar-z3" / "0").write_bytes(b"an instance")
    exported.mkdir()
    (exported / ".partial-first.json").write_bytes(b"{")
    other = study.folder / "src" / "loose.partial-of.others"
    other.write_bytes(b"kept")
    key = tmp_path / "site.key"
    summary = ingest(study.folder / "src" / "ct0", out, site_key=key, workers=0, deidentified=exported)
    assert (summary.accepted, summary.exported) == (1, 13)
    assert not [path for folder in (out, exported) for path in folder.rglob(".*")]
    assert other.read_bytes() == b"kept"
    other.unlink()
    deep = next(exported.rglob("*.dcm")).parent / ".partial-x1y2z3.dcm"
    deep.write_bytes(b"half")
    ingest(study.folder / "src" / "ct0", out, site_key=key, workers=0, deidentified=exported)
    assert not deep.exists()


def test_two_runs_at_once_do_not_disturb_each_other(study: Study, tmp_path: Path) -> None:
    (tmp_path / "out" / "images").mkdir(parents=True)
    with hold(tmp_path / "out"), atomic_path(tmp_path / "out" / "images" / "one.nii.gz") as under_way:
        with pytest.raises(UserError, match="another ingest is writing") as caught:
            ingest(study.folder / "src" / "ct0", tmp_path / "out", site_key=tmp_path / "site.key", workers=0)
        assert str(caught.value).count(";") == 2
        assert under_way.exists()
    assert ingest(study.folder / "src" / "ct0", tmp_path / "out", site_key=tmp_path / "site.key", workers=0).accepted


def test_killed_between_two_datalists_the_split_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        one = series(4, patient=f"P{number}", modality="CT" if number % 2 else "MR")
        save(one, tmp_path / "src" / str(number))

    def run(out: str) -> int:
        return ingest(tmp_path / "src", tmp_path / out, site_key=key, workers=0).written

    write, written = outputs_module.write_datalist, []

    def stop_at_the_second(path: Path, datalist: dict[str, object]) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, datalist)

    for number in (0, 3, 5):  # keys with which subjects would move
        key = tmp_path / f"{number}.key"
        key.write_text(f"{number:064x}")
        key.chmod(0o600)
        run(f"whole{number}")
        written.clear()
        monkeypatch.setattr(outputs_module, "write_datalist", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run(f"out{number}")
        monkeypatch.setattr(outputs_module, "write_datalist", write)
        assert [path.name for path in written] == ["datalist_ct.json"]
        assert run(f"out{number}") == 0
        assert difference(outputs(tmp_path / f"out{number}"), outputs(tmp_path / f"whole{number}")) == []


def test_what_a_killed_worker_left_half_written_goes(study: Study, tmp_path: Path) -> None:
    left = tmp_path / "out" / "images" / ".partial-x1y2z3"

    def progress(iterable: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
        if description == "writing volumes":
            left.parent.mkdir()
            left.write_bytes(b"half")
        return iter(iterable)

    ingest(study.folder / "src" / "ct0", tmp_path / "out", site_key=tmp_path / "key", workers=0, progress=progress)
    assert [path.name for path in left.parent.iterdir() if path.suffix != ".gz"] == []
