"""Figures of a run's report, and the words that go with them.

A figure whose data a run does not have is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from markupsafe import Markup

from aqa_pipeline.core.metrics import spearman
from aqa_pipeline.core.pairs import ExemplarKeys, pair_deltas
from aqa_pipeline.report import figures
from aqa_pipeline.report.case_study import Case, Rescored
from aqa_pipeline.runs.record import RunRecord

FloatArray = npt.NDArray[np.float64]

_LOSSES = ("loss", "classification", "regression")


@dataclass(frozen=True)
class Drawing:
    """A figure with its words. ``svg`` is trusted: it comes from :mod:`figures`."""

    title: str
    caption: str
    svg: Markup


def prediction_drawings(record: RunRecord, anchor: str) -> Iterator[Drawing]:
    """How predictions and scores agree: scatter, cumulative score, residuals."""
    if record.predictions.empty:
        return
    table = _defined(record.predictions)
    if table.empty:
        return
    score, prediction = (table[name].to_numpy(dtype=float) for name in ("score", "prediction"))
    per_head = table.filter(regex=r"^prediction_seed").to_numpy(dtype=float).T
    residual = prediction - score
    lines = "; a line spans what its heads say" if len(per_head) > 1 else ""
    yield _drawing(
        "Prediction against score",
        f"Each point is a test clip{lines}. On the diagonal the prediction is perfect.",
        figures.scatter(score, prediction, per_head=per_head, key=f"{anchor}-scatter"),
    )
    yield _drawing(
        "Cumulative score",
        "Share of test clips whose error is at most the threshold; higher is better. "
        f"Half of the clips are within {np.median(np.abs(residual)):.3g} points.",
        figures.cumulative_score({record.name: np.abs(residual)}, key=f"{anchor}-cumulative"),
    )
    difficulty = table["difficulty"].to_numpy(dtype=float)
    known = np.isfinite(difficulty)
    if len(np.unique(difficulty[known])) > 1:
        yield _drawing(
            "Residuals by difficulty",
            "Above 0: scored higher than the judges did.",
            figures.residuals_by_difficulty(
                difficulty[known], residual[known], key=f"{anchor}-difficulty"
            ),
        )
    if table["category"].nunique() > 1:
        yield _drawing(
            "Residuals by category",
            "Median and quartiles; the number of test clips in brackets.",
            figures.residuals_by_category(
                table["category"].tolist(), residual, key=f"{anchor}-category"
            ),
        )


def training_drawings(record: RunRecord, anchor: str) -> Iterator[Drawing]:
    """How the heads were trained and their epoch chosen."""
    history = record.history
    if history.empty:
        return
    mean = history.groupby("epoch").mean()
    parts = {name: mean[name].to_numpy() for name in _LOSSES if name in mean and mean[name].any()}
    if len(parts) == 2:  # one part alone is the loss
        parts.popitem()
    if parts:
        of_whom = "mean over the heads" if history["seed"].nunique() > 1 else "one head"
        yield _drawing(
            "Training loss",
            f"{'The loss and its parts' if len(parts) > 1 else 'The loss'}, {of_whom}.",
            figures.losses(mean.index.to_numpy(dtype=float), parts, key=f"{anchor}-loss"),
        )
    rho = _rho_column(record)
    if rho:
        curves = {
            f"seed {seed}": (own["epoch"].to_numpy(dtype=float), own[rho].to_numpy(dtype=float))
            for seed, own in history.groupby("seed")
        }
        best = dict(zip(curves, record.config.best_epoch, strict=False))
        yield _drawing(
            "Choosing the epoch",
            f"Spearman's rho of the clips that choose; the dot is the epoch kept. "
            f"{record.selection[:1].upper()}{record.selection[1:]}.",
            figures.selection_rho(curves, best=best, key=f"{anchor}-rho"),
        )


def _defined(table: pd.DataFrame) -> pd.DataFrame:
    """Clips that have a prediction: a head that diverged, or a clip without votes, has none."""
    return table[table["prediction"].notna() & table["score"].notna()]


def _rho_column(record: RunRecord) -> str | None:
    return next((name for name in map(str, record.history) if name.endswith("_rho")), None)


def rescored_drawings(record: RunRecord, rescored: Rescored, anchor: str) -> Iterator[Drawing]:
    """What takes the votes and the training clips: spread of the votes, pairs per group."""
    spread = rescored.vote_spread()
    known = np.isfinite(spread)
    if known.sum() > 1:
        clips = rescored.predictions.clips
        error = np.abs(rescored.predictions.score - clips.score)[known]
        yield _drawing(
            "Spread of the votes",
            "How far the exemplars of a clip disagree, mean over the heads, and how far off the "
            f"prediction is. Spearman between the two: {spearman(spread[known], error):.2f}.",
            figures.vote_spread(spread[known], error, key=f"{anchor}-votes"),
        )
    edges = record.group_edges
    if edges:
        targets, noun = _training_targets(record, rescored)
        yield _drawing(
            f"{noun.capitalize()} per group",
            f"{len(targets):,} {noun} of the head of seed {rescored.run.seeds[0]}, in its tree's "
            f"groups from {edges[0][0]:g} to {edges[0][-1]:g} label points, "
            "and, for comparison, in groups of equal width.",
            figures.pairs_per_group(
                targets, np.array(edges[0], dtype=float), noun=noun, key=f"{anchor}-groups"
            ),
        )


def _training_targets(record: RunRecord, rescored: Rescored) -> tuple[FloatArray, str]:
    """What the first head's groups were cut from: its fit part's differences, or labels."""
    train = rescored.run.exemplars
    held_out = set((record.config.validation_clips or [()])[0])
    train = train.take([i for i, name in enumerate(train.clip_id) if name not in held_out])
    if not rescored.run.head.is_contrastive:
        return train.label, "training clips"
    groups, _ = ExemplarKeys.of(train.key).match(train.key)
    deltas = pair_deltas(train.label, groups)
    return np.concatenate([deltas, -deltas]), "training pairs"


def tree_drawing(case: Case, key: str) -> Drawing | None:
    """The tree of a case, where its head has one."""
    if case.path is None:
        return None
    return _drawing("Tree path", "", figures.tree(case.path, key=key))


def comparison_drawings(records: Sequence[RunRecord], anchor: str) -> Iterator[Drawing]:
    """What can be laid over each other of several runs."""
    intervals = {}
    for record in records:
        rho = record.metrics.heads["rho"] if record.metrics else None
        if rho and np.isfinite(rho.mean) and rho.interval_95:
            intervals[record.name] = (rho.mean, *rho.interval_95)
    if intervals:
        yield _drawing(
            "Spearman's rho",
            "Mean of a run's heads, with its 95 % bootstrap interval.",
            figures.rho_intervals(intervals, key=f"{anchor}-intervals"),
        )
    errors, ranges = {}, {}
    for record in records:
        table = record.predictions if record.predictions.empty else _defined(record.predictions)
        if len(table) and np.ptp(table["score"]) > 0:
            name = record.name
            errors[name] = (table["prediction"] - table["score"]).abs().to_numpy(dtype=float)
            ranges[name] = float(np.ptp(table["score"]))
    if errors:
        comparable = len(set(ranges.values())) == 1
        if not comparable:
            errors = {name: 100 * error / ranges[name] for name, error in errors.items()}
        unit = "points" if comparable else "% of the test scores' range"
        yield _drawing(
            "Cumulative score",
            f"Share of test clips whose error, in {unit}, is at most the threshold.",
            figures.cumulative_score(errors, unit=unit, key=f"{anchor}-cumulative"),
        )
    curves = {}
    for record in records:
        column = _rho_column(record)
        if column:
            mean = record.history.groupby("epoch")[column].mean()
            curves[record.name] = (mean.index.to_numpy(float), mean.to_numpy(float))
    if curves:
        yield _drawing(
            "Choosing the epoch",
            "Spearman's rho of the clips that choose it, mean over a run's heads.",
            figures.selection_rho(curves, key=f"{anchor}-rho"),
        )


def _drawing(title: str, caption: str, svg: str) -> Drawing:
    return Drawing(title, caption, Markup(svg))  # figures escape the text they draw
