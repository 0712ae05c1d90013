"""The manifest: a CSV with one row per clip, and its protocol beside it.

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

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aqa_pipeline.atomic import atomic_path
from aqa_pipeline.config import Protocol
from aqa_pipeline.datasets.protocol import read_protocol
from aqa_pipeline.errors import DataError
from aqa_pipeline.tables import Cells, Faults, read_cells

REQUIRED = ("clip_id", "video", "score")
KNOWN = ("clip_id", "video", "start_frame", "end_frame", "score", "split", "category", "difficulty")
SPLITS = ("train", "test")


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

    def __repr__(self) -> str:
        columns = self.split_columns
        count = [int((self.clips[columns[0]] == side).sum()) for side in SPLITS]
        sides = (
            f"{count[0]} train, {count[1]} test" if len(columns) == 1 else f"{len(columns)} folds"
        )
        return f"Manifest({self.path}: {len(self)} clips, {sides})"

    @property
    def split_columns(self) -> tuple[str, ...]:
        """Columns that each hold one division into train and test."""
        return self.protocol.fold_columns or ("split",)

    def exemplar_keys(self) -> list[tuple[str | float, ...]]:
        """What query and exemplar must agree in, one key a clip: numbers for difficulty."""
        return exemplar_keys(self.clips, self.protocol.exemplar_key)

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


def exemplar_keys(rows: pd.DataFrame, columns: Sequence[str]) -> list[tuple[str | float, ...]]:
    """Values of the exemplar key's columns, one tuple a row; numbers rounded to 1e-6.

    Difficulties such as 3.1 may have gone through arithmetic on their way into a manifest,
    and must still be equal to each other.
    """
    if not columns:
        return [()] * len(rows)
    values = [
        [round(float(value), 6) for value in rows[name]]
        if pd.api.types.is_numeric_dtype(rows[name])
        else [str(value) for value in rows[name]]
        for name in columns
    ]
    return list(zip(*values, strict=True))


def with_exemplar_key(manifest: Manifest, columns: Sequence[str]) -> Manifest:
    """The same clips, compared where they agree in these columns.

    Raises
    ------
    DataError
        If the manifest has no such column.
    """
    protocol = dataclasses.replace(manifest.protocol, exemplar_key=tuple(columns))
    _check_protocol_columns(manifest.clips, protocol, manifest.path)
    return dataclasses.replace(manifest, protocol=protocol)


def read_manifest(path: str | Path) -> Manifest:
    """Read and check a manifest and the protocol beside it.

    Parameters
    ----------
    path : str or Path
        The CSV file, such as ``manifests/demo.csv``. Without ``NAME.toml`` beside it the defaults
        of :class:`~aqa_pipeline.config.Protocol` hold.

    Returns
    -------
    Manifest

    Raises
    ------
    DataError
        If the file is missing, has wrong columns, or rows that cannot be used; the
        message lists the rows by line number.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"{path}: no such manifest; make one with `aqa manifest import` "
            "(docs/manifest-format.md says what is in it)"
        )
    clips = parse_clips(read_cells(path))
    toml = path.with_suffix(".toml")
    protocol = read_protocol(toml) if toml.exists() else Protocol(name=path.stem)
    _check_protocol_columns(clips, protocol, path)
    return Manifest(path=path, clips=clips, protocol=protocol)


def as_manifest(manifest: Manifest | str | Path) -> Manifest:
    """The manifest itself, or read from its file; errors as :func:`read_manifest`."""
    return manifest if isinstance(manifest, Manifest) else read_manifest(manifest)


def parse_clips(cells: Cells) -> pd.DataFrame:
    """Check every row of a table of clips and give its columns their types.

    Parameters
    ----------
    cells : Cells

    Returns
    -------
    DataFrame
        As in :class:`Manifest`.

    Raises
    ------
    DataError
        Naming all bad rows.
    """
    _check_header(cells.path, cells.header)
    if not cells.rows:
        raise DataError(f"{cells.path}: no clips, only a header")
    names = [*KNOWN, *(name for name in cells.header if name not in KNOWN)]
    clips = pd.DataFrame({name: pd.Series(cells.column(name), dtype="str") for name in names})
    faults = Faults(cells.path, cells.places)
    clips["score"] = _numbers(cells.column("score"), "score", faults, required=True)
    clips["difficulty"] = _numbers(
        cells.column("difficulty"), "difficulty", faults, above_zero=True
    )
    for name in ("start_frame", "end_frame"):
        clips[name] = _frame_numbers(cells.column(name), name, faults)
    _check_rows(clips, faults)
    faults.raise_if_any()
    return clips


