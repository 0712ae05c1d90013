"""Figs. 4-8 of the paper on any cached data set: tables, drawings and the data behind them.

Each is of one head's share of the data set: all of it, or, where the protocol has categories and
folds, ``diving`` (the paper's choice for Fig. 5) or else the first category, in the first fold.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from aqa_pipeline.cache.load import load_split
from aqa_pipeline.config import FitConfig, HeadConfig, Recipe
from aqa_pipeline.core import metrics
from aqa_pipeline.core.groups import Groups
from aqa_pipeline.core.pairs import ExemplarKeys, pair_deltas
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.datasets.parts import parts_of
from aqa_pipeline.errors import DataError
from aqa_pipeline.heads.outputs import fit_output_layer
from aqa_pipeline.heads.tree_path import TreePath, tree_path
from aqa_pipeline.report import figures
from aqa_pipeline.report.paper.numbers import NOT_AVAILABLE
from aqa_pipeline.report.paper.runs import PaperContext, PaperRunResult, paper_run, read_part
from aqa_pipeline.report.paper.table import Cell, MeanStd, ResultTable
from aqa_pipeline.report.paper.tables import R_L2, RHO, times_100, uses_difficulty
from aqa_pipeline.report.style import BLUE, HEIGHT, WIDTH, styled_figure, svg_text
from aqa_pipeline.runs.evaluate import predict_clips

FloatArray = npt.NDArray[np.float64]

PAPER_DEPTH = 5
DEPTHS = range(2, 8)
VOTERS: tuple[int | None, ...] = (1, 2, 5, 10, 20, None)  #: M; None: all of the group
_SHARES = (0.05, 0.1, 0.15, 0.2, 0.3)  #: thresholds of Fig. 7's table, of the scores' range
_VARIABLE = re.compile(r"var\(--[a-z]+, (#[0-9a-f]{6})\)")


@dataclass(frozen=True)
class PaperFigure:
    """What a figure comes to.

    Attributes
    ----------
    tables : list of ResultTable
        To be printed.
    drawings : dict of str to str
        File name without ending -> SVG for a page.
    data : dict of str to ResultTable
        File name without ending -> what is written as CSV beside the drawings.
    notes : list of str
    """

    tables: list[ResultTable]
    drawings: dict[str, str]
    data: dict[str, ResultTable]
    notes: list[str] = field(default_factory=list)


def groups_at_depth(depth: int, recipe: Recipe) -> int:
    """Leaves of a tree of the paper's depth: 2^d in its text, 2^(d - 1) as published."""
    return 1 << (depth if recipe == "paper" else depth - 1)


def depth_sentence(recipe: Recipe) -> str:
    """Which of the two countings of depth holds."""
    if recipe == "paper":
        return "depth d has 2^d groups, as in the paper's text"
    return "depth d has 2^(d-1) groups, as in the published program; recipe paper has 2^d"


def one_part(manifest: Manifest) -> Manifest:
    """The manifest cut down to what one head sees."""
    parts = parts_of(manifest)
    part = next((p for p in parts if p.category == "diving"), parts[0])
    clips = manifest.clips
    if part.category is not None:
        clips = clips[clips["category"] == part.category].reset_index(drop=True)
    protocol = manifest.protocol
    if len(protocol.fold_columns) > 1:
        protocol = dataclasses.replace(protocol, fold_columns=(part.split_column,))
    return dataclasses.replace(manifest, clips=clips, protocol=protocol)


def part_sentence(manifest: Manifest) -> str:
    """What :func:`one_part` chose, or nothing where there is no choice."""
    (part,) = parts_of(manifest)
    if part.category is None and part.split_column == "split":
        return ""
    return f"of the category {part.category}, column {part.split_column}"


