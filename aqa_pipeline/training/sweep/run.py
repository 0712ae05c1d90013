"""A sweep: many trials, chosen by validation alone, and the best as a run folder.

``runs/NAME/sweep/`` holds ``settings.json``, the results (``trials.jsonl``, or Optuna's
``study.log``) and ``results.csv``; when all trials are in, the best settings are fitted into
``runs/NAME/`` like any run, and the test split is read for the first and only time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from aqa_pipeline.atomic import atomic_path, write_json_atomically
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.dask_client import connect
from aqa_pipeline.datasets.parts import parts_of
from aqa_pipeline.errors import DataError
from aqa_pipeline.runs.metrics import AverageMetrics, Metrics
from aqa_pipeline.training.fit import fit_dataset
from aqa_pipeline.training.sweep.block import Block, run_block
from aqa_pipeline.training.sweep.plan import (
    FOLDER,
    SweepPlan,
    open_search,
    planned_points,
    trials_at_once,
    waves,
)
from aqa_pipeline.training.sweep.space import configs
from aqa_pipeline.training.sweep.trials import (
    Trial,
    TrialResult,
    best_of,
    importance,
    results_table,
)


@dataclass(frozen=True, eq=False)
class SweepOutcome:
    """What a sweep came to.

    Attributes
    ----------
    best : TrialResult
    results : list of TrialResult
    importance : dict of str to float
        See :func:`aqa_pipeline.training.sweep.trials.importance`.
    metrics : Metrics or AverageMetrics
        Of the best settings.
    results_csv : Path
    notes : list of str
    """

    best: TrialResult
    results: list[TrialResult]
    importance: dict[str, float]
    metrics: Metrics | AverageMetrics
    results_csv: Path
    notes: list[str] = field(default_factory=list)


def run_sweep(
    plan: SweepPlan,
    *,
    advance: Callable[[int, int], None] = lambda done, total: None,
    announce: Callable[[str], None] = lambda sentence: None,
) -> SweepOutcome:
    """Run a sweep, or what is left of it, and fit the best settings.

    Parameters
    ----------
    plan : SweepPlan
    advance : callable
        Told ``(epochs of trials done, in all)``.
    announce : callable
        Told sentences for the user.

    Raises
    ------
    UsageError
        If the folder holds a sweep with other settings, or a point cannot be trained.
    DataError
        If there is nothing to learn, or no trial has a defined score.
    CacheError
        If features are missing.
    SetupError
        If an extra is missing or a cluster cannot be reached.
    """
    search = open_search(plan)
    before = search.results()
    if before:
        announce(f"{len(before)} trials are done already; going on")
    parts = len(parts_of(plan.source.manifest()))
    progress = _Progress(plan, parts, [r.number for r in before], advance)
    notes: list[str] = []
    with _workers(plan) as run:
        while asked := search.ask(trials_at_once(plan)):
            for wave in waves(plan, asked):
                blocks = [_block(plan, trials, search.results()) for trials in wave]
                for results, own_notes in run(blocks, progress.epochs):
                    search.tell(results)
                    progress.settle(search.results())
                    for note in own_notes:
                        if note not in notes:
                            notes.append(note)
                            announce(note)
    results = search.results()
    best = best_of(results)
    if best is None:
        raise DataError(
            f"{plan.folder}: none of {len(results)} trials has a defined score on the validation "
            "part; are there enough clips, and learning rates that do not diverge?"
        )
    table = results_table(results, plan.space)
    results_csv = plan.folder / FOLDER / "results.csv"
    with atomic_path(results_csv) as temporary:
        table.to_csv(temporary, index=False)
    shares = importance(table, [d.name for d in plan.space.varied])
    write_json_atomically(
        plan.folder / FOLDER / "best.json", {**best.as_dict(), "importance": shares}
    )
    head, fit = configs(best.point, head=plan.head, fit=plan.fit)
    announce(f"fitting trial {best.number}, the best of {len(results)}, and reading the test split")
    metrics = fit_dataset(
        plan.source.manifest(),
        FeatureCache.open(plan.source.cache_folder),
        plan.folder,
        head_config=head,
        fit_config=fit,
        device=plan.device,
    )
    return SweepOutcome(best, results, shares, metrics, results_csv, notes)


def _block(plan: SweepPlan, trials: Sequence[Trial], results: Sequence[TrialResult]) -> Block:
    past: dict[str, list[float]] = {}
    for result in results:
        for rung, score in result.rungs.items():
            past.setdefault(rung, []).append(score)
    on_cpu, cores = plan.device.type == "cpu", len(os.sched_getaffinity(0))
    return Block(
        source=plan.source,
        trials=tuple(trials),
        head=plan.head,
        fit=plan.fit,
        device=str(plan.device),
        threads=max(1, cores // plan.jobs) if on_cpu and not plan.scheduler else None,
        sharers=1 if plan.scheduler else plan.jobs,
        stack=plan.config.stack,
        early_stop=plan.config.early_stop,
        past={rung: tuple(scores) for rung, scores in past.items()},
    )


Run = Callable[[list[Block], Callable[[int], None]], Iterator[tuple[list[TrialResult], list[str]]]]


@contextmanager
def _workers(plan: SweepPlan) -> Iterator[Run]:
    """Where blocks are run: here, in processes, or on a cluster."""
    if plan.scheduler:
        with connect(plan.scheduler) as client:
            yield _in_parallel({"backend": "dask", "client": client})
    elif plan.jobs > 1:
        yield _in_parallel({"backend": "loky", "n_jobs": plan.jobs})
    else:
        yield _run_here


def _in_parallel(backend: dict[str, Any]) -> Run:
    def run(
        blocks: list[Block], told: Callable[[int], None]
    ) -> Iterator[tuple[list[TrialResult], list[str]]]:
        from joblib import Parallel, delayed, parallel_config

        with parallel_config(**backend):
            # A task is minutes long: no batches of them, and all are queued at once.
            parallel = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
            yield from parallel(delayed(run_block)(block) for block in blocks)

    return run


def _run_here(
    blocks: list[Block], told: Callable[[int], None]
) -> Iterator[tuple[list[TrialResult], list[str]]]:
    threads = torch.get_num_threads()
    try:
        for block in blocks:
            yield run_block(block, advance=told)
    finally:
        torch.set_num_threads(threads)


class _Progress:
    """Epochs of trials done and in all; what a stopped trial was spared counts as done."""

    def __init__(
        self,
        plan: SweepPlan,
        parts: int,
        finished: Sequence[int],
        advance: Callable[[int, int], None],
    ) -> None:
        self._plan, self._parts, self._advance = plan, parts, advance
        self._settled = self._of(finished)
        self._since = 0
        usual = plan.fit.epochs * parts
        self._total = (
            usual * plan.num_trials
            if plan.search == "tpe"
            else sum(self._epochs(point) for point in planned_points(plan))
        )
        advance(self._settled, self._total)

    def _epochs(self, point: Any) -> int:
        return int(point.get("epochs", self._plan.fit.epochs)) * self._parts

    def _of(self, numbers: Sequence[int]) -> int:
        if self._plan.search == "tpe":
            return len(numbers) * self._plan.fit.epochs * self._parts
        points = planned_points(self._plan)
        return sum(self._epochs(points[number]) for number in numbers)

    def epochs(self, count: int) -> None:
        """Some epochs of a block that is still running."""
        self._since += count
        self._advance(min(self._settled + self._since, self._total), self._total)

    def settle(self, results: Sequence[TrialResult]) -> None:
        """Blocks are done: count their trials as a whole."""
        self._settled, self._since = self._of([r.number for r in results]), 0
        self._advance(min(self._settled, self._total), self._total)
