"""Leases: one clip, one writer; what the dead leave behind is inherited once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from aqa_pipeline.atomic import is_running
from aqa_pipeline.errors import SetupError
from aqa_pipeline.extraction import leases as module
from aqa_pipeline.extraction.leases import FOLDER, Leases


def files(folder: Path, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in (folder / FOLDER).glob(pattern))


def test_a_clip_belongs_to_one_living_writer_until_it_is_given_back(tmp_path: Path) -> None:
    with Leases(tmp_path) as first, Leases(tmp_path) as second:
        assert first.take("a")
        assert first.take("a"), "its own lease is no obstacle"
        assert not second.take("a")
        assert second.take("b")
        first.release(["a", "never leased"])
        assert second.take("a")
    assert files(tmp_path) == []


def test_what_a_killed_writer_had_is_free_at_once_on_its_machine(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\n"
        "from aqa_pipeline.extraction.leases import Leases\n"
        "claims = Leases(pathlib.Path(sys.argv[1])).__enter__()\n"
        "assert claims.take('a')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(files(tmp_path)) == 2
    with Leases(tmp_path) as heir, Leases(tmp_path) as other:
        assert heir.take("a")
        assert not other.take("a"), "only one inherits"
        heir.release(["a"])
        assert len(files(tmp_path, "*.alive")) == 3
        assert files(tmp_path, "*.[0-9]") == []
        assert other.take("a")


def test_a_silent_writer_of_another_machine_loses_its_leases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 3600)
    with Leases(tmp_path, lease_seconds=100) as here:
        with monkeypatch.context() as there:
            there.setattr(module, "_who", lambda: "elsewhere 1")
            far = Leases(tmp_path, lease_seconds=100).__enter__()
        assert far.take("a")
        assert not here.take("a"), "its process id means nothing here"
        old = time.time() - 101
        os.utime(far._heartbeat, (old, old))
        assert here.take("a")


def test_a_dead_process_of_this_machine_says_nothing_about_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert not is_running(process.pid)
    monkeypatch.setattr(module, "_who", lambda: f"elsewhere {process.pid}")
    with Leases(tmp_path) as far, Leases(tmp_path) as here:
        assert far.take("a")
        assert not here.take("a")


def test_generations_are_given_back_oldest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Leases(tmp_path, lease_seconds=100) as gone, Leases(tmp_path, lease_seconds=100) as heir:
        assert gone.take("a")
        os.utime(gone._heartbeat, (1, 1))
        assert heir.take("a")
        unlinked: list[str] = []
        unlink = Path.unlink

        def noted(path: Path, **arguments: bool) -> None:
            unlinked.append(path.suffix)
            unlink(path, **arguments)

        monkeypatch.setattr(Path, "unlink", noted)
        heir.release(["a"])
        assert unlinked == [".0", ".1"]


def test_a_living_writer_goes_on_giving_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    with Leases(tmp_path) as writer:
        os.utime(writer._heartbeat, (1, 1))
        deadline = time.monotonic() + 10
        while writer._heartbeat.stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert writer._heartbeat.stat().st_mtime > 1


def test_without_hard_links_everybody_gets_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Sequence[object]) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with Leases(tmp_path) as first, Leases(tmp_path) as second:
        assert first.take("a")
        assert second.take("a")


def test_a_folder_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", read_only)
    with pytest.raises(SetupError, match="cannot write here"), Leases(tmp_path):
        pass


def test_leftovers_of_a_day_ago_are_cleared_away(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    old, young = (tmp_path / FOLDER / name for name in ("gone.0", "recent.0"))
    for path, hours in ((old, 25), (young, 23)):
        path.touch()
        touched = time.time() - 3600 * hours
        os.utime(path, (touched, touched))
    with Leases(tmp_path):
        assert not old.exists()
        assert young.exists()