def write_manifest(path: Path, clips: pd.DataFrame) -> None:
    """Write a manifest; known columns first, optional ones without any value left out.

    Raises
    ------
    SetupError
        If the file cannot be written.
    """
    known = [name for name in KNOWN if name in clips]
    known = [name for name in known if name in REQUIRED or _has_values(clips[name])]
    extra = [name for name in clips if name not in KNOWN]
    with atomic_path(path) as temporary:
        clips[[*known, *extra]].to_csv(temporary, index=False)


def _has_values(column: pd.Series[Any]) -> bool:
    return bool((column.notna() & (column != "")).any())


def _check_header(path: Path, header: list[str]) -> None:
    missing = [name for name in REQUIRED if name not in header]
    if not missing:
        return
    guess = ""
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        guess = (
            "; the cells are not separated by commas: `aqa manifest import csv` reads such a file"
        )
    raise DataError(
        f"{path}: column {', '.join(missing)} is missing; "
        f"found {', '.join(header) or 'nothing'}{guess}"
    )


def _float(cell: str) -> float:
    # float() also takes 1_000, which in a table is a slip.
    if "_" in cell:
        raise ValueError(cell)
    return float(cell)


def _numbers(
    cells: list[str],
    name: str,
    faults: Faults,
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
            values[i] = _float(cell)
        except ValueError:
            comma = "; decimals are written with a point" if "," in cell else ""
            faults.add(i, f"{name} {cell!r} is not a number{comma}")
            continue
        if not math.isfinite(values[i]):
            faults.add(i, f"{name} {cell!r} is not a finite number")
        elif above_zero and values[i] <= 0:
            faults.add(i, f"{name} {cell} is not above 0")
    return pd.Series(values)


def _frame_numbers(cells: list[str], name: str, faults: Faults) -> pd.Series[int]:
    values: list[int | None] = []
    for i, cell in enumerate(cells):
        values.append(None)
        if not cell:
            continue
        try:
            number = _float(cell)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or number != int(number) or number < 0:
            faults.add(i, f"{name} {cell!r} is not a frame number (0, 1, 2, ...)")
        else:
            values[-1] = int(number)
    return pd.Series(values, dtype="Int64")


def _check_rows(clips: pd.DataFrame, faults: Faults) -> None:
    for name in ("clip_id", "video"):
        for row in np.flatnonzero(clips[name] == ""):
            faults.add(int(row), f"{name} is empty")
    first_row: dict[str, int] = {}
    for i, clip_id in enumerate(clips["clip_id"].tolist()):
        if clip_id and first_row.setdefault(clip_id, i) != i:
            faults.add(
                i,
                f"clip_id {clip_id!r} stands already in {faults.places[first_row[clip_id]]}",
            )
    start = clips["start_frame"].astype("Float64").fillna(0.0).to_numpy(dtype=float)
    end = clips["end_frame"].astype("Float64").fillna(np.inf).to_numpy(dtype=float)
    for row in np.flatnonzero(end <= start):
        faults.add(int(row), f"end_frame {end[row]:.0f} is not after start_frame {start[row]:.0f}")
    for row in np.flatnonzero(~clips["split"].isin([*SPLITS, ""])):
        faults.add(int(row), f"split {clips['split'].iloc[row]!r} is neither train nor test")


def _check_protocol_columns(clips: pd.DataFrame, protocol: Protocol, path: Path) -> None:
    toml = path.with_suffix(".toml").name
    needed = {
        "exemplar_key": protocol.exemplar_key,
        "fold_columns": protocol.fold_columns,
        "per_category": ("category",) if protocol.per_category else (),
        'label_transform = "raw"': ("difficulty",) if protocol.label_transform == "raw" else (),
    }
    for setting, columns in needed.items():
        for column in columns:
            if column not in clips:
                raise DataError(
                    f"{path}: {toml} names the column {column!r} ({setting}), which the manifest "
                    f"does not have; its columns are {', '.join(map(str, clips))}"
                )
            empty = int((clips[column].isna() | (clips[column] == "")).sum())
            # A clip may be outside a fold, but not without a key or a label.
            if empty and setting != "fold_columns":
                raise DataError(
                    f"{path}: {toml} needs the column {column!r} ({setting}), which {empty} of "
                    f"{len(clips)} clips do not give"
                )
    for column in protocol.fold_columns:
        unknown = sorted(set(clips[column]) - {*SPLITS, ""})
        if unknown:
            raise DataError(
                f"{path}: the fold column {column!r} holds {', '.join(map(repr, unknown))}; "
                "its cells are train, test or empty"
            )
