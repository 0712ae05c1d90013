"""Data of one's own: any CSV that names its clips, their videos and their scores.

Conventions
-----------
Cells may be separated by commas, semicolons or tabs, as the spreadsheet of the country
does it; with the latter two, decimals may be written with a comma. ``video`` is relative
to the CSV, or to the folder given for the videos.
"""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from aqa_pipeline.config import Protocol, SplitConfig
from aqa_pipeline.datasets.importing import ImportedManifest, locate_videos
from aqa_pipeline.datasets.manifest import parse_clips
from aqa_pipeline.datasets.split import split_clips
from aqa_pipeline.errors import DataError, UsageError
from aqa_pipeline.tables import Cells, parse_cells, read_bytes

logger = logging.getLogger(__name__)

_DELIMITERS = (",", ";", "\t")
_NUMERIC = ("score", "difficulty")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


def import_csv(
    table: Path,
    videos: Path | None = None,
    *,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    test_fraction: float = SplitConfig.test_fraction,
    seed: int = SplitConfig.seed,
    group_by: str | None = None,
) -> ImportedManifest:
    """Rows and protocol of a user's own table.

    Parameters
    ----------
    table : Path
        The CSV; ``clip_id``, ``video`` and ``score`` are needed.
    videos : Path or None
        Folder the ``video`` cells are relative to; None: that of the table.
    name : str or None
        Of the data set; None: the file's name.
    columns : mapping of str to str, optional
        Name in the manifest -> name in the table, ``{"score": "Punkte"}``.
    test_fraction, seed, group_by
        Of the split that is made where the table has none; see
        :func:`aqa_pipeline.datasets.split.split_clips`.

    Raises
    ------
    UsageError
        If ``columns`` names a column the table does not have.
    DataError
        If the table cannot be read, rows cannot be used, only some rows have a split,
        all scores are equal, or no video is found.
    """
    cells = _read(table, columns or {})
    clips = parse_clips(cells)
    scores = clips["score"].to_numpy(dtype=float)
    if np.ptp(scores) == 0:
        raise DataError(
            f"{table}: all {len(scores)} scores are {scores[0]:g}; there is nothing to learn"
        )
    root = videos if videos is not None else table.parent
    wanted = zip(clips["clip_id"], clips["video"], strict=True)
    where, missing = locate_videos(root, {clip: _places(video) for clip, video in wanted})
    clips["video"] = where
    given = int((clips["split"] != "").sum())
    note = "split as given"
    if not given:
        clips["split"] = split_clips(
            clips, test_fraction=test_fraction, seed=seed, group_by=group_by
        )
        by = f" by {group_by}" if group_by else ""
        note = f"split made here{by}: {test_fraction:g} of the clips for the test, seed {seed}"
    elif given < len(clips):
        raise DataError(
            f"{table}: {len(clips) - given} of {len(clips)} rows have no split; fill in train or "
            "test everywhere, or leave the column empty and a split is made"
        )
    has_category = bool((clips["category"] != "").any())
    protocol = Protocol(
        name=name or table.stem,
        exemplar_key=("category",) if has_category else (),
        source=f"own data, {table.name}; {note}",
    )
    return ImportedManifest(clips=clips, protocol=protocol, missing=tuple(missing))


def _read(path: Path, columns: Mapping[str, str]) -> Cells:
    """The table as text, with the names of a manifest and decimal points."""
    text = _decode(path)
    header = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(_DELIMITERS, key=header.count)
    cells = _renamed(parse_cells(path, text, delimiter=delimiter), columns)
    return cells if delimiter == "," else _with_decimal_points(cells)


def _decode(path: Path) -> str:
    content = read_bytes(path)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]  # "Unicode text" of a spreadsheet
    else:
        encodings = ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding == "cp1252":
            logger.warning("%s: not UTF-8; read as Windows-1252, check umlauts and accents", path)
        if "\0" not in text:
            return text
    raise DataError(f"{path}: not a text file; save the table as CSV UTF-8")


def _renamed(cells: Cells, columns: Mapping[str, str]) -> Cells:
    """The table under the names of a manifest."""
    for new, old in columns.items():
        if old not in cells.header:
            raise UsageError(
                f"{cells.path}: no column {old!r} to use as {new}; "
                f"there are {', '.join(cells.header)}"
            )
        if new != old and new in cells.header and new not in columns.values():
            raise UsageError(
                f"{cells.path}: {old!r} is to be {new}, but there is a column {new!r} already; "
                f"give that one another name too, as {new}_old={new}"
            )
    renamed = {old: new for new, old in columns.items()}
    header = [renamed.get(name, name) for name in cells.header]
    return Cells(cells.path, header, cells.rows, cells.places)


def _with_decimal_points(cells: Cells) -> Cells:
    """``12,5`` as ``12.5`` in the columns of numbers, where it can mean nothing else."""
    rows = [list(row) for row in cells.rows]
    for name in _NUMERIC:
        column = cells.column(name)
        with_comma = [cell for cell in column if _DECIMAL_COMMA.fullmatch(cell)]
        if not with_comma:
            continue
        if any("." in cell for cell in column):
            raise DataError(
                f"{cells.path}: column {name} has decimals with a comma ({with_comma[0]}) and with "
                "a point; write all with a point"
            )
        if all(len(cell.partition(",")[2]) == 3 for cell in with_comma):
            raise DataError(
                f"{cells.path}: column {name}: {with_comma[0]} may be a decimal or thousands; "
                "write decimals with a point, and thousands without a sign"
            )
        index = cells.header.index(name)
        for row in rows:
            row[index] = row[index].replace(",", ".")
    return Cells(cells.path, cells.header, rows, cells.places)


def _places(video: str) -> list[str]:
    # Tables made on Windows separate folders with a backslash.
    return list(dict.fromkeys([video, video.replace("\\", "/")]))
