"""The manifest: a CSV with one row a clip, and its protocol beside it.

Conventions
-----------
Required columns
    ``clip_id`` (unique), ``video`` (a file or a folder of numbered frames, relative to
    the manifest), ``score`` (final, in points, as published).
Optional columns
    ``start_frame``, ``end_frame`` (half-open, positions from 0), ``split`` (``train`` or
    ``test``), ``category`` (text), ``difficulty`` (above 0). Any further column is kept
    as text. An empty cell means: not given.

Every row is checked before anything else happens, and all bad rows are told at once
with their line numbers. The format is written down in docs/manifest-format.md.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from aqa_pipeline.config import Protocol
from aqa_pipeline.errors import DataError
from aqa_pipeline.files import atomic_path
from aqa_pipeline.protocol import read_protocol

REQUIRED = ("clip_id", "video", "score")
KNOWN = ("clip_id", "video", "start_frame", "end_frame", "score", "split", "category", "difficulty")
SPLITS = ("train", "test")
_MAX_FAULTS_TOLD = 10


@dataclass(frozen=True)
class Clip:
    """One clip to cut out of a video.

    Attributes
    ----------
    clip_id : str
    video : Path
        Absolute, or relative to the current folder.
    start_frame, end_frame : int or None
        Half-open positions; None: the first frame, the end of the video.
    """

    clip_id: str
    video: Path
    start_frame: int | None
    end_frame: int | None


@dataclass(frozen=True, eq=False)
class Manifest:
    """A checked manifest.

    Attributes
    ----------
    path : Path
        The CSV file.
    clips : DataFrame
        One row a clip, in file order. ``start_frame`` and ``end_frame`` are Int64 with
        NA, ``score`` and ``difficulty`` float64 with NaN, everything else text, empty
        where not given. The columns of :data:`KNOWN` always exist.
    protocol : Protocol
    """

    path: Path
    clips: pd.DataFrame
    protocol: Protocol

    @property
    def name(self) -> str:
        return self.path.stem

    def __len__(self) -> int:
        return len(self.clips)

    def video_path(self, video: str) -> Path:
        """Where a ``video`` cell points to."""
        return self.path.parent / video

    def clip_list(self) -> list[Clip]:
        """The clips as plain objects, in file order."""
        frames = {
            column: [None if pd.isna(value) else int(value) for value in self.clips[column]]
            for column in ("start_frame", "end_frame")
        }
        return [
            Clip(clip_id, self.video_path(video), start, end)
            for clip_id, video, start, end in zip(
                self.clips["clip_id"],
                self.clips["video"],
                frames["start_frame"],
                frames["end_frame"],
                strict=True,
            )
        ]


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest and the protocol beside it.

    Without ``NAME.toml`` the defaults of :class:`~aqa_pipeline.config.Protocol` hold.

    Raises
    ------
    DataError
        If the file is missing, has wrong columns, or rows that cannot be used; the
        message lists the rows by line number.
    """
    header, lines, rows = _read_cells(path)
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    for name in KNOWN:
        columns.setdefault(name, [""] * len(rows))
    faults = _Faults(path, lines)
    clips = pd.DataFrame({name: pd.Series(columns[name], dtype="str") for name in columns})
    clips["score"] = _numbers(columns["score"], "score", faults, required=True)
    clips["difficulty"] = _numbers(columns["difficulty"], "difficulty", faults, above_zero=True)
    for name in ("start_frame", "end_frame"):
        clips[name] = _frame_numbers(columns[name], name, faults)
    _check_rows(clips, faults)
    faults.raise_if_any()
    toml = path.with_suffix(".toml")
    protocol = read_protocol(toml) if toml.exists() else Protocol(name=path.stem)
    _check_protocol_columns(clips, protocol, path)
    return Manifest(
        path=path, clips=clips[[*KNOWN, *(c for c in header if c not in KNOWN)]], protocol=protocol
    )


def write_manifest(path: Path, clips: pd.DataFrame) -> None:
    """Write a manifest; known columns first, columns without any value left out."""
    known = [
        c
        for c in KNOWN
        if c in clips and (c in REQUIRED or clips[c].astype(str).str.len().gt(0).any())
    ]
    extra = [c for c in clips if c not in KNOWN]
    with atomic_path(path) as temporary:
        clips[[*known, *extra]].to_csv(temporary, index=False)


