"""Figures of a sweep, as SVG text; see :mod:`aqa_pipeline.figures` for the conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from aqa_pipeline.figure_style import BLUE, HEIGHT, INK, MUTED, house_figure, shortened, svg_text

FloatArray = npt.NDArray[np.float64]


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
    with house_figure(HEIGHT) as (figure, axes):
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


def shares(explained: Mapping[str, float], *, key: str) -> str:
    """Bars of the shares of :func:`.importance`, largest on top."""
    names = list(explained)[::-1]
    with house_figure(70 + 26 * len(names)) as (figure, axes):
        axes.barh(range(len(names)), [100 * explained[name] for name in names], color=BLUE)
        axes.set_yticks(range(len(names)), [_words(name) for name in names])
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of the variance of the scores")
        axes.grid(visible=False, axis="y")
        alt = "; ".join(f"{name} {100 * share:.0f} %" for name, share in explained.items())
        return svg_text(figure, f"Variance explained: {alt}", key)


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
