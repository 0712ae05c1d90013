"""A sweep: many trials, chosen by validation alone, and the best as a run folder.

``runs/NAME/sweep/`` holds ``settings.json``, ``journal.log`` (an Optuna study: trials and their
results) and ``results.csv``; when all trials are in, the best settings are fitted into
``runs/NAME/`` like any run, and the test split is read for the first and only time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
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
from aqa_pipeline.training.sweep.block import run_block
from aqa_pipeline.training.sweep.plan import (
    SweepPlan,
    open_search,
    trials_at_once,
    waves,
)
from aqa_pipeline.training.sweep.search import importance
from aqa_pipeline.training.sweep.space import configs
from aqa_pipeline.training.sweep.trials import FOLDER, Trial, TrialResult, best_of, results_table

_LOOK_SECONDS = 1.0  #: between two looks at what other processes have finished


@dataclass(frozen=True, eq=False)
class SweepOutcome:
    """What a sweep came to.

    Attributes
    ----------
    best : TrialResult
    results : list of TrialResult
    importance : dict of str to float
        See :func:`aqa_pipeline.training.sweep.search.importance`.
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
    progress: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[str], None] = lambda sentence: None,
) -> SweepOutcome:
    """Run a sweep, or what is left of it, and fit the best settings.

    Parameters
    ----------
    plan : SweepPlan
    progress : callable
        Called as ``progress(done, total)`` with epochs of trials; those that a stopped trial was
        spared are done.
    log : callable
        Called with sentences for the user.

    Raises
    ------
    UsageError
        If the folder holds a sweep with other settings, or a point cannot be trained.
    DataError
        If there is nothing to learn, no trial has a defined score, or the journal is damaged.
    CacheError
        If features are missing.
    SetupError
        If an extra is missing or a cluster cannot be reached.
    """
    notes: list[str] = []

    def note(sentence: str) -> None:
        if sentence not in notes:
            notes.append(sentence)
            log(sentence)

    epochs = _epochs(plan)
    cluster = connect(plan.scheduler) if plan.scheduler else nullcontext()
    with open_search(plan) as search, cluster as client:
        results = search.results()
        if results:
            log(f"{len(results)} trials are done already; going on")

        def within(done: int, _: int = 0) -> None:
            settled = sum(epochs[result.number] for result in results)
            progress(min(settled + done, sum(epochs)), sum(epochs))

        within(0)
        while len(results) < plan.num_trials:
            asked = search.ask(trials_at_once(plan))
            if not asked:
                note("waiting for trials that other processes have begun")
                time.sleep(_LOOK_SECONDS)
                results = search.results()
            for wave in waves(plan, asked):
                for trained, own_notes in _run(plan, wave, results, within, client):
                    search.tell(trained)
                    results = search.results()
                    within(0)
                    for sentence in own_notes:
                        note(sentence)
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
    varied = plan.space.varied
    shares = importance(table, [d.name for d in varied], log=[d.name for d in varied if d.log])
    write_json_atomically(
        plan.folder / FOLDER / "best.json", {**asdict(best), "importance": shares}
    )
    head, fit = configs(best.point, head=plan.head, fit=plan.fit)
    log(f"fitting trial {best.number}, the best of {len(results)}, and reading the test split")
    metrics = fit_dataset(
        plan.source.manifest(),
        FeatureCache.open(plan.source.cache_folder),
        plan.folder,
        head_config=head,
        fit_config=fit,
        device=plan.device,
    )
    return SweepOutcome(best, results, shares, metrics, results_csv, notes)


def _epochs(plan: SweepPlan) -> list[int]:
    """Epochs of each trial over all parts; those of a point that is not known yet by default."""
    parts = len(parts_of(plan.source.manifest()))
    fixed = {d.name: d.choices[0] for d in plan.space.dimensions if d.is_fixed}
    points = plan.points or [fixed] * plan.num_trials
    return [int(point.get("epochs") or plan.fit.epochs) * parts for point in points]


def _run(
    plan: SweepPlan,
    wave: Sequence[Sequence[Trial]],
    results: Sequence[TrialResult],
    progress: Callable[[int, int], None],
    client: Any,
) -> Iterator[tuple[list[TrialResult], list[str]]]:
    """Run the stacks of a wave: on a cluster, in processes, or here."""
    past: dict[str, list[float]] = {}
    for result in results:
        for rung, score in result.rungs.items():
            past.setdefault(rung, []).append(score)
    of_all = torch.get_num_threads()
    own = max(1, len(os.sched_getaffinity(0)) // plan.jobs)
    threads = own if plan.device.type == "cpu" and not client else None
    if not client and plan.jobs == 1:
        try:
            for trials in wave:
                yield run_block(plan, trials, past, threads=threads, progress=progress)
        finally:
            torch.set_num_threads(of_all)
        return
    from joblib import Parallel, delayed, parallel_config

    cluster = {"backend": "dask", "client": client}
    with parallel_config(**(cluster if client else {"backend": "loky", "n_jobs": plan.jobs})):
        # A task is minutes long: no batches of them, and all are queued at once.
        parallel = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
        yield from parallel(
            delayed(run_block)(plan, trials, past, threads=threads) for trials in wave
        )