def _read_cells(path: Path) -> tuple[list[str], list[int], list[list[str]]]:
    """Header, first line number of each row, and the cells, stripped of outer blanks."""
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            lines, rows = [], []
            before = reader.line_num
            for row in reader:
                if row:
                    lines.append(before + 1)
                    rows.append([cell.strip() for cell in row])
                before = reader.line_num
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such manifest; make one with `aqa manifest import` "
            "(docs/manifest-format.md says what is in it)"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as CSV UTF-8"
        ) from None
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not a CSV file ({error})") from None
    _check_header(path, header)
    faults = _Faults(path, lines)
    for i, row in enumerate(rows):
        if len(row) != len(header):
            faults.add(i, f"{len(row)} cells, the header has {len(header)}")
    faults.raise_if_any()
    if not rows:
        raise DataError(f"{path}: no clips, only a header")
    return header, lines, rows


def _check_header(path: Path, header: list[str]) -> None:
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        guess = ""
        if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
            guess = "; are the cells separated by something else than commas?"
        raise DataError(
            f"{path}: column {', '.join(missing)} is missing; "
            f"found {', '.join(header) or 'nothing'}{guess}"
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column {', '.join(twice)} stands more than once in the header")
    if "" in header:
        raise DataError(f"{path}: column {header.index('') + 1} has no name")


class _Faults:
    """Bad rows of one file, collected so that all can be told at once."""

    def __init__(self, path: Path, lines: Sequence[int]) -> None:
        self._path, self._lines = path, lines
        self._found: list[tuple[int, str]] = []

    def add(self, row: int, message: str) -> None:
        self._found.append((self._lines[row], message))

    def line(self, row: int) -> int:
        return self._lines[row]

    def raise_if_any(self) -> None:
        if not self._found:
            return
        self._found.sort(key=lambda fault: fault[0])
        told = [f"line {line}: {message}" for line, message in self._found[:_MAX_FAULTS_TOLD]]
        if len(self._found) > _MAX_FAULTS_TOLD:
            told.append(f"and {len(self._found) - _MAX_FAULTS_TOLD} more")
        raise DataError(f"{self._path}: " + "; ".join(told))


def _numbers(
    cells: list[str],
    name: str,
    faults: _Faults,
    *,
    required: bool = False,
    above_zero: bool = False,
) -> pd.Series[float]:
    values = np.full(len(cells), np.nan)
    for i, cell in enumerate(cells):
        if not cell:
            if required:
                faults.add(i, f"{name} is empty")
            continue
        try:
            values[i] = float(cell)
        except ValueError:
            comma = "; decimals are written with a point" if "," in cell else ""
            faults.add(i, f"{name} {cell!r} is not a number{comma}")
            continue
        if not math.isfinite(values[i]):
            faults.add(i, f"{name} {cell!r} is not a finite number")
        elif above_zero and values[i] <= 0:
            faults.add(i, f"{name} {cell} is not above 0")
    return pd.Series(values)


def _frame_numbers(cells: list[str], name: str, faults: _Faults) -> pd.Series[int]:
    values: list[int | None] = []
    for i, cell in enumerate(cells):
        values.append(None)
        if not cell:
            continue
        try:
            number = float(cell)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or number != int(number) or number < 0:
            faults.add(i, f"{name} {cell!r} is not a frame number (0, 1, 2, ...)")
        else:
            values[-1] = int(number)
    return pd.Series(values, dtype="Int64")


def _check_rows(clips: pd.DataFrame, faults: _Faults) -> None:
    for name in ("clip_id", "video"):
        for row in np.flatnonzero(clips[name] == ""):
            faults.add(int(row), f"{name} is empty")
    first_line: dict[str, int] = {}
    for i, clip_id in enumerate(clips["clip_id"].tolist()):
        if clip_id and first_line.setdefault(clip_id, i) != i:
            faults.add(
                i,
                f"clip_id {clip_id!r} stands already in line {faults.line(first_line[clip_id])}",
            )
    start = clips["start_frame"].astype("Float64").fillna(0.0).to_numpy(dtype=float)
    end = clips["end_frame"].astype("Float64").fillna(np.inf).to_numpy(dtype=float)
    for row in np.flatnonzero(end <= start):
        faults.add(int(row), f"end_frame {end[row]:.0f} is not after start_frame {start[row]:.0f}")
    for row in np.flatnonzero(~clips["split"].isin([*SPLITS, ""])):
        faults.add(int(row), f"split {clips['split'].iloc[row]!r} is neither train nor test")


def _check_protocol_columns(clips: pd.DataFrame, protocol: Protocol, path: Path) -> None:
    for column in (*protocol.exemplar_key, *protocol.fold_columns):
        if column not in clips:
            raise DataError(
                f"{path}: {path.with_suffix('.toml').name} names the column {column!r}, which the "
                f"manifest does not have; its columns are {', '.join(map(str, clips))}"
            )
    if protocol.label_transform == "raw" and clips["difficulty"].isna().any():
        count = int(clips["difficulty"].isna().sum())
        raise DataError(
            f'{path}: label_transform = "raw" divides by the difficulty, which {count} of '
            f"{len(clips)} clips do not give"
        )
