from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from aqa_pipeline.atomic import (
    as_json,
    atomic_file,
    atomic_path,
    is_running,
    is_temporary,
    write_json_atomically,
    write_text_atomically,
    writer_name,
)
from aqa_pipeline.errors import SetupError


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


def test_a_file_appears_whole_in_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    write_text_atomically(path, "é\n")
    assert path.read_text(encoding="utf-8") == "é\n"
    assert os.listdir(path.parent) == ["table.csv"]


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_an_exception_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"table\.csv: could not be written \("):
        write_text_atomically(tmp_path / "file" / "table.csv", "x")


def test_json_of_numpy_paths_and_numbers_that_are_none(tmp_path: Path) -> None:
    value = {
        "rho": np.float64(0.5),
        "count": np.int64(3),
        "ok": np.bool_(True),
        "nan": float("nan"),
        "infinite": np.float32("inf"),
        "path": Path("a/b"),
        "list": (1, [2.5]),
        7: "é",
    }
    expected = {
        "rho": 0.5,
        "count": 3,
        "ok": True,
        "nan": None,
        "infinite": None,
        "path": "a/b",
        "list": [1, [2.5]],
        "7": "é",
    }
    assert json.loads(as_json(value)) == expected
    assert "é" in as_json(value)
    write_json_atomically(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == expected
