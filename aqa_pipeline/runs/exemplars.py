"""The exemplar bank of a run folder: features of a few clips and what is known of them.

One HDF5 file with a hash over all of it. Written down in docs/cache-format.md.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aqa_pipeline.cache.segment import FeatureArray, encoded
from aqa_pipeline.errors import DataError
from aqa_pipeline.hdf5 import (
    DamagedFileError,
    check_header,
    dataset,
    new_hdf5,
    open_hdf5,
    text_attribute,
    write_text,
)

BANK_FORMAT = "aqa-exemplar-bank"
BANK_VERSION = 1


@dataclass(frozen=True)
class Bank:
    """Features of a few clips with what is known about them, in one file.

    Attributes
    ----------
    features : ndarray of float32, shape=(clips, ...)
    columns : dict of str to ndarray, shape=(clips,)
        Texts come back as arrays of str objects.
    attributes : dict
        Texts and numbers.
    """

    features: FeatureArray
    columns: dict[str, npt.NDArray[Any]]
    attributes: dict[str, str | int | float | bool]


def write_bank(
    path: Path,
    *,
    features: FeatureArray,
    columns: Mapping[str, npt.ArrayLike],
    attributes: Mapping[str, str | int | float | bool],
) -> None:
    """Write an exemplar bank, whole or not at all, with a hash over all of it.

    Parameters
    ----------
    path : Path
        An existing bank of that name is replaced in one step.
    features : ndarray of float32, shape=(clips, ...)
    columns : mapping of str to array, shape=(clips,)
        Texts, integers, floats or booleans.
    attributes : mapping of str to text or number

    Raises
    ------
    DataError
        A column has the wrong length or a type that cannot be stored.
    SetupError
        The file cannot be written.
    """
    arrays = {name: _bank_column(name, values, len(features)) for name, values in columns.items()}
    stored = json.dumps(dict(attributes), sort_keys=True)
    block = np.ascontiguousarray(features, dtype="<f4")
    with new_hdf5(path) as file:
        file.attrs["format"] = BANK_FORMAT
        file.attrs["format_version"] = np.int64(BANK_VERSION)
        file.attrs["attributes"] = stored
        file.attrs["sha256"] = _bank_digest(block, arrays, stored)
        file.create_dataset("features", data=block)
        group = file.create_group("columns", track_order=True)
        for name, array in arrays.items():
            if array.dtype.kind == "S":
                write_text(group, name, array.tolist())
            else:
                group.create_dataset(name, data=array)


def read_bank(path: Path) -> Bank:
    """Read an exemplar bank and check its hash.

    Raises
    ------
    DataError
        The file is missing, damaged or not a bank.
    """
    try:
        with open_hdf5(path) as file:
            check_header(path, file.attrs, expected=BANK_FORMAT, version=BANK_VERSION)
            features: FeatureArray = dataset(path, file, "features")[()]
            arrays = {name: column[()] for name, column in file["columns"].items()}
            stored = text_attribute(path, file.attrs, "attributes")
            if _bank_digest(features, arrays, stored) != text_attribute(path, file.attrs, "sha256"):
                raise DamagedFileError(f"{path}: its contents do not have the stored hash")
            columns = {name: _as_text(array) for name, array in arrays.items()}
            return Bank(features, columns, json.loads(stored))
    except DamagedFileError as error:
        raise DataError(f"{error}; train the head again") from error
    except FileNotFoundError:
        raise DataError(f"{path}: no such exemplar bank; is this a run folder?") from None


def _as_text(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.dtype.kind != "S":
        return array
    return np.array([value.decode("utf-8") for value in array.tolist()], dtype=object)


def _bank_column(name: str, values: npt.ArrayLike, length: int) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.shape != (length,):
        raise DataError(f"column {name!r} has shape {array.shape}, expected ({length},)")
    if array.dtype.kind in "UO":
        texts = array.tolist()
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"column {name!r} mixes text with other values")
        # At least one byte wide, as it will be on disk: an empty width has no HDF5 type.
        data = [encoded(text, what=f"column {name!r}:") for text in texts]
        return np.array(data, dtype=f"S{max([1, *map(len, data)])}")
    if array.dtype.kind not in "iufb":
        raise DataError(f"column {name!r} of type {array.dtype} cannot be stored")
    return array


def _bank_digest(
    features: FeatureArray, columns: Mapping[str, npt.NDArray[Any]], attributes: str
) -> str:
    digest = hashlib.sha256(b"aqa-bank-1\n")
    header = [[name, column.dtype.str, len(column)] for name, column in sorted(columns.items())]
    text = json.dumps([list(features.shape), header, attributes], sort_keys=True)
    digest.update(struct.pack("<Q", len(text)))
    digest.update(text.encode("ascii"))
    digest.update(np.ascontiguousarray(features, dtype="<f4").data)
    for _, column in sorted(columns.items()):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
