"""Records of runs: their files, read without building a head.

Everything but ``config.json`` may be missing, and then is empty: a run of an older or newer
version, or one that was interrupted, can still be looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from aqa_pipeline.errors import DataError
from aqa_pipeline.runs.config import STORED_OUTPUT, RunConfig, read_stored
from aqa_pipeline.runs.metrics import AverageMetrics, Metrics, read_metrics


@dataclass(frozen=True, eq=False)
class RunRecord:
    """One fitted run as its files describe it.

    Attributes
    ----------
    folder : Path
    name : str
        To be shown.
    config : RunConfig
    stored : dict
        All of ``config.json``.
    metrics : Metrics or None
        None where they were not written.
    predictions, history : DataFrame
        Of ``predictions.csv`` and ``history.csv``.
    """

    folder: Path
    name: str
    config: RunConfig
    stored: dict[str, Any]
    metrics: Metrics | None
    predictions: pd.DataFrame
    history: pd.DataFrame

    @property
    def method(self) -> str:
        return self.config.method

    @property
    def selection(self) -> str:
        """How the epoch was chosen; it belongs to every number."""
        return self.metrics.selection if self.metrics else self.config.selection

    @property
    def group_edges(self) -> list[list[float]]:
        """Bounds of each head's groups, in label points; empty for heads without a tree."""
        edges: list[list[float]] = self.stored.get(STORED_OUTPUT, {}).get("group_edges", [])
        return edges


@dataclass(frozen=True, eq=False)
class ParentRecord:
    """A folder of runs, one for each category or fold, with their averages.

    Attributes
    ----------
    folder : Path
    name : str
    metrics : AverageMetrics or None
        None where they were not written.
    parts : tuple of RunRecord
    """

    folder: Path
    name: str
    metrics: AverageMetrics | None
    parts: tuple[RunRecord, ...]

    @property
    def method(self) -> str:
        return self.metrics.method if self.metrics else self.parts[0].method

    @property
    def selection(self) -> str:
        return self.metrics.selection if self.metrics else self.parts[0].selection


def read_record(folder: Path, *, name: str | None = None) -> RunRecord | ParentRecord:
    """Read a run folder, or a folder of runs.

    Raises
    ------
    DataError
        If it is neither, or a file in it is damaged.
    """
    name = name or folder.absolute().name
    if (folder / "config.json").is_file():
        return _run(folder, name)
    parts = sorted(
        (path.parent for path in folder.glob("*/**/config.json")), key=lambda p: _natural(str(p))
    )
    if not parts:
        raise DataError(
            f"{folder}: not a run folder, it has no config.json, nor has any folder in it; "
            "`aqa fit-head` makes one"
        )
    averages = read_metrics(folder)
    return ParentRecord(
        folder=folder,
        name=name,
        metrics=averages if isinstance(averages, AverageMetrics) else None,
        parts=tuple(_run(part, part.relative_to(folder).as_posix()) for part in parts),
    )


def _run(folder: Path, name: str) -> RunRecord:
    stored = read_stored(folder)
    try:
        config = RunConfig.from_stored(stored)
    except TypeError as error:
        raise DataError(f"{folder / 'config.json'}: damaged ({error})") from None
    metrics = read_metrics(folder)
    return RunRecord(
        folder=folder,
        name=name,
        config=config,
        stored=stored,
        metrics=metrics if isinstance(metrics, Metrics) else None,
        predictions=read_predictions(folder),
        history=_csv(folder / "history.csv"),
    )


def read_predictions(folder: Path) -> pd.DataFrame:
    """``predictions.csv`` of a run folder; without a row where there is none.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    return _csv(folder / "predictions.csv", texts=("clip_id", "category"))


def _natural(text: str) -> list[tuple[int, str]]:
    """fold2 before fold10."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece)
            for piece in re.split(r"(\d+)", text)]  # fmt: skip


def _csv(path: Path, *, texts: tuple[str, ...] = ()) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(texts, str))
    except FileNotFoundError:
        return pd.DataFrame()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    for name in texts:
        if name in table:
            table[name] = table[name].fillna("")
    return table
