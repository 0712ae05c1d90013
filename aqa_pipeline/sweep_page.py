"""What the report of a run says of the sweep that chose its settings."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from aqa_pipeline import sweep_figures
from aqa_pipeline.errors import DataError
from aqa_pipeline.report_drawings import Drawing
from aqa_pipeline.training.sweep.plan import FOLDER
from aqa_pipeline.training.sweep.trials import importance

_ROWS = 30
_NOT_DIMENSIONS = ("number", "state", "score", "best_epoch", "epochs", "stack", "seconds")


@dataclass(frozen=True)
class SweepPage:
    """The trials of a sweep, drawn and as a table.

    Attributes
    ----------
    sentence : str
    count : int
        Trials in all.
    header : list of str
    rows : list of list of str
        The best trials.
    drawings : list of Drawing
    """

    sentence: str
    count: int
    header: list[str]
    rows: list[list[str]]
    drawings: list[Drawing]


def sweep_page(folder: Path, anchor: str) -> SweepPage | None:
    """The page's part on a sweep; None where a run has none.

    Raises
    ------
    DataError
        If the sweep's files are damaged.
    """
    path = folder / FOLDER / "results.csv"
    if not path.exists():
        return None
    try:
        table = pd.read_csv(path)
        settings = json.loads((folder / FOLDER / "settings.json").read_text(encoding="utf-8"))
        space = settings["space"]
        search = str(settings["search"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder / FOLDER}: damaged ({error})") from None
    names = [name for name in map(str, table.columns) if name not in _NOT_DIMENSIONS]
    stopped = int((table["state"] == "stopped").sum())
    sentence = (
        f"{len(table)} trials ({search}), judged on the validation part alone; {stopped} were "
        "stopped early. The score of the best of many is a little too good: the test split's "
        "numbers above are of the winner, and were read once."
    )
    log = [n for n in names if isinstance(space.get(n), dict) and space[n].get("log")]
    shares = importance(table, names)
    drawings = []
    if len(table) > 1:
        drawings.append(
            Drawing(
                "Settings and scores",
                "Each line is a trial; the darker, the better its Spearman's rho on the validation "
                "part. Dashed: stopped early.",
                Markup(sweep_figures.parallel(table, names, log=log, key=f"{anchor}-parallel")),
            )
        )
    known = {name: share for name, share in shares.items() if math.isfinite(share)}
    if known:
        drawings.append(
            Drawing(
                "What matters",
                "Share of the variance of the scores that each setting explains by itself. A hint "
                "where to look: settings may work together, and few trials explain by chance.",
                Markup(sweep_figures.shares(known, key=f"{anchor}-shares")),
            )
        )
    header = ["trial", *names, "validation rho", "best epoch", ""]
    rows = [
        [
            str(row["number"]),
            *(_shown(row[name]) for name in names),
            _shown(row["score"]),
            f"{row['best_epoch']:g}",
            str(row["state"]),
        ]
        for row in table.head(_ROWS).to_dict("records")
    ]
    return SweepPage(sentence, len(table), header, rows, drawings)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
