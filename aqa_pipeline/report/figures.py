"""Figures of a report, one function each, as SVG text that can stand inside a page.

What they look like, and what ``key`` is for, is said in :mod:`aqa_pipeline.report.style`.
Equal data give equal text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from aqa_pipeline.core.groups import Groups
from aqa_pipeline.heads.tree_path import TreePath
from aqa_pipeline.report.style import (
    BLUE,
    GRID,
    HEIGHT,
    INK,
    MUTED,
    ORANGE,
    png_bytes,
    shortened,
    styled_figure,
    svg_text,
    with_styles,
)

FloatArray = npt.NDArray[np.float64]

#: Categories drawn one by one; the rest are one row. More would not be read.
_MAX_CATEGORIES = 24


def scatter(
    score: FloatArray, prediction: FloatArray, *, per_head: FloatArray | None = None, key: str
) -> str:
    """Predicted against judged scores, the diagonal being perfect (Fig. 6).

    Parameters
    ----------
    score, prediction : ndarray of float64, shape=(N,)
        In points.
    per_head : ndarray of float64, shape=(K, N), optional
        A line spans what the K heads say of a clip.
    key : str
    """
    with styled_figure(HEIGHT + 60) as (figure, axes):
        if per_head is not None and len(per_head) > 1:
            axes.vlines(
                score, per_head.min(axis=0), per_head.max(axis=0), color=BLUE, alpha=0.3, lw=1
            )
        axes.scatter(score, prediction, s=14, color=BLUE, alpha=0.75, linewidths=0)
        # The axes are equal and cover every clip, so that the diagonal is at 45 degrees.
        shown = [score, prediction] if per_head is None else [score, prediction, per_head.ravel()]
        values = np.concatenate(shown)
        values = values[np.isfinite(values)]
        low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
        margin = 0.04 * (high - low) or 1.0
        limits = (low - margin, high + margin)
        axes.plot(limits, limits, color=ORANGE, lw=1.2)
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set(xlabel="score given by the judges (points)", ylabel="predicted score (points)")
        return svg_text(
            figure,
            f"Scatter plot of {len(score)} test clips: predicted against judged score.",
            key,
        )


def cumulative_score(errors: Mapping[str, FloatArray], *, unit: str = "points", key: str) -> str:
    """Share of clips whose error is at most a threshold, for every threshold (Fig. 7).

    Parameters
    ----------
    errors : mapping of str to ndarray of float64, shape=(N,)
        Absolute errors of each run.
    unit : str
        Of the errors, for the axis.
    key : str
    """
    with styled_figure(HEIGHT + _legend_height(errors)) as (figure, axes):
        largest = max((float(np.max(e)) for e in errors.values() if len(e)), default=1.0)
        for _, error, style in with_styles(errors):
            x = np.sort(error)
            share = np.arange(1, len(x) + 1) / max(len(x), 1)
            axes.step(
                [0, *x, largest],
                [0, *share, 1],
                where="post",
                **style,
            )
        axes.set(xlim=(0, largest * 1.02 or 1), ylim=(0, 1.02))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set(xlabel=f"error threshold ({unit})", ylabel="clips within the threshold")
        _legend(figure, axes, errors)
        return svg_text(
            figure, f"Cumulative score curve of {', '.join(errors)}: clips within a threshold.", key
        )


def pairs_per_group(targets: FloatArray, edges: FloatArray, *, noun: str, key: str) -> str:
    """How many training pairs fall into each group: the run's edges, and uniform ones (Fig. 4).

    Parameters
    ----------
    targets : ndarray of float64, shape=(T,)
        Score differences of both orders of the training pairs (or labels), in label points.
    edges : ndarray of float64, shape=(R + 1,)
    noun : str
        What is counted: ``training pairs``.
    key : str
    """
    uniform = np.linspace(edges[0], edges[-1], len(edges))
    groups = np.arange(1, len(edges))
    with styled_figure(HEIGHT) as (figure, axes):
        for offset, bounds, colour, name in (
            (-0.21, edges, BLUE, "the run's edges, of equal mass"),
            (0.21, uniform, ORANGE, "edges at equal distances"),
        ):
            leaf, _ = Groups(bounds).leaf_and_offset(targets)
            count = np.bincount(leaf, minlength=len(groups))
            axes.bar(groups + offset, count, width=0.42, color=colour, label=name)
        axes.grid(visible=False, axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set(xlabel="group, from the lowest difference to the highest", ylabel=noun)
        figure.legend(loc="outside upper left")
        return svg_text(figure, f"Bars of {noun} in each of {len(groups)} groups, two rules.", key)


def residuals_by_difficulty(difficulty: FloatArray, residual: FloatArray, *, key: str) -> str:
    """Residuals, and their mean, at each difficulty.

    Parameters
    ----------
    difficulty : ndarray of float64, shape=(N,)
    residual : ndarray of float64, shape=(N,)
        Prediction minus score, in points.
    key : str
    """
    levels = np.unique(difficulty)
    means = [residual[difficulty == level].mean() for level in levels]
    with styled_figure(HEIGHT) as (figure, axes):
        axes.axhline(0, color=MUTED, lw=1)
        axes.scatter(difficulty, residual, s=14, color=BLUE, alpha=0.55, linewidths=0)
        axes.scatter(levels, means, s=170, marker="_", color=ORANGE, linewidths=2, label="mean")
        axes.set(xlabel="difficulty", ylabel="prediction − score (points)")
        figure.legend(loc="outside upper right")
        return svg_text(
            figure, f"Residuals of {len(residual)} clips by difficulty, with means.", key
        )


def residuals_by_category(category: Sequence[str], residual: FloatArray, *, key: str) -> str:
    """A box of the residuals of each category, the most frequent first.

    Parameters
    ----------
    category : sequence of str, length N
    residual : ndarray of float64, shape=(N,)
        Prediction minus score, in points.
    key : str
    """
    names, index, counts = np.unique(np.asarray(category), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shown, rest = order[:_MAX_CATEGORIES], order[_MAX_CATEGORIES:]
    boxes = [residual[index == k] for k in shown]
    labels = [f"{shortened(str(names[k]) or '(none)')} ({counts[k]})" for k in shown]
    if len(rest):
        boxes.append(residual[np.isin(index, rest)])
        labels.append(f"{len(rest)} others ({len(boxes[-1])})")
    with styled_figure(80 + 26 * len(boxes)) as (figure, axes):
        axes.axvline(0, color=MUTED, lw=1)
        axes.boxplot(
            boxes,
            orientation="horizontal",
            tick_labels=labels,
            widths=0.6,
            patch_artist=True,
            boxprops={"facecolor": BLUE, "alpha": 0.35, "edgecolor": BLUE},
            medianprops={"color": ORANGE, "linewidth": 2},
            whiskerprops={"color": MUTED},
            capprops={"color": MUTED},
            flierprops={"marker": ".", "markerfacecolor": BLUE, "markeredgecolor": "none"},
        )
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="prediction − score (points)")
        return svg_text(figure, f"Box plots of the residuals of {len(names)} categories.", key)


def losses(epoch: FloatArray, parts: Mapping[str, FloatArray], *, key: str) -> str:
    """Training loss and its parts over the epochs.

    Parameters
    ----------
    epoch : ndarray, shape=(E,)
    parts : mapping of str to ndarray of float64, shape=(E,)
    key : str
    """
    with styled_figure(HEIGHT) as (figure, axes):
        for _, values, style in with_styles(parts):
            axes.plot(epoch, values, **style)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.set(xlabel="epoch", ylabel="training loss")
        figure.legend(loc="outside upper left", ncols=3)
        return svg_text(figure, f"Training loss over {len(epoch)} epochs: {', '.join(parts)}.", key)


def selection_rho(
    curves: Mapping[str, tuple[FloatArray, FloatArray]],
    *,
    best: Mapping[str, int] | None = None,
    key: str,
) -> str:
    """Spearman's rho of the clips that choose the epoch, over the epochs.

    Parameters
    ----------
    curves : mapping of str to (ndarray, ndarray), shape=(E,) each
        Epochs and rho of each head or run.
    best : mapping of str to int, optional
        The chosen epoch, marked by a dot.
    key : str
    """
    with styled_figure(HEIGHT + _legend_height(curves)) as (figure, axes):
        for name, (epoch, rho), style in with_styles(curves):
            axes.plot(epoch, rho, lw=1.3, **style)
            at = np.flatnonzero(epoch == (best or {}).get(name, -1))
            axes.scatter(epoch[at], rho[at], s=34, color=style["color"], edgecolor=INK, zorder=3)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.set(xlabel="epoch", ylabel="Spearman, selecting clips")
        _legend(figure, axes, curves)
        return svg_text(
            figure,
            f"Spearman's rho over the epochs of {', '.join(curves)}; best epoch marked.",
            key,
        )


def vote_spread(spread: FloatArray, error: FloatArray, *, key: str) -> str:
    """Do exemplars that disagree announce an error?

    Parameters
    ----------
    spread : ndarray of float64, shape=(N,)
        Standard deviation of a clip's votes, in points.
    error : ndarray of float64, shape=(N,)
        Absolute, in points.
    key : str
    """
    with styled_figure(HEIGHT) as (figure, axes):
        axes.scatter(spread, error, s=14, color=BLUE, alpha=0.75, linewidths=0)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set(xlabel="standard deviation of the votes (points)", ylabel="error (points)")
        return svg_text(
            figure, f"Error against spread of the votes, {len(spread)} test clips.", key
        )


def tree(path: TreePath, *, key: str) -> str:
    """The whole tree of one pair (Fig. 8): darker is likelier, the path is framed.

    A row is a layer, a cell a node, its width the leaves under it. Along the path stands
    the probability of having come so far; the mark under the last row is the place in the
    chosen leaf's interval.
    """
    layers, count = path.num_layers, len(path.leaf_prob)
    with styled_figure(_tree_height(path)) as (figure, axes):
        _draw_tree(axes, path)
        left, right = path.interval
        return svg_text(
            figure,
            f"Tree of {layers} layers; path probabilities "
            f"{', '.join(f'{p:.2f}' for p in path.path_prob)}; leaf {path.leaf + 1} of {count}, "
            f"from {left:.4g} to {right:.4g} label points, place {path.offset:.2f}.",
            key,
        )


def tree_png(path: TreePath) -> bytes:
    """The same tree as a PNG picture."""
    with styled_figure(_tree_height(path)) as (figure, axes):
        _draw_tree(axes, path)
        return png_bytes(figure)


def _tree_height(path: TreePath) -> float:
    return 66 + 31 * path.num_layers


def _draw_tree(axes: Axes, path: TreePath) -> None:
    layers, count = path.num_layers, len(path.leaf_prob)
    for layer in range(1, layers + 1):
        width, row = count >> layer, (layers - layer + 0.06, 0.88)
        prob = path.node_prob(layer)
        axes.broken_barh(
            [(node * width, width) for node in range(len(prob))],
            row,
            facecolors=[(BLUE, 0.08 + 0.62 * min(float(value), 1.0)) for value in prob],
            edgecolors=GRID,
            linewidths=0.6,
        )
        first = path.node(layer) * width
        axes.broken_barh(
            [(first, width)], row, facecolor="none", edgecolor=ORANGE, linewidth=1.8, zorder=3
        )
        # A narrow cell's number would stick out of the figure at its ends.
        x = float(np.clip(first + width / 2, 0.06 * count, 0.94 * count))
        axes.text(
            x,
            layers - layer + 0.5,
            f"{prob[path.node(layer)]:.2f}",
            ha="center",
            va="center",
            fontsize=10,
            zorder=5,
        )
    at = path.leaf + float(np.clip(path.offset, 0, 1))
    axes.plot([at], [-0.12], marker="^", markersize=7, color=ORANGE, clip_on=False, zorder=6)
    axes.set(xlim=(0, count), ylim=(-0.3, layers))
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    step = max(1, count // 16)
    ticks = list(range(0, count + 1, step))
    axes.set_xticks(ticks, [f"{path.edges[i]:.3g}".replace("-", "−") for i in ticks], rotation=90)
    axes.tick_params(length=0)
    axes.set_yticks(
        [layers - layer + 0.5 for layer in range(1, layers + 1)],
        [f"layer {layer}" for layer in range(1, layers + 1)],
    )
    axes.set_xlabel("bounds of the leaves (label points)")


def rho_intervals(rows: Mapping[str, tuple[float, float, float]], *, key: str) -> str:
    """Spearman's rho of several runs with its interval, one row per run.

    Parameters
    ----------
    rows : mapping of str to (rho, low, high)
    key : str
    """
    values = np.array(list(rows.values()), dtype=float)
    places = np.arange(len(rows))
    with styled_figure(70 + 24 * len(rows)) as (figure, axes):
        axes.hlines(places, values[:, 1], values[:, 2], color=BLUE, alpha=0.5, lw=4)
        axes.scatter(values[:, 0], places, s=30, color=BLUE, zorder=3)
        axes.set_yticks(places, [shortened(name) for name in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set(xlabel="Spearman's rho")
        return svg_text(figure, f"Spearman's rho of {len(rows)} runs with 95 % intervals.", key)


def _legend_height(named: Mapping[str, object]) -> float:
    return 0.0 if len(named) < 2 else 8.0 + 17.0 * -(-len(named) // 2)


def _legend(figure: Figure, axes: Axes, named: Mapping[str, object]) -> None:
    if len(named) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
