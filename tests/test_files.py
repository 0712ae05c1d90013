from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from aqa_pipeline.atomic import as_json, atomic_path, write_json_atomically, write_text_atomically
from aqa_pipeline.errors import SetupError


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
