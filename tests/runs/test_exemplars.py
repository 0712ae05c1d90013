"""The exemplar bank of a run folder: what goes in comes out, damage is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from aqa_pipeline.errors import DataError
from aqa_pipeline.runs.exemplars import read_bank, write_bank
from tests.support.cache_data import make_clip, write


def test_bank_round_trip(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
    columns: dict[str, Any] = {
        "clip_id": np.array(["a", "ü\n", ""], dtype=object),
        "empty": ["", "", ""],
        "score": np.array([1.5, np.nan, -2.0]),
        "number": np.array([1, 2, 3]),
        "kept": np.array([True, False, True]),
    }
    attributes: dict[str, Any] = {
        "epsilon": 30.0,
        "name": "demo ü",
        "groups": 16,
        "flag": True,
        "long": "x" * 99_999,
    }
    path = tmp_path / "exemplars.h5"
    for _ in range(2):  # the second replaces the first
        write_bank(path, features=features, columns=columns, attributes=attributes)
    bank = read_bank(path)
    np.testing.assert_array_equal(bank.features, features)
    assert bank.features.dtype == np.float32
    assert set(bank.columns) == set(columns)
    for name, values in columns.items():
        np.testing.assert_array_equal(bank.columns[name], values)
    assert bank.columns["kept"].dtype == np.bool_
    assert bank.attributes == attributes


def test_bank_of_no_clips(tmp_path: Path) -> None:
    write_bank(
        tmp_path / "b.h5",
        features=np.zeros((0, 2, 4), np.float32),
        columns={"clip_id": np.array([], dtype=object)},
        attributes={},
    )
    assert read_bank(tmp_path / "b.h5").features.shape == (0, 2, 4)


def test_damaged_bank_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.h5"
    write_bank(
        path,
        features=np.ones((4, 8), np.float32),
        columns={"clip_id": ["a", "b", "c", "d"]},
        attributes={"epsilon": 30.0},
    )
    whole = path.read_bytes()
    with h5py.File(path, "r") as file:
        offset = file["features"].id.get_offset()
    data = bytearray(whole)
    data[offset + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"do not have the stored hash; train the head again"):
        read_bank(path)
    path.write_bytes(whole[:-7])
    with pytest.raises(DataError, match=r"damaged exemplar bank|cannot be read"):
        read_bank(path)
    with pytest.raises(DataError, match="no such exemplar bank"):
        read_bank(tmp_path / "none.h5")
    (other,) = write(tmp_path / "c", [make_clip("clip")])
    with pytest.raises(DataError, match="expected 'aqa-exemplar-bank'"):
        read_bank(other)


@pytest.mark.parametrize(
    ("column", "sentence"),
    [([1, 2], "has shape"), (["a", "b", None], "mixes text"), ([1j, 2, 3], "cannot be stored")],
)
def test_columns_that_cannot_be_stored(tmp_path: Path, column: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        write_bank(
            tmp_path / "b.h5",
            features=np.ones((3, 2), np.float32),
            columns={"x": column},
            attributes={},
        )
