from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aqa_pipeline.atomic import atomic_file, is_running, is_temporary, writer_name


def test_complete_and_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "x.h5"
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        steps.append("folder synced" if final.exists() else "file synced")
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        steps.append(f"renamed with {source.stat().st_size} bytes")
        assert is_temporary(source)
        assert source.parent == target.parent
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    with atomic_file(final) as file:
        file.write(b"12345")
        assert not final.exists()
    assert steps == ["file synced", "renamed with 5 bytes", "folder synced"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    final = tmp_path / "x"
    final.write_bytes(b"old")

    def write() -> None:
        with atomic_file(final) as file:
            file.write(b"new")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        write()
    assert final.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_writer_names_have_three_parts_whatever_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node-12/ü")
    host, pid, random = writer_name().split("-")
    assert (host, pid, len(random)) == ("node_12__", str(os.getpid()), 8)
    assert writer_name() != writer_name()
    assert is_temporary(Path(f".tmp-{writer_name()}--segment-1--2.h5"))
    assert not is_temporary(Path("segment-1.h5"))


def test_a_dead_process_that_nobody_asked_for_does_not_run() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    child.stdout.read()  # type: ignore[union-attr]  # until it has ended
    deadline = time.monotonic() + 10
    while is_running(child.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child.pid)
    child.wait()
    assert is_running(os.getpid())
