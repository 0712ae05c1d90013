"""Table of results: printed, as CSV, and as JSON."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class MeanStd:
    """A mean with its standard deviation; None where there was one value only."""

    mean: float
    std: float | None = None

    @classmethod
    def of(cls, values: npt.ArrayLike) -> MeanStd:
        """Of values, shape=(n,)."""
        array = np.asarray(values, dtype=np.float64)
        return cls(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None)


#: A number, a number with its spread, words, or nothing.
Cell = float | MeanStd | str | None


@dataclass(frozen=True)
class ResultTable:
    """Rows of cells under named columns.

    Attributes
    ----------
    title : str
    columns : tuple of str
    rows : tuple of tuple of Cell
    digits : dict of str to int
        Decimals of a column's numbers as text; 4 where not said. CSV and JSON keep all.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    digits: dict[str, int] = field(default_factory=dict)

    def texts(self) -> list[list[str]]:
        """The rows as people read them; a dash where there is no number."""
        return [
            [
                _text(cell, self.digits.get(column, 4))
                for column, cell in zip(self.columns, row, strict=True)
            ]
            for row in self.rows
        ]

    def records(self) -> list[dict[str, Any]]:
        """The rows as plain values: a :class:`MeanStd` becomes ``{"mean": ..., "std": ...}``."""
        return [
            {
                column: {"mean": cell.mean, "std": cell.std} if isinstance(cell, MeanStd) else cell
                for column, cell in zip(self.columns, row, strict=True)
            }
            for row in self.rows
        ]

    def csv(self) -> str:
        """The rows as CSV; a column with a spread is followed by one of its deviations."""
        with_spread = [
            any(isinstance(row[i], MeanStd) for row in self.rows) for i in range(len(self.columns))
        ]
        header: list[str] = []
        for column, spread in zip(self.columns, with_spread, strict=True):
            header += [column, f"{column}, standard deviation"] if spread else [column]
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(header)
        for row in self.rows:
            values: list[Any] = []
            for cell, spread in zip(row, with_spread, strict=True):
                values.append(cell.mean if isinstance(cell, MeanStd) else cell)
                if spread:
                    values.append(cell.std if isinstance(cell, MeanStd) else None)
            writer.writerow(values)
        return buffer.getvalue()


def _text(cell: Cell, digits: int) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, MeanStd):
        spread = "" if cell.std is None else f" ± {_text(cell.std, digits)}"
        return _text(cell.mean, digits) + spread
    return "-" if math.isnan(cell) else f"{cell:.{digits}f}"
