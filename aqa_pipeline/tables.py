"""Cells of a CSV table, and the faults of its rows reported together.

Conventions
-----------
place
    How a row is named to the user: ``line 7`` of a file, ``clip (1, 2)`` of an
    annotation.

Everything is text here; what a column means is the business of who reads it.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

from aqa_pipeline.errors import DataError

_MAX_FAULTS_TOLD = 10


@dataclass(frozen=True)
class Cells:
    """A table of text.

    Attributes
    ----------
    path : Path
        Where it came from, for messages.
    header : list of str
    rows : list of list of str
        As many cells each as the header; stripped of outer blanks.
    places : list of str
        Name of each row, for messages.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    places: list[str]

    def column(self, name: str) -> list[str]:
        """Cells of one column; all empty where the table does not have it."""
        if name not in self.header:
            return [""] * len(self.rows)
        index = self.header.index(name)
        return [row[index] for row in self.rows]


@dataclass
class Faults:
    """Bad rows of one table, collected so that all can be told at once."""

    path: Path
    places: list[str]
    _found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, row: int, message: str) -> None:
        self._found.append((row, message))

    def raise_if_any(self) -> None:
        """Tell the first ten faults in row order, and how many more there are.

        Raises
        ------
        DataError
        """
        if not self._found:
            return
        self._found.sort(key=lambda fault: fault[0])
        told = [f"{self.places[row]}: {message}" for row, message in self._found]
        if len(told) > _MAX_FAULTS_TOLD:
            told[_MAX_FAULTS_TOLD:] = [f"and {len(told) - _MAX_FAULTS_TOLD} more"]
        raise DataError(f"{self.path}: " + "; ".join(told))


def read_cells(path: Path) -> Cells:
    """Read a CSV file: UTF-8, cells separated by commas.

    Raises
    ------
    DataError
        If the file cannot be read, is not UTF-8 or not CSV, repeats a column, or has a
        row of another length than the header.
    """
    content = read_bytes(path)
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as CSV UTF-8"
        ) from None
    return parse_cells(path, text, delimiter=",")


def read_bytes(path: Path) -> bytes:
    """Content of a file.

    Raises
    ------
    DataError
        With the reason, if it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def parse_cells(path: Path, text: str, *, delimiter: str) -> Cells:
    """Split the text of a CSV file into cells; blank lines are left out.

    Raises
    ------
    DataError
        See :func:`read_cells`.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        rows: list[list[str]] = []
        places: list[str] = []
        before = reader.line_num
        for row in reader:
            cells = [cell.strip() for cell in row]
            # Spreadsheets export rows that were once used as nothing but separators.
            if any(cells):
                rows.append(cells)
                places.append(f"line {before + 1}")
            before = reader.line_num
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not a CSV file ({error})") from None
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column {', '.join(twice)} stands more than once in the header")
    if "" in header:
        raise DataError(f"{path}: column {header.index('') + 1} has no name")
    faults = Faults(path, places)
    for i, row in enumerate(rows):
        if len(row) != len(header):
            faults.add(i, f"{len(row)} cells, the header has {len(header)}")
    faults.raise_if_any()
    return Cells(path, header, rows, places)
