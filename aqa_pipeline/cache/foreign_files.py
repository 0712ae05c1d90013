"""Feature files of other programs: reading what they wrote, writing what they can read.

Conventions
-----------
sequence
    The features of one clip, float32, shape=(steps, dim). A vector counts as one step.
stack
    All clips in one array, shape=(clips, steps, dim) or (clips, dim).

What is read, by suffix:

===============  ========================================================================
``.npz .h5``     ``features``, a stack, with or without ``clip_id``; or one array a clip,
                 named by its id
``.pkl``         the same as a dict; ``features`` may also be a list of arrays of any length.
                 Read through :mod:`aqa_pipeline.pickles`: nothing in it is run
``.npy``         a stack in the order of the manifest
a folder         ``<clip_id>.npy``, one a clip, also in folders below it
===============  ========================================================================
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from aqa_pipeline.atomic import atomic_path
from aqa_pipeline.cache.segment import FeatureArray, encoded
from aqa_pipeline.errors import DataError
from aqa_pipeline.hdf5 import DamagedFileError, new_hdf5, open_hdf5, write_text
from aqa_pipeline.pickles import read_pickle

READ_SUFFIXES = (".npz", ".npy", ".h5", ".hdf5", ".pkl", ".pickle")
WRITE_SUFFIXES = (".npz", ".h5", ".hdf5")

_FEATURES = "features"
_IDS = ("clip_id", "clip_ids")


@dataclass(frozen=True, eq=False)
class ForeignFeatures:
    """What a file of another program holds.

    Attributes
    ----------
    clip_ids : list of str or None
        None: the file has an order only.
    sequences : list of ndarray of float32, shape=(steps, dim)
        One a clip, all finite; steps and dim may differ from clip to clip.
    """

    clip_ids: list[str] | None
    sequences: list[FeatureArray]


def read_foreign(path: Path) -> ForeignFeatures:
    """Read a feature file of any of the known kinds.

    Raises
    ------
    DataError
        It is missing, damaged, of another kind, or holds something that is not one
        sequence of finite numbers a clip.
    """
    if path.is_dir():
        return _of_mapping(path, _read_folder(path))
    suffix = path.suffix.lower()
    if suffix not in READ_SUFFIXES:
        raise DataError(
            f"{path}: features are read from {', '.join(READ_SUFFIXES)} or a folder of .npy files"
        )
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if suffix in (".pkl", ".pickle"):
        content = read_pickle(path)
    elif suffix in (".h5", ".hdf5"):
        content = _read_hdf5(path)
    else:
        content = _read_numpy(path)
    if not isinstance(content, Mapping):
        return ForeignFeatures(None, _of_stack(path, content))
    return _of_mapping(path, content)


def _of_mapping(path: Path, content: Mapping[Any, Any]) -> ForeignFeatures:
    if not content:
        raise DataError(f"{path}: it holds no features")
    if _FEATURES in content:
        sequences = _of_stack(path, content[_FEATURES])
        names = [name for name in _IDS if name in content]
        ids = _as_ids(path, content[names[0]]) if names else None
        if ids is not None and len(ids) != len(sequences):
            raise DataError(f"{path}: {len(ids)} clip ids for features of {len(sequences)} clips")
        return ForeignFeatures(ids, sequences)
    ids = _as_ids(path, list(content))
    arrays = [
        _sequence(f"{path}: {name!r}", value)
        for name, value in zip(ids, content.values(), strict=True)
    ]
    return ForeignFeatures(ids, arrays)


def _as_ids(path: Path, values: Any) -> list[str]:
    items = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(items, list | tuple):
        raise DataError(
            f"{path}: the clip ids are of type {type(values).__name__}, expected a list"
        )
    ids = []
    for item in items:
        if isinstance(item, bytes):
            item = item.decode("utf-8", errors="replace")
        if isinstance(item, int) and not isinstance(item, bool):
            item = str(item)
        if not isinstance(item, str):
            raise DataError(
                f"{path}: clip id {item!r} is of type {type(item).__name__}, expected text as in "
                "the manifest"
            )
        ids.append(item)
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise DataError(f"{path}: clip id {twice!r} stands there twice")
    return ids


def _of_stack(path: Path, value: Any) -> list[FeatureArray]:
    """One sequence a clip from a stack, or from a list of arrays of any length."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        if value.ndim not in (2, 3):
            raise DataError(
                f"{path}: features of shape {value.shape}, expected (clips, steps, dim) or "
                "(clips, dim)"
            )
    elif not isinstance(value, list | tuple | np.ndarray):
        raise DataError(f"{path}: features are of type {type(value).__name__}, expected an array")
    if not len(value):
        raise DataError(f"{path}: it holds no features")
    return [_sequence(f"{path}: clip {row} (from 0)", item) for row, item in enumerate(value)]