def fig4(context: PaperContext, head: HeadConfig, fit: FitConfig) -> PaperFigure:
    """Fig. 4: training pairs in groups of equal width and of equal mass. Nothing is fitted."""
    (part,) = parts_of(context.manifest)
    protocol = context.manifest.protocol
    on_test = fit.model_selection == "test"
    train = load_split(context.manifest, context.cache, part, published_ranges=on_test).train
    groups, _ = ExemplarKeys.of(train.key).match(train.key)
    deltas = pair_deltas(train.label, groups)
    if not deltas.size:
        raise DataError(f"{context.manifest.path}: no two training clips share an exemplar group")
    output = fit_output_layer(
        dataclasses.replace(head, kind="gart", mode="contrastive"),
        [deltas],
        score_range=protocol.score_range or float(np.ptp(train.label)),
        generators=[torch.Generator().manual_seed(fit.seed)],
    )
    edges = np.array(output.settings()["group_edges"][0])
    both = np.concatenate([deltas, -deltas])
    uniform = np.linspace(edges[0], edges[-1], len(edges))
    counts = {
        name: np.bincount(Groups(bounds).leaf_and_offset(both)[0], minlength=len(edges) - 1)
        for name, bounds in (("uniform", uniform), ("mass", edges))
    }
    rows: list[tuple[Cell, ...]] = [
        (
            str(r + 1),
            f"{uniform[r]:.2f} .. {uniform[r + 1]:.2f}",
            str(counts["uniform"][r]),
            f"{edges[r]:.2f} .. {edges[r + 1]:.2f}",
            str(counts["mass"][r]),
        )
        for r in range(len(edges) - 1)
    ]
    header = ("Group", "(a) uniform", "pairs", "(b) equal mass", "pairs of (b)")
    table = ResultTable(f"{len(both):,} ordered training pairs", header, tuple(rows))
    drawing = figures.pairs_per_group(both, edges, noun="training pairs", key="fig4")
    return PaperFigure([table], {"fig4": drawing}, {"fig4": table}, [_paper("Fig. 4")])


def fig5(context: PaperContext, head: HeadConfig, fit: FitConfig) -> PaperFigure:
    """Fig. 5: CoRe + GART at depths 2-7, and with 1, 2, 5, 10, 20 and all exemplars."""
    runs = []
    for depth in DEPTHS:
        own = dataclasses.replace(head, num_groups=groups_at_depth(depth, head.recipe))
        run = paper_run("gart", "contrastive", head=own, fit=fit, use_difficulty=True)
        runs.append(dataclasses.replace(run, name=f"depth {depth}", folder_name=f"depth{depth}"))
    results = context.results(runs)
    rows: list[tuple[Cell, ...]] = [
        (str(depth), str(run.head.num_groups), NOT_AVAILABLE, result.overall("rho"),
         times_100(result.overall("relative_l2")))
        for depth, run, result in zip(DEPTHS, runs, results, strict=True)
    ]  # fmt: skip
    numbers = (f"{RHO} here", f"{R_L2} here")
    header = ("Depth", "Groups", "paper", *numbers)
    by_depth = ResultTable("(a) depth of the tree", header, tuple(rows), {numbers[1]: 3})
    voted = _by_voters(context, results[DEPTHS.index(PAPER_DEPTH)], fit)
    drawings = {}
    for name, label, table in (
        ("fig5a", "depth of the tree", by_depth),
        ("fig5b", "number of exemplars", voted),
    ):
        for metric, column in zip(("rho", "relative_l2"), numbers, strict=True):
            column_index = table.columns.index(column)
            values = [v for row in table.rows if isinstance(v := row[column_index], MeanStd)]
            drawings[f"{name}-{metric.replace('_', '-')}"] = curve(
                [str(row[0]) for row in table.rows],
                values,
                xlabel=label,
                ylabel=column.removesuffix(" here"),
                key=f"{name}-{metric}",
            )
    return PaperFigure(
        [by_depth, voted],
        drawings,
        {"fig5a": by_depth, "fig5b": voted},
        [
            depth_sentence(head.recipe),
            f"(b) is the head of depth {PAPER_DEPTH}, its epoch chosen with M = "
            f"{fit.num_exemplars or 'all'}; mean and standard deviation over the heads and "
            f"{fit.num_seeds} draws of exemplars; groups with fewer clips vote with fewer",
            _paper("Fig. 5"),
        ],
    )


