"""Segments: the HDF5 files that make a feature cache.

Writes one file, reads one file, lists a folder's; which segments make a cache is
:mod:`aqa_pipeline.cache.reader`. The format is written down in docs/cache-format.md,
and that page is the contract.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np

from aqa_pipeline.cache.fingerprint import FORMAT_VERSION, MachineInfo
from aqa_pipeline.cache.segment import (
    FeatureArray,
    SegmentDamagedError,
    SegmentGoneError,
    SegmentIndex,
    SegmentTable,
    mismatches,
)
from aqa_pipeline.errors import DataError
from aqa_pipeline.hdf5 import (
    DamagedFileError,
    check_array,
    check_header,
    dataset,
    new_hdf5,
    open_hdf5,
    read_text,
    text_attribute,
    write_text,
)

SEGMENT_FORMAT = "aqa-feature-segment"

_DATASETS = (
    "features",
    "frame_index",
    "pts_seconds",
    "sha256",
    "view_names",
    "clip_id",
    "source_id",
)

#: Times a folder is listed until two listings agree.
_LISTINGS = 10

#: Features are read in pieces of about this many bytes.
BLOCK_BYTES = 64 << 20


def write_segment(
    path: Path,
    *,
    fingerprint_sha256: str,
    table: SegmentTable,
    feature_blocks: Iterable[FeatureArray],
    feature_shape: tuple[int, int, int, int],
    machines: Sequence[MachineInfo],
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
    with new_hdf5(path) as file:
        file.attrs["format"] = SEGMENT_FORMAT
        file.attrs["format_version"] = np.int64(FORMAT_VERSION)
        file.attrs["fingerprint"] = fingerprint_sha256
        file.attrs["created_utc"] = now.astimezone(UTC).isoformat(timespec="microseconds")
        file.attrs["machines"] = json.dumps(list(machines), sort_keys=True)
        write_text(file, "view_names", [name.encode("utf-8") for name in table.view_names])
        write_text(file, "clip_id", table.clip_ids)
        write_text(file, "source_id", table.source_ids)
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
        # Each part is opened once: with thousands of segments that is what opening a cache
        # costs, and h5py opens the root again for every `file.attrs`.
        attributes = file.attrs
        check_header(path, attributes, expected=SEGMENT_FORMAT, version=FORMAT_VERSION)
        found = text_attribute(path, attributes, "fingerprint")
        if found != fingerprint_sha256:
            raise DamagedFileError(
                f"{path}: fingerprint {found[:12]}, this folder's is {fingerprint_sha256[:12]}"
            )
        features, frame_index, pts_seconds, sha256, view_names, clip_id, source_id = (
            dataset(path, file, name) for name in _DATASETS
        )
        clips, views, snippets, dim = check_array(path, features, "<f4", (None,) * 4)
        _, window_frames = check_array(path, frame_index, "<i8", (clips, None))
        check_array(path, pts_seconds, "<f8", (clips, window_frames))
        check_array(path, sha256, "u1", (clips, 32))
        # A data block that was never written would be read as zeros.
        if features.id.get_storage_size() != clips * views * snippets * dim * 4:
            raise DamagedFileError(f"{path}: its features were never written")
        return SegmentIndex(
            path=path,
            view_names=tuple(name.decode() for name in read_text(path, view_names, length=views)),
            clip_ids=read_text(path, clip_id, length=clips),
            source_ids=read_text(path, source_id, length=clips),
            frame_index=frame_index[()],
            feature_shape=(clips, views, snippets, dim),
            created_utc=text_attribute(path, attributes, "created_utc"),
            machines=json.loads(text_attribute(path, attributes, "machines")),
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
    try:
        with open_hdf5(path) as file:
            yield file
    except FileNotFoundError:
        raise SegmentGoneError(f"{path}: no such file") from None
    except DamagedFileError as error:
        raise SegmentDamagedError(str(error)) from error


def list_segments(folder: Path) -> list[Path]:
    """Segments of a folder, oldest first.

    Listing a folder is not one step: a merged segment may appear behind the place where
    the listing is, and its parts vanish before it gets there. Two equal listings in a
    row rule that out, as the second would show the merged one.
    """
    previous = None
    for _ in range(_LISTINGS):
        names = sorted(folder.glob("segment-*.h5"))
        if names == previous:
            break
        previous = names
    return names
