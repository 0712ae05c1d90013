from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from aqa_pipeline.cache.foreign_files import ForeignFeatures, read_foreign, write_plain
from aqa_pipeline.errors import DataError

IDS = ["a", "01_002", "Sprung Ü"]
STACK = np.random.default_rng(0).standard_normal((3, 4, 5))


def save_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def save_pickle(path: Path, value: Any) -> Path:
    path.write_bytes(pickle.dumps(value))
    return path


def expect(found: ForeignFeatures, ids: list[str] | None, stack: Any = STACK) -> None:
    assert found.clip_ids == ids
    assert len(found.sequences) == len(stack)
    for sequence, clip in zip(found.sequences, stack, strict=True):
        assert sequence.dtype == np.float32
        np.testing.assert_array_equal(sequence, np.asarray(clip, np.float32))


def test_npz_of_every_layout(tmp_path: Path) -> None:
    expect(read_foreign(save_npz(tmp_path / "1.npz", features=STACK, clip_id=IDS)), IDS)
    expect(read_foreign(save_npz(tmp_path / "2.npz", features=STACK)), None)
    one_each = dict(zip(IDS, STACK, strict=True))
    expect(read_foreign(save_npz(tmp_path / "3.npz", **one_each)), IDS)
    vectors = save_npz(tmp_path / "4.npz", features=STACK[:, 0], clip_id=[7, 8, 9])
    expect(read_foreign(vectors), ["7", "8", "9"], STACK[:, :1])
    bytes_ids = save_npz(tmp_path / "5.npz", features=STACK, clip_ids=np.array([b"x", b"y", b"z"]))
    expect(read_foreign(bytes_ids), ["x", "y", "z"])


def test_npy_and_a_folder_of_them(tmp_path: Path) -> None:
    np.save(tmp_path / "all.npy", STACK)
    expect(read_foreign(tmp_path / "all.npy"), None)
    folder = tmp_path / "clips"
    (folder / "01").mkdir(parents=True)
    np.save(folder / "01" / "2.npy", STACK[0])
    np.save(folder / "b.c.npy", STACK[1, 0])
    expect(read_foreign(folder), ["01/2", "b.c"], [STACK[0], STACK[1, :1]])


def test_hdf5_of_every_layout(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "1.h5", "w") as file:
        file["features"] = STACK
        file["clip_id"] = IDS  # variable length
    expect(read_foreign(tmp_path / "1.h5"), IDS)
    with h5py.File(tmp_path / "2.hdf5", "w") as file:
        for name, clip in zip(("a", "g/b", "g/c"), STACK, strict=True):
            file[name] = clip
    expect(read_foreign(tmp_path / "2.hdf5"), ["a", "g/b", "g/c"])


def test_pickles_of_every_layout(tmp_path: Path) -> None:
    one_each = dict(zip(IDS, STACK, strict=True))
    expect(read_foreign(save_pickle(tmp_path / "1.pkl", one_each)), IDS)
    stacked = save_pickle(tmp_path / "2.pickle", {"features": STACK, "clip_id": IDS})
    expect(read_foreign(stacked), IDS)
    ragged = [STACK[0], STACK[1, :2], STACK[2, 0]]
    listed = save_pickle(tmp_path / "3.pkl", {"features": ragged, "clip_id": np.array(IDS)})
    expect(read_foreign(listed), IDS, [STACK[0], STACK[1, :2], STACK[2, :1]])
    expect(read_foreign(save_pickle(tmp_path / "4.pkl", STACK)), None)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("hostile-was-here",)


def test_a_hostile_pickle_is_refused_unrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save_pickle(tmp_path / "x.pkl", {"a": STACK[0], "b": Hostile()})
    with pytest.raises(DataError, match=r"x\.pkl: refused, it asks for posix\.mkdir"):
        read_foreign(path)
    objects = np.array([{"a": 1}, Hostile()], dtype=object)
    with pytest.raises(DataError, match=r"holds Python objects, which are not read from \.npz"):
        read_foreign(save_npz(tmp_path / "x.npz", features=objects))
    assert not (tmp_path / "hostile-was-here").exists()


NAN = STACK.copy()
NAN[1, 2, 3], NAN[1, 0, 0] = np.nan, 1e300  # the second is infinite as float32

BAD: dict[str, tuple[Any, str]] = {
    "NaN": ({"features": NAN, "clip_id": IDS}, r"clip 1 \(from 0\): 2 of 20 values are not finite"),
    "one NaN": ({"a": NAN[1]}, r"'a': 2 of 20 values are not finite"),
    "4-d": ({"features": STACK[None]}, r"shape \(1, 3, 4, 5\), expected \(clips, steps, dim\)"),
    "3-d clip": ({"a": STACK}, r"'a' has shape \(3, 4, 5\), expected \(steps, dim\) or \(dim,\)"),
    "no steps": ({"a": STACK[0, :0]}, r"'a' has shape \(0, 5\)"),
    "no clips": ({"features": STACK[:0]}, "it holds no features"),
    "text": ({"a": "x"}, "'a' is an array of <U1, expected numbers"),
    "bool": ({"a": np.ones(3, bool)}, "'a' is an array of bool, expected numbers"),
    "ragged rows": ({"a": [[1.0], [1.0, 2.0]]}, "'a' is not an array: its rows differ in length"),
    "ids": ({"features": STACK, "clip_id": IDS[:2]}, "2 clip ids for features of 3 clips"),
    "twice": ({"features": STACK, "clip_id": ["a", "b", "a"]}, "clip id 'a' stands there twice"),
    "tuple ids": ({(1, 2): STACK[0]}, r"clip id \(1, 2\) is of type tuple, expected text"),
    "no ids": (
        {"features": STACK, "clip_id": "abc"},
        "the clip ids are of type str, expected a list",
    ),
    "number": ({"features": 3}, "features are of type int, expected an array"),
    "empty": ({}, "it holds no features"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_contents_are_a_sentence(tmp_path: Path, name: str) -> None:
    value, sentence = BAD[name]
    with pytest.raises(DataError, match=sentence):
        read_foreign(save_pickle(tmp_path / "f.pkl", value))


def test_files_that_are_not_what_they_say(tmp_path: Path) -> None:
    for name in ("f.npz", "f.npy", "f.h5", "f.pkl"):
        path = tmp_path / name
        for data in (b"", b"nothing of the kind", b"PK\3\4 half a zip"):
            path.write_bytes(data)
            with pytest.raises(DataError, match=f"{name}: (cannot be read|not a pickle|it holds)"):
                read_foreign(path)
    whole = save_npz(tmp_path / "w.npz", features=STACK).read_bytes()
    (tmp_path / "w.npz").write_bytes(whole[:-30])
    with pytest.raises(DataError, match="cannot be read"):
        read_foreign(tmp_path / "w.npz")
    with pytest.raises(DataError, match="no such file"):
        read_foreign(tmp_path / "none.npz")
    with pytest.raises(DataError, match=r"features are read from \.npz, .* or a folder"):
        read_foreign(tmp_path / "f.mat")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.npy files here"):
        read_foreign(tmp_path / "empty")


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    features = STACK.astype(np.float32)
    for _ in range(2):  # the second replaces the first
        write_plain(
            path,
            features=features,
            texts={"clip_id": IDS, "split": ["", "", ""]},
            numbers={"score": np.array([1.0, np.nan, 3.0])},
            about={"dataset": "x"},
        )
    expect(read_foreign(path), IDS, features)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_writing_to_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"written to \.npz, \.h5"):
        write_plain(
            tmp_path / "x.csv", features=np.ones((1, 1, 1), "f4"), texts={}, numbers={}, about={}
        )
