"""HDF5 files: segments of the feature cache, and the one-file exemplar bank.

The only module that knows HDF5. It writes one file and reads one file; which segments
make a cache is :mod:`aqa_pipeline.feature_cache`. The format is written down in
docs/cache-format.md, and that page is the contract.

Strings are stored with a fixed length, not in HDF5's heap: the heap has no checksum,
and 100,000 of them are read in one piece.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from aqa_pipeline.atomic import DeferredErrors, atomic_file
from aqa_pipeline.errors import DataError
from aqa_pipeline.fingerprint import FORMAT_VERSION, Facts
from aqa_pipeline.segment import (
    FeatureArray,
    SegmentDamagedError,
    SegmentGoneError,
    SegmentIndex,
    SegmentTable,
    encoded,
    mismatches,
)

SEGMENT_FORMAT = "aqa-feature-segment"
BANK_FORMAT = "aqa-exemplar-bank"

#: Features are read in pieces of about this many bytes.
BLOCK_BYTES = 64 << 20

# What h5py raises when a file is cut short or its bytes are wrong.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)

# Readable by every HDF5 since 1.8, and the first version with checksums over metadata.
_LIBVER = ("v108", "v108")


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file, whole under its name or not there at all."""
    with atomic_file(path) as raw:
        target = DeferredErrors(raw)
        try:
            with h5py.File(target, "w", libver=_LIBVER) as file:
                yield file
        finally:
            if target.error is not None:
                raise target.error


def write_segment(
    path: Path,
    *,
    fingerprint_sha256: str,
    table: SegmentTable,
    feature_blocks: Iterable[FeatureArray],
    feature_shape: tuple[int, int, int, int],
    machines: Sequence[Facts],
    now: datetime,
) -> None:
    """Write one segment, whole or not at all.

    Parameters
    ----------
    path : Path
        Its final name.
    feature_blocks : iterable of ndarray, shape=(some clips, views, snippets, dim)
        The features in the order of the table, in pieces of any size.
    feature_shape : tuple of int
        (clips, views, snippets, dim) of all of them together.
    now : datetime

    Raises
    ------
    SetupError
        No space, or the folder cannot be written. The temporary is removed.
    """
    with _new_file(path) as file:
        file.attrs["format"] = SEGMENT_FORMAT
        file.attrs["format_version"] = np.int64(FORMAT_VERSION)
        file.attrs["fingerprint"] = fingerprint_sha256
        file.attrs["created_utc"] = now.astimezone(UTC).isoformat(timespec="microseconds")
        file.attrs["machines"] = json.dumps(list(machines), sort_keys=True)
        _write_text(file, "view_names", [name.encode("utf-8") for name in table.view_names])
        _write_text(file, "clip_id", table.clip_ids)
        _write_text(file, "source_id", table.source_ids)
        file.create_dataset("frame_index", data=table.frame_index, dtype="<i8")
        file.create_dataset("pts_seconds", data=table.pts_seconds, dtype="<f8")
        file.create_dataset("sha256", data=table.digests, dtype="u1")
        features = file.create_dataset("features", shape=feature_shape, dtype="<f4")
        start = 0
        for block in feature_blocks:
            features[start : start + len(block)] = block
            start += len(block)
        if start != feature_shape[0]:
            raise DataError(f"{path.name}: {start} clips of features for {feature_shape[0]} rows")


def _write_text(group: h5py.Group, name: str, values: Sequence[bytes]) -> None:
    length = max((len(value) for value in values), default=0)
    dtype = h5py.string_dtype("utf-8", length=max(length, 1))
    group.create_dataset(name, data=np.array(values, dtype=dtype), dtype=dtype)


def read_index(path: Path, *, fingerprint_sha256: str) -> SegmentIndex:
    """Validate a segment and read what it holds, but neither features nor hashes.

    Raises
    ------
    SegmentGoneError
        There is no such file.
    SegmentDamagedError
        It cannot be opened, is not of this format version or fingerprint, or its parts
        do not fit together. It must not be read as data.
    """
    with _open(path) as file:
        _check_header(path, file.attrs, SEGMENT_FORMAT)
        found = _text_attribute(path, file.attrs, "fingerprint")
        if found != fingerprint_sha256:
            raise SegmentDamagedError(
                f"{path}: fingerprint {found[:12]}, this folder's is {fingerprint_sha256[:12]}"
            )
        clips, views, snippets, dim = _shape(path, file, "features", "<f4", (None,) * 4)
        _, window_frames = _shape(path, file, "frame_index", "<i8", (clips, None))
        _shape(path, file, "pts_seconds", "<f8", (clips, window_frames))
        _shape(path, file, "sha256", "u1", (clips, 32))
        # A data block that was never written would be read as zeros.
        if file["features"].id.get_storage_size() != clips * views * snippets * dim * 4:
            raise SegmentDamagedError(f"{path}: its features were never written")
        return SegmentIndex(
            path=path,
            view_names=tuple(name.decode() for name in _read_text(path, file, "view_names", views)),
            clip_ids=_read_text(path, file, "clip_id", clips),
            source_ids=_read_text(path, file, "source_id", clips),
            frame_index=file["frame_index"][()],
            feature_shape=(clips, views, snippets, dim),
            created_utc=_text_attribute(path, file.attrs, "created_utc"),
            machines=json.loads(_text_attribute(path, file.attrs, "machines")),
            file_bytes=path.stat().st_size,
        )