def _sequence(where: str, value: Any) -> FeatureArray:
    """One clip's features as float32, shape=(steps, dim), checked."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        raise DataError(f"{where} is not an array: its rows differ in length") from None
    if array.dtype.kind not in "fiu":
        raise DataError(f"{where} is an array of {array.dtype}, expected numbers")
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or not array.size:
        raise DataError(f"{where} has shape {array.shape}, expected (steps, dim) or (dim,)")
    with np.errstate(over="ignore"):  # too large for float32: infinite, and told below
        sequence = array.astype(np.float32)
    bad = int(sequence.size - np.isfinite(sequence).sum())
    if bad:
        raise DataError(f"{where}: {bad} of {sequence.size} values are not finite numbers")
    return sequence


def _read_folder(folder: Path) -> dict[str, Any]:
    paths = sorted(folder.rglob("*.npy"))
    if not paths:
        raise DataError(f"{folder}: no .npy files here; expected <clip_id>.npy, one a clip")
    return {
        path.relative_to(folder).with_suffix("").as_posix(): _read_numpy(path) for path in paths
    }


def _read_numpy(path: Path) -> Any:
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, SyntaxError) as error:
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path}: it holds Python objects, which are not read from {path.suffix}; save "
                "arrays of numbers, or a pickle (.pkl) of plain lists and arrays"
            ) from None
        raise DataError(f"{path}: cannot be read ({error})") from None


def _read_hdf5(path: Path) -> dict[str, Any]:
    try:
        with open_hdf5(path) as file:
            if isinstance(file.get(_FEATURES), h5py.Dataset):
                names = [name for name in (_FEATURES, *_IDS) if name in file]
                return {name: _hdf5_value(file[name]) for name in names}
            found: dict[str, Any] = {}

            def take(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset):
                    found[name] = _hdf5_value(item)

            file.visititems(take)
            return found
    except DamagedFileError as error:
        raise DataError(str(error)) from None


def _hdf5_value(found: h5py.Dataset) -> Any:
    if h5py.check_string_dtype(found.dtype) is not None:
        return found.asstr()[()].tolist()
    return found[()]


def write_plain(
    path: Path,
    *,
    features: FeatureArray,
    texts: Mapping[str, Sequence[str]],
    numbers: Mapping[str, npt.NDArray[Any]],
    about: Mapping[str, Any],
) -> None:
    """Write features with columns beside them, as plain arrays in one ``.npz`` or ``.h5``.

    Parameters
    ----------
    features : ndarray of float32, shape=(clips, steps, dim)
    texts, numbers : mapping of str to column, shape=(clips, ...)
    about : mapping
        Where the features come from; stored as JSON text under ``about``.

    Raises
    ------
    DataError
        The suffix is neither.
    SetupError
        The file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in WRITE_SUFFIXES:
        raise DataError(f"{path}: features are written to {', '.join(WRITE_SUFFIXES)}")
    note = json.dumps(dict(about), sort_keys=True)
    if suffix == ".npz":
        arrays: dict[str, Any] = {_FEATURES: features, "about": np.array(note), **numbers}
        arrays |= {name: np.array(values, dtype=np.str_) for name, values in texts.items()}
        with atomic_path(path) as temporary, open(temporary, "xb") as raw:
            np.savez(raw, **arrays)
        return
    with new_hdf5(path) as file:
        file.attrs["about"] = note
        file.create_dataset(_FEATURES, data=features)
        for name, column in numbers.items():
            file.create_dataset(name, data=column)
        for name, values in texts.items():
            write_text(file, name, [encoded(value, what=name) for value in values])
