"""Parts of a data set: one per category and fold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.errors import DataError, UsageError


@dataclass(frozen=True)
class Part:
    """One head's share of a data set: a category, a fold of a cross-validation, or both.

    Attributes
    ----------
    category : str or None
        None: all clips.
    fold : int or None
        1-based; None: there is only one split.
    split_column : str
        Manifest column that says train or test.
    """

    category: str | None = None
    fold: int | None = None
    split_column: str = "split"

    def folder(self, root: Path) -> Path:
        """``root/<category>/fold<k>``, as far as there are categories and folds."""
        path = root if self.category is None else root / _as_file_name(self.category)
        return path if self.fold is None else path / f"fold{self.fold}"

    def rows(self, manifest: Manifest, side: str) -> pd.DataFrame:
        """Rows of the manifest on one side of the split, ``train`` or ``test``."""
        rows = manifest.clips[manifest.clips[self.split_column] == side]
        return rows if self.category is None else rows[rows["category"] == self.category]


def _as_file_name(category: str) -> str:
    return re.sub(r"[^\w.-]+", "_", category).strip("._") or "category"


def only_part(manifest: Manifest) -> Part:
    """The part of a data set that has just one.

    Raises
    ------
    DataError
        If no clip has a split.
    UsageError
        If there are several.
    """
    parts = parts_of(manifest)
    if len(parts) > 1:
        raise UsageError(
            f"{manifest.path}: the data set has {len(parts)} parts, one per category and fold: "
            "name one of aqa_pipeline.datasets.parts_of(manifest) as the part",
            fact="part",
        )
    return parts[0]


def parts_of(manifest: Manifest) -> list[Part]:
    """Every part of a data set that gets heads of its own, by its protocol.

    Raises
    ------
    DataError
        If no clip has a split.
    """
    columns = manifest.split_columns
    used = manifest.clips[manifest.clips[list(columns)].isin(["train", "test"]).any(axis=1)]
    if used.empty:
        raise DataError(
            f"{manifest.path}: no clip has {columns[0]} = train or test; "
            f"`aqa manifest split {manifest.name}` makes a seeded split"
        )
    categories = sorted(set(used["category"])) if manifest.protocol.per_category else [None]
    folds = list(enumerate(columns, start=1)) if len(columns) > 1 else [(None, columns[0])]
    return [Part(category, fold, column) for category in categories for fold, column in folds]