def curve(
    ticks: Sequence[str], values: Sequence[MeanStd], *, xlabel: str, ylabel: str, key: str
) -> str:
    """A metric over the values of one setting, with the standard deviation (Fig. 5)."""
    places = np.arange(len(ticks))
    mean = np.array([value.mean for value in values])
    std = np.array([value.std or 0.0 for value in values])
    with styled_figure(HEIGHT) as (figure, axes):
        axes.fill_between(places, mean - std, mean + std, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(places, mean, color=BLUE, marker="o", markersize=5)
        axes.set_xticks(places, list(ticks))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        return svg_text(
            figure, f"Curve of {ylabel} over {xlabel}: mean and standard deviation.", key
        )


def _by_voters(context: PaperContext, result: PaperRunResult, fit: FitConfig) -> ResultTable:
    run, clips = read_part(context, result)
    rows: list[tuple[Cell, ...]] = []
    for count in VOTERS:
        rho, relative = [], []
        # All of a group is one draw only.
        for draw in range(fit.num_seeds if count is not None else 1):
            config = dataclasses.replace(
                run.fit_config, num_exemplars=count, seed=run.fit_config.seed + draw
            )
            predicted = predict_clips(dataclasses.replace(run, fit_config=config), clips)
            rho += [metrics.spearman(clips.score, p) for p in predicted.per_head]
            relative += [metrics.relative_l2(clips.score, p) for p in predicted.per_head]
        rows.append(
            (
                "all" if count is None else str(count),
                NOT_AVAILABLE,
                MeanStd.of(rho),
                times_100(MeanStd.of(relative)),
            )
        )
    header = ("M", "paper", f"{RHO} here", f"{R_L2} here")
    return ResultTable("(b) exemplars that vote", header, tuple(rows), {header[-1]: 3})


def fig6(context: PaperContext, head: HeadConfig, fit: FitConfig) -> PaperFigure:
    """Fig. 6: predicted against judged scores of the baseline and of ours."""
    frames = _predictions(context, head, fit)
    rows, drawings, data = [], {}, {}
    for (name, slug), frame in frames.items():
        score, prediction = (frame[c].to_numpy(float) for c in ("score", "prediction"))
        heads = frame.filter(regex=r"^prediction_seed").to_numpy(float).T
        drawings[f"fig6-{slug}"] = figures.scatter(
            score, prediction, per_head=heads, key=f"fig6-{slug}"
        )
        cells = zip(frame["clip_id"], score.tolist(), prediction.tolist(), strict=True)
        data[f"fig6-{slug}"] = ResultTable(
            name, ("clip_id", "score", "prediction"), tuple(tuple(row) for row in cells)
        )
        rows.append(
            (
                name,
                metrics.spearman(score, prediction),
                100 * metrics.relative_l2(score, prediction),
                float(np.abs(score - prediction).mean()),
            )
        )
    header = ("Method", RHO, R_L2, "mean error, points")
    table = ResultTable("Points against the diagonal", header, tuple(rows), {R_L2: 3, header[3]: 2})
    return PaperFigure([table], drawings, data, [_ensemble(fit), _paper("Fig. 6")])


def fig7(context: PaperContext, head: HeadConfig, fit: FitConfig) -> PaperFigure:
    """Fig. 7: the share of test clips within an error threshold."""
    frames = _predictions(context, head, fit)
    errors = {
        name: (frame["prediction"] - frame["score"]).abs().to_numpy(float)
        for (name, _), frame in frames.items()
    }
    scores = next(iter(frames.values()))["score"].to_numpy(float)
    thresholds = [round(share * float(np.ptp(scores)), 1) for share in _SHARES]
    rows: list[tuple[Cell, ...]] = [
        (name, *(f"{100 * np.mean(error <= limit):.1f} %" for limit in thresholds))
        for name, error in errors.items()
    ]
    header = ("Method", *(f"within {limit:g}" for limit in thresholds))
    table = ResultTable("Test clips within an error of so many points", header, tuple(rows))
    curves = tuple(
        (name, limit, (i + 1) / len(error))
        for name, error in errors.items()
        for i, limit in enumerate(np.sort(error).tolist())
    )
    data = ResultTable(table.title, ("method", "threshold_points", "share"), curves)
    drawing = figures.cumulative_score(errors, key="fig7")
    return PaperFigure(
        [table], {"fig7": drawing}, {"fig7": data}, [_ensemble(fit), _paper("Fig. 7")]
    )


def _predictions(
    context: PaperContext, head: HeadConfig, fit: FitConfig
) -> dict[tuple[str, str], pd.DataFrame]:
    runs = [
        paper_run("mlp", "direct", head=head, fit=fit, use_difficulty=False),
        paper_run("gart", "contrastive", head=head, fit=fit, use_difficulty=False),
    ]
    if uses_difficulty(context.manifest):
        runs.append(paper_run("gart", "contrastive", head=head, fit=fit, use_difficulty=True))
    frames = {}
    for result in context.results(runs):
        (part,) = result.parts
        path = part.folder(result.folder) / "predictions.csv"
        frames[result.run.name, result.run.folder_name] = pd.read_csv(path, dtype={"clip_id": str})
    return frames


def fig8(context: PaperContext, head: HeadConfig, fit: FitConfig) -> PaperFigure:
    """Fig. 8: the tree's way for a pair far apart and for a pair close together."""
    wanted = paper_run("gart", "contrastive", head=head, fit=fit, use_difficulty=True)
    (result,) = context.results([wanted])
    run, clips = read_part(context, result)
    pool = run.exemplars
    exemplars = predict_clips(run, clips).exemplars
    deltas = np.where(exemplars >= 0, np.abs(clips.label[:, None] - pool.label[exemplars]), np.nan)
    tables, drawings, data = [], {}, {}
    for slug, title, column_index in (
        ("large", "a large difference", np.nanargmax(deltas)),
        ("small", "a small difference", np.nanargmin(deltas)),
    ):
        row, column = np.unravel_index(column_index, deltas.shape)
        other = int(exemplars[row, column])
        path = tree_path(
            run.head,
            torch.from_numpy(clips.features[row]),
            exemplar=torch.from_numpy(pool.features[other]),
            exemplar_label=float(pool.label[other]),
        )
        truth = float(clips.label[row] - pool.label[other])
        table = ResultTable(
            f"{title}: input {clips.clip_id[row]}, exemplar {pool.clip_id[other]}; "
            f"difference {truth:.2f}, predicted {path.value:.2f} label points",
            ("Layer", "turns to", "probability", "of the way so far"),
            _path_rows(path),
        )
        tables.append(table)
        data[f"fig8-{slug}"] = table
        drawings[f"fig8-{slug}"] = figures.tree(path, key=f"fig8-{slug}")
    note = f"the head of seed {run.seeds[0]}, alone; pairs of its test clips and their exemplars"
    return PaperFigure(tables, drawings, data, [note, _paper("Fig. 8")])


def _path_rows(path: TreePath) -> tuple[tuple[Cell, ...], ...]:
    rows: list[tuple[Cell, ...]] = [
        (str(layer), "the higher half" if up else "the lower half", float(step), float(way))
        for layer, (up, step, way) in enumerate(
            zip(path.turns_up, path.step_prob, path.path_prob, strict=True), start=1
        )
    ]
    left, right = path.interval
    rows.append(("leaf", f"{left:.2f} .. {right:.2f}", None, None))
    rows.append(("place", f"{path.offset:.2f} of the interval", None, None))
    return tuple(rows)


def _ensemble(fit: FitConfig) -> str:
    return f"predictions are the mean of {fit.num_seeds} heads" if fit.num_seeds > 1 else "one head"


def _paper(figure: str) -> str:
    return f"the paper's numbers behind {figure}: {NOT_AVAILABLE}"


def svg_file(figure: str) -> str:
    """A page's figure as a file: plain colours, a size and white paper.

    Viewers of SVG files, unlike browsers, know no CSS variables.
    """
    figure = _VARIABLE.sub(r"\1", figure)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', figure)
    width, height = box.groups() if box else (str(WIDTH), str(HEIGHT))
    paper = f'<rect width="{width}" height="{height}" fill="#ffffff" />'
    opened = figure.index(">") + 1
    head = figure[: opened - 1] + f' width="{width}" height="{height}">'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}{paper}{figure[opened:]}\n'
