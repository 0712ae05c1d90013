"""Report section on the sweep that chose a run's settings, with its figures as SVG text.

Conventions of the figures as in :mod:`aqa_pipeline.report.figures`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from markupsafe import Markup

from aqa_pipeline.errors import DataError
from aqa_pipeline.report.drawings import Drawing
from aqa_pipeline.report.style import BLUE, HEIGHT, INK, MUTED, shortened, styled_figure, svg_text
from aqa_pipeline.training.sweep.trials import FOLDER

FloatArray = npt.NDArray[np.float64]

_ROWS = 30
_NOT_DIMENSIONS = ("number", "state", "score", "best_epoch", "epochs", "stack", "seconds", "parts")


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
    from aqa_pipeline.training.sweep.search import importance  # Optuna takes its time

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
    shares = importance(table, names, log=log)
    drawings = []
    if len(table) > 1:
        drawings.append(
            Drawing(
                "Settings and scores",
                "Each line is a trial; the darker, the better its Spearman's rho on the validation "
                "part. Dashed: stopped early.",
                Markup(parallel(table, names, log=log, key=f"{anchor}-parallel")),
            )
        )
    known = {name: share for name, share in shares.items() if math.isfinite(share)}
    if known:
        drawings.append(
            Drawing(
                "What matters",
                "How much each setting sets the best trials apart from all (PED-ANOVA), as shares. "
                "A hint where to look: settings may work together, few trials differ by chance.",
                Markup(bars(known, key=f"{anchor}-shares")),
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


def parallel(table: pd.DataFrame, names: Sequence[str], *, log: Sequence[str], key: str) -> str:
    """Parallel coordinates: an axis for each setting and one for the score.

    Parameters
    ----------
    table : DataFrame
        See :func:`aqa_pipeline.training.sweep.trials.results_table`.
    names : sequence of str
        Columns of the settings.
    log : sequence of str
        Those with a logarithmic axis.
    key : str
    """
    known = table[np.isfinite(table["score"].astype(float))]
    columns = [_axis(known[name], log=name in log) for name in names]
    columns.append(_axis(known["score"], log=False))
    height = np.stack([column for column, _, _ in columns])  # (axes, trials)
    score = height[-1]
    with styled_figure(HEIGHT) as (figure, axes):
        for trial in np.argsort(score):
            stopped = known["state"].iloc[trial] == "stopped"
            axes.plot(
                height[:, trial],
                color=BLUE,
                alpha=0.12 + 0.75 * float(score[trial]) ** 3,
                linewidth=1.0,
                linestyle="--" if stopped else "-",
            )
        if len(score):
            axes.plot(height[:, int(np.argmax(score))], color=INK, linewidth=2)
        for place, (_, low, high) in enumerate(columns):
            axes.axvline(place, color=MUTED, linewidth=0.8)
            for text, y, side in ((low, -0.03, "top"), (high, 1.03, "bottom")):
                axes.text(place, y, shortened(text), ha="center", va=side, fontsize=9, color=MUTED)
        axes.set_xticks(range(len(columns)), [*map(_words, names), "rho"], rotation=25, ha="right")
        axes.set_yticks([])
        axes.set_ylim(-0.15, 1.15)
        axes.grid(visible=False)
        alt = f"Parallel coordinates of {len(known)} trials over {', '.join(names)} and the score"
        return svg_text(figure, alt, key)


def bars(explained: Mapping[str, float], *, key: str) -> str:
    """Bars of the importance of settings, largest on top."""
    names = list(explained)[::-1]
    with styled_figure(70 + 26 * len(names)) as (figure, axes):
        axes.barh(range(len(names)), [100 * explained[name] for name in names], color=BLUE)
        axes.set_yticks(range(len(names)), [_words(name) for name in names])
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of what sets the best trials apart")
        axes.grid(visible=False, axis="y")
        alt = "; ".join(f"{name} {100 * share:.0f} %" for name, share in explained.items())
        return svg_text(figure, f"Importance: {alt}", key)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _axis(values: pd.Series, *, log: bool) -> tuple[FloatArray, str, str]:
    """Places 0..1 of the values of a setting on its axis, and the words at its ends."""
    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        levels = sorted(set(values.astype(str)), key=_natural)
        number = np.array([levels.index(str(value)) for value in values], dtype=float)
        return number / max(len(levels) - 1, 1), levels[0], levels[-1]
    number = values.to_numpy(dtype=float)
    low, high = float(number.min()), float(number.max())
    ends = f"{low:.3g}", f"{high:.3g}"
    if log:
        number, low, high = np.log(number), np.log(low), np.log(high)
    width = high - low
    return (number - low) / width if width > 0 else np.full(len(number), 0.5), *ends


def _natural(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:  # words such as "all" come after the numbers
        return np.inf, text


def _words(name: str) -> str:
    return name.replace("_", " ")
