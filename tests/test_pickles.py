from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqa_pipeline.errors import DataError
from aqa_pipeline.pickles import loads_pickle, read_pickle


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def asking_for(module: str, name: str) -> bytes:
    """A pickle that is nothing but one imported object."""
    texts = (text.encode() for text in (module, name))
    short = b"".join(b"\x8c" + bytes([len(text)]) + text for text in texts)
    return b"\x80\x04" + short + b"\x93."


def test_plain_values_come_back(tmp_path: Path) -> None:
    value = {("01", 3): {"final_score": 81.6, "judges": [8.0, None]}, "raw": b"\x00"}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(value, protocol))
        assert read_pickle(path) == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numpy_arrays_and_scalars_come_back(protocol: int) -> None:
    value = {"a": np.arange(6.0).reshape(2, 3), "f": np.asfortranarray(np.eye(3)), "s": np.int64(7)}
    back = loads_pickle(pickle.dumps(value, protocol), source="here")
    np.testing.assert_array_equal(back["a"], value["a"])
    np.testing.assert_array_equal(back["f"], value["f"])
    assert back["s"] == 7


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_arrays_of_old_and_new_numpy(module: bytes) -> None:
    data = pickle.dumps(np.arange(3), protocol=2)
    data = data.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", module)
    assert module + b".multiarray" in data
    assert loads_pickle(data, source="here").tolist() == [0, 1, 2]


def test_the_old_name_of_numpy_core_makes_no_warning() -> None:
    # numpy 2 warns of this name, not of every one in numpy.core.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = loads_pickle(asking_for("numpy.core.numeric", "_frombuffer"), source="here")
    assert found(np.arange(3).data, np.dtype(int), (3,), "C").tolist() == [0, 1, 2]


def test_text_of_python_2_comes_back_as_latin1() -> None:
    assert loads_pickle(b"(S'\\xe9t\\xe9'\np0\n.".replace(b"(S", b"S"), source="here") == "été"


def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "hostile.pkl"
    data = pickle.dumps({"scores": [1.0], "more": Hostile(mark)})
    pickle.loads(data)
    assert mark.exists(), "the pickle would do harm"
    mark.unlink()
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"hostile.pkl: refused, it asks for .*nothing of this file"
    ):
        read_pickle(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "asked",
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy", "ndarray.tofile"),
        ("numpy._core.numpy.core.multiarray", "_reconstruct"),
    ],
)
def test_anything_not_on_the_list_is_refused(asked: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=f"refused, it asks for {asked[0]}.{asked[1]};"):
        loads_pickle(asking_for(*asked), source="here")


@pytest.mark.parametrize("data", [b"", b"clip_id,score\n", b"\x80\x04\x95", b"\x80\xff."])
def test_what_is_no_pickle(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "labels.pkl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"labels.pkl: not a pickle, or a damaged one \("):
        read_pickle(path)


def test_a_truncated_pickle(tmp_path: Path) -> None:
    data = pickle.dumps(np.arange(1000))
    path = tmp_path / "cut.pkl"
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"cut.pkl: not a pickle, or a damaged one"):
            read_pickle(path)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.pkl: no such file"):
        read_pickle(tmp_path / "none.pkl")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        read_pickle(tmp_path)
