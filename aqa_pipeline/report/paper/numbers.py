"""Numbers of the paper's Tables 1-3, from ``paper_numbers.toml`` beside this file.

Conventions
-----------
rho
    As printed, in -1..1.
relative_l2
    As printed: R-l2 times 100.
NaN
    The paper prints a dash.

What is not in that file (Table 4, the curves of Figs. 5-7) is not known to this program.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

#: Printed where the paper's number is not in the text this program was made from.
NOT_AVAILABLE = "not available"


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """Method of a row of Tables 1-3.

    Attributes
    ----------
    method : str
        As printed.
    quoted : bool
        Taken by the paper from another work, and not run by its authors.
    cite, year : int or None
        That work in the paper's references, and the year the table prints.
    """

    method: str
    quoted: bool
    cite: int | None = None
    year: int | None = None

    @property
    def label(self) -> str:
        return self.method if self.cite is None else f"{self.method} [{self.cite}]"


@dataclass(frozen=True, kw_only=True)
class CategoryRow(PaperRow):
    """One row of one half of Table 1.

    Attributes
    ----------
    values : dict of str to float
        Category, as the manifests name it -> number.
    average : float
        As printed; for rho a Fisher-z mean, but for the row CoRe + GART*.
    """

    values: dict[str, float]
    average: float


@dataclass(frozen=True, kw_only=True)
class MethodRow(PaperRow):
    """One row of Table 2 or 3."""

    difficulty: bool
    rho: float
    relative_l2: float
    ablation: str = ""


@cache
def _document() -> dict[str, Any]:
    return tomllib.loads((files(__package__) / "paper_numbers.toml").read_text(encoding="utf-8"))


def dataset_of(table: Literal["table1", "table2", "table3"]) -> str:
    """Which data set the paper's table is about."""
    return str(_document()[table]["dataset"])


def table1_headings() -> dict[str, str]:
    """Category, as the manifests name it -> heading of its column in Table 1."""
    table = _document()["table1"]
    return dict(zip(table["columns"], table["headings"], strict=True))


def table1(metric: Literal["rho", "relative_l2"]) -> list[CategoryRow]:
    """One half of Table 1, row by row."""
    table = _document()["table1"]
    return [
        CategoryRow(**row | {"values": dict(zip(table["columns"], row["values"], strict=True))})
        for row in table[metric]
    ]


def method_rows(table: Literal["table2", "table3"]) -> list[MethodRow]:
    """Table 2 or 3, row by row."""
    return [MethodRow(**row) for row in _document()[table]["rows"]]