def read_table(index: SegmentIndex) -> SegmentTable:
    """Read times and hashes too.

    Raises
    ------
    SegmentGoneError, SegmentDamagedError
        As :func:`read_index`.
    """
    with _open(index.path) as file:
        return SegmentTable(
            view_names=index.view_names,
            clip_ids=index.clip_ids,
            source_ids=index.source_ids,
            frame_index=index.frame_index,
            pts_seconds=file["pts_seconds"][()],
            digests=file["sha256"][()],
        )


def read_features(
    index: SegmentIndex, *, first: int = 0, end: int | None = None
) -> Iterator[tuple[int, FeatureArray]]:
    """Read features in large pieces.

    Parameters
    ----------
    first, end : int
        Half-open range of clips; default: all.

    Yields
    ------
    start : int
        Row of the first clip in the piece.
    block : ndarray of float32, shape=(some clips, views, snippets, dim)

    Raises
    ------
    SegmentGoneError, SegmentDamagedError
        As :func:`read_index`.
    """
    clip_bytes = int(np.prod(index.feature_shape[1:])) * 4
    step = max(1, BLOCK_BYTES // max(clip_bytes, 1))
    stop = index.num_clips if end is None else end
    with _open(index.path) as file:
        for start in range(first, stop, step):
            yield start, file["features"][start : min(start + step, stop)]


def damaged_clips(index: SegmentIndex) -> list[int]:
    """Hash every clip of a segment again.

    Returns
    -------
    list of int
        Rows whose stored hash is not that of their contents; empty when all is well.
    """
    table = read_table(index)
    return [
        start + offset
        for start, block in read_features(index)
        for offset in mismatches(table, start, block)
    ]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """Open for reading without a lock; damage found inside the block names the file."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except FileNotFoundError:
        raise SegmentGoneError(f"{path}: no such file") from None
    except _DAMAGE as error:
        raise SegmentDamagedError(f"{path}: cannot be read ({error})") from error


def _check_header(path: Path, attributes: h5py.AttributeManager, expected: str) -> None:
    found = _text_attribute(path, attributes, "format")
    version = attributes.get("format_version")
    if found != expected:
        raise SegmentDamagedError(f"{path}: format {found!r}, expected {expected!r}")
    if version != FORMAT_VERSION:
        raise SegmentDamagedError(
            f"{path}: format version {version}, this program reads {FORMAT_VERSION}"
        )


def _text_attribute(path: Path, attributes: h5py.AttributeManager, name: str) -> str:
    value = attributes.get(name)
    if not isinstance(value, str):
        raise SegmentDamagedError(f"{path}: its attribute {name!r} is missing or not text")
    return value


def _shape(
    path: Path, file: h5py.File, name: str, dtype: str, expected: tuple[int | None, ...]
) -> tuple[int, ...]:
    """Shape of a dataset, checked where `expected` has a number."""
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise SegmentDamagedError(f"{path}: it holds no {name!r}")
    shape = tuple(int(length) for length in dataset.shape)
    fits = len(shape) == len(expected) and all(
        want is None or want == length for want, length in zip(expected, shape, strict=True)
    )
    if dataset.dtype != np.dtype(dtype) or not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in expected)
        raise SegmentDamagedError(
            f"{path}: {name!r} is {dataset.dtype} of shape {shape}, expected "
            f"{np.dtype(dtype)} of shape ({wanted})"
        )
    return shape


def _read_text(path: Path, file: h5py.File, name: str, length: int) -> list[bytes]:
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset) or dataset.shape != (length,):
        raise SegmentDamagedError(f"{path}: it holds no {name!r} of {length} entries")
    if dataset.dtype.kind != "S":
        raise SegmentDamagedError(f"{path}: {name!r} is not text of a fixed length")
    values: list[bytes] = dataset[()].tolist()
    for value in values:
        value.decode("utf-8")  # UnicodeDecodeError is a ValueError: damaged
    return values


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
    with _new_file(path) as file:
        file.attrs["format"] = BANK_FORMAT
        file.attrs["format_version"] = np.int64(FORMAT_VERSION)
        file.attrs["attributes"] = stored
        file.attrs["sha256"] = _bank_digest(block, arrays, stored)
        file.create_dataset("features", data=block)
        group = file.create_group("columns", track_order=True)
        for name, array in arrays.items():
            if array.dtype.kind == "S":
                _write_text(group, name, array.tolist())
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
        with h5py.File(path, "r", locking=False) as file:
            _check_header(path, file.attrs, BANK_FORMAT)
            features: FeatureArray = file["features"][()]
            arrays = {name: dataset[()] for name, dataset in file["columns"].items()}
            stored = file.attrs["attributes"]
            if _bank_digest(features, arrays, stored) != file.attrs["sha256"]:
                raise SegmentDamagedError(f"{path}: its contents do not have the stored hash")
            columns = {
                name: np.array([value.decode("utf-8") for value in array.tolist()], dtype=object)
                if array.dtype.kind == "S"
                else array
                for name, array in arrays.items()
            }
            return Bank(features, columns, json.loads(stored))
    except SegmentDamagedError as error:
        raise DataError(f"{error}; train the head again") from error
    except FileNotFoundError:
        raise DataError(f"{path}: no such exemplar bank; is this a run folder?") from None
    except _DAMAGE as error:
        raise DataError(f"{path}: damaged exemplar bank ({error}); train the head again") from error


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
