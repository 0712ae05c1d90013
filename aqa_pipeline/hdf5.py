"""HDF5 files: none that is half-written or damaged is read as data.

The formats are elsewhere: :mod:`aqa_pipeline.cache.segment_file` (segments),
:mod:`aqa_pipeline.runs.exemplars`
(exemplar banks), :mod:`aqa_pipeline.cache.foreign_files` (what other programs wrote).

Strings are stored with a fixed length, not in HDF5's heap: the heap has no checksum,
and 100,000 of them are read in one piece.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from aqa_pipeline.atomic import DeferredErrors, atomic_file

# Readable by every HDF5 since 1.8, and the first version with checksums over metadata.
_LIBVER = ("v108", "v108")

# What h5py raises when a file is cut short or its bytes are wrong.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)


class DamagedFileError(Exception):
    """An HDF5 file that must not be read as data; the message begins with its path.

    Never leaves the modules that read a format: each has its own advice to add.
    """


@contextlib.contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file, whole under its name or not there at all.

    Raises
    ------
    SetupError
        No space, or the folder cannot be written. The temporary is removed.
    """
    with atomic_file(path) as raw:
        target = DeferredErrors(raw)
        try:
            with h5py.File(target, "w", libver=_LIBVER) as file:
                yield file
        finally:
            if target.error is not None:
                raise target.error


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open for reading, without a lock.

    Raises
    ------
    FileNotFoundError
    DamagedFileError
        It cannot be opened, or the block met damage while reading from it.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        raise DamagedFileError(f"{path}: cannot be read ({error})") from error


def check_header(
    path: Path, attributes: h5py.AttributeManager, *, expected: str, version: int
) -> None:
    """Compare the attributes ``format`` and ``format_version``.

    Raises
    ------
    DamagedFileError
        They say something else.
    """
    found = text_attribute(path, attributes, "format")
    if found != expected:
        raise DamagedFileError(f"{path}: format {found!r}, expected {expected!r}")
    found_version = attributes.get("format_version")
    if found_version != version:
        raise DamagedFileError(
            f"{path}: format version {found_version}, this program reads {version}"
        )


def text_attribute(path: Path, attributes: h5py.AttributeManager, name: str) -> str:
    """An attribute of the root that must be text."""
    value = attributes.get(name)
    if not isinstance(value, str):
        raise DamagedFileError(f"{path}: its attribute {name!r} is missing or not text")
    return value


def dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """A data set that must be there."""
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise DamagedFileError(f"{path}: it holds no {name!r}")
    return found


def check_array(
    path: Path, found: h5py.Dataset, dtype: str, expected: tuple[int | None, ...]
) -> tuple[int, ...]:
    """Shape of a data set, checked where `expected` has a number."""
    shape = tuple(int(length) for length in found.shape)
    fits = len(shape) == len(expected) and all(
        want is None or want == length for want, length in zip(expected, shape, strict=True)
    )
    if found.dtype != np.dtype(dtype) or not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in expected)
        raise DamagedFileError(
            f"{path}: {found.name.lstrip('/')!r} is {found.dtype} of shape {shape}, expected "
            f"{np.dtype(dtype)} of shape ({wanted})"
        )
    return shape


def write_text(group: h5py.Group, name: str, values: Sequence[bytes]) -> None:
    """Store UTF-8 texts, padded with NUL to the longest of them."""
    length = max((len(value) for value in values), default=0)
    dtype = h5py.string_dtype("utf-8", length=max(length, 1))
    group.create_dataset(name, data=np.array(values, dtype=dtype), dtype=dtype)


def read_text(path: Path, found: h5py.Dataset, *, length: int) -> list[bytes]:
    """What :func:`write_text` wrote, checked to be `length` texts in UTF-8."""
    name = found.name.lstrip("/")
    if found.shape != (length,):
        raise DamagedFileError(f"{path}: it holds no {name!r} of {length} entries")
    if found.dtype.kind != "S":
        raise DamagedFileError(f"{path}: {name!r} is not text of a fixed length")
    values: list[bytes] = found[()].tolist()
    for value in values:
        value.decode("utf-8")  # UnicodeDecodeError is a ValueError: damaged
    return values
