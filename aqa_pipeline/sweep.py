"""A sweep: many trials, chosen by validation alone, and the best as a run folder.

``runs/NAME/sweep/`` holds ``settings.json``, the results (``trials.jsonl``, or Optuna's
``study.log``) and ``results.csv``; when all trials are in, the best settings are fitted into
``runs/NAME/`` like any run, and the test split is read for the first and only time.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from aqa_pipeline.atomic import atomic_path
from aqa_pipeline.clips import parts_of
from aqa_pipeline.config import FitConfig, HeadConfig, SweepConfig
from aqa_pipeline.dask_cluster import connect
from aqa_pipeline.errors import DataError, UsageError
from aqa_pipeline.feature_cache import FeatureCache
from aqa_pipeline.files import write_json_atomically
from aqa_pipeline.fit import fit_dataset
from aqa_pipeline.stack_size import MOST_MODELS
from aqa_pipeline.sweep_block import Block, DataSource, run_block, shape_of
from aqa_pipeline.sweep_search import ListedSearch, Search, TpeSearch
from aqa_pipeline.sweep_space import Dimension, Space, configs
from aqa_pipeline.sweep_trials import (
    Journal,
    Trial,
    TrialResult,
    best_of,
    importance,
    results_table,
)

_log = logging.getLogger(__name__)

FOLDER = "sweep"
_RANDOM_TRIALS = 32
_TPE_BLOCK = 8  #: trials for each process between two looks at the results


@dataclass(frozen=True, eq=False)
class SweepPlan:
    """A sweep before it is run.

    Attributes
    ----------
    source : DataSource
    folder : Path
        The run folder.
    space : Space
    head, fit : HeadConfig, FitConfig
        What is not swept.
    config : SweepConfig
    device : torch.device
    scheduler : str or None
        Of a dask cluster; None: processes of this machine.
    """

    source: DataSource
    folder: Path
    space: Space
    head: HeadConfig
    fit: FitConfig
    config: SweepConfig
    device: torch.device
    scheduler: str | None = None

    @property
    def search(self) -> Literal["grid", "random", "tpe"]:
        """The kind of search, chosen by the space where nobody said."""
        if self.config.search != "auto":
            return self.config.search
        return "grid" if self.space.is_listed and self.config.trials is None else "random"

    @property
    def num_trials(self) -> int:
        if self.search == "grid":
            count = len(self.space.grid())
            return count if self.config.trials is None else min(count, self.config.trials)
        return self.config.trials or _RANDOM_TRIALS

    @property
    def jobs(self) -> int:
        """Processes side by side; one where a GPU does the work."""
        if self.config.jobs is not None:
            return self.config.jobs
        return 1 if self.device.type == "cuda" else max(1, len(os.sched_getaffinity(0)))

    def settings(self) -> dict[str, Any]:
        """What an earlier sweep in the folder must agree with."""
        return {
            "manifest": str(self.source.manifest_path.absolute()),
            "cache": self.source.cache_folder.name,
            "exemplar_key": list(self.source.exemplar_key),
            "space": self.space.as_dict(),
            "search": self.search,
            "head": dataclasses.asdict(self.head),
            "fit": dataclasses.asdict(self.fit),
            "seed": self.config.seed,
        }


@dataclass(frozen=True, eq=False)
class SweepOutcome:
    """What a sweep came to.

    Attributes
    ----------
    best : TrialResult
    results : list of TrialResult
    importance : dict of str to float
        See :func:`aqa_pipeline.sweep_trials.importance`.
    metrics : dict
        ``metrics.json`` of the run folder.
    results_csv : Path
    notes : list of str
    """

    best: TrialResult
    results: list[TrialResult]
    importance: dict[str, float]
    metrics: dict[str, Any]
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
        while asked := search.ask(_ask_for(plan)):
            for wave in _waves(plan, asked):
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


def open_search(plan: SweepPlan) -> Search:
    """The search of a plan, with what earlier calls have found.

    Raises
    ------
    UsageError
        If the folder holds a sweep with other settings, or a point cannot be trained.
    """
    folder = plan.folder / FOLDER
    _agree(plan, folder / "settings.json")
    if plan.search == "tpe":
        search: Search = TpeSearch(
            plan.space, folder / "study.log", count=plan.num_trials, seed=plan.config.seed
        )
    else:
        points = planned_points(plan)
        search = ListedSearch(points, Journal(folder / "trials.jsonl"))
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomically(folder / "settings.json", plan.settings())
    return search


def planned_points(plan: SweepPlan) -> list[dict[str, Any]]:
    """The points of a grid or of draws; each is checked.

    Raises
    ------
    UsageError
        If a point cannot be trained.
    """
    if plan.search == "grid":
        points = plan.space.grid()[: plan.num_trials]
    else:
        points = plan.space.draws(plan.num_trials, seed=plan.config.seed)
    for point in points:
        configs(point, head=plan.head, fit=plan.fit)
    return points


def _agree(plan: SweepPlan, path: Path) -> None:
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    mine = json.loads(json.dumps(plan.settings()))
    differing = [name for name in mine if there.get(name) != mine[name]]
    if differing:
        raise UsageError(
            f"{path.parent}: holds a sweep with another {' and '.join(differing)}; choose another "
            "--run, or --again to throw it away"
        )


def _ask_for(plan: SweepPlan) -> int:
    if plan.search != "tpe":
        return plan.num_trials
    return plan.jobs * min(plan.config.stack or _TPE_BLOCK, MOST_MODELS)


def _waves(plan: SweepPlan, asked: Sequence[Trial]) -> Iterator[list[list[Trial]]]:
    """Stacks of trials, as many at a time as there are processes.

    Between two waves the results are looked at, so that trials without a stack of their own
    shape to be compared in are stopped, too.
    """
    shapes: dict[Any, list[Trial]] = {}
    for trial in asked:
        shape = shape_of(*configs(trial.point, head=plan.head, fit=plan.fit))
        shapes.setdefault(shape, []).append(trial)
    most = max(1, (plan.config.stack or MOST_MODELS) // plan.fit.num_seeds)
    stacks: list[list[Trial]] = []
    for trials in shapes.values():
        # Trials that differ only in M are one training: they stay together.
        ordered = sorted(trials, key=lambda t: (_member(t), t.number))
        share = -(-len(ordered) // plan.jobs) if len(shapes) < plan.jobs else len(ordered)
        size = min(most, share)
        current: list[Trial] = []
        for trial in ordered:
            if len(current) >= size and _member(current[-1]) != _member(trial):
                stacks.append(current)
                current = []
            current.append(trial)
        stacks.append(current)
    for start in range(0, len(stacks), plan.jobs):
        yield stacks[start : start + plan.jobs]


def _member(trial: Trial) -> tuple[float, ...]:
    names = ("learning_rate", "weight_decay", "dropout")
    return tuple(float(trial.point.get(name) or 0.0) for name in names)


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


Run = Callable[
    [list[Block], Callable[[int], None]], Iterator[tuple[list[TrialResult], list[str]]]
]


class _workers:  # noqa: N801 - used as a function
    """Where blocks are run: here, in processes, or on a cluster."""

    def __init__(self, plan: SweepPlan) -> None:
        self._plan = plan
        self._client: Any = None

    def __enter__(self) -> Run:
        if self._plan.scheduler:
            self._client = connect(self._plan.scheduler)
        elif self._plan.jobs == 1:
            return _run_here
        return self._run_elsewhere

    def __exit__(self, *exception: object) -> None:
        if self._client is not None:
            self._client.close()

    def _run_elsewhere(
        self, blocks: list[Block], told: Callable[[int], None]
    ) -> Iterator[tuple[list[TrialResult], list[str]]]:
        from joblib import Parallel, delayed, parallel_config

        backend: dict[str, Any] = (
            {"backend": "dask", "client": self._client}
            if self._client is not None
            else {"backend": "loky", "n_jobs": self._plan.jobs}
        )
        with parallel_config(**backend):
            # A task is minutes long: no batches of them, and all are queued at once.
            parallel = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
            yield from parallel(delayed(run_block)(block) for block in blocks)


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


def plan_summary(plan: SweepPlan) -> dict[str, Any]:
    """What a sweep would do, without doing it; plain values.

    Raises
    ------
    UsageError
        As :func:`open_search`.
    """
    folder = plan.folder / FOLDER
    _agree(plan, folder / "settings.json")
    notes: list[str] = []
    stacks: int | None = None
    largest = min(plan.config.stack or MOST_MODELS, _ask_for(plan) * plan.fit.num_seeds)
    done = 0
    if plan.search == "tpe":
        if (folder / "study.log").exists():
            done = len(open_search(plan).results())
    else:
        search = ListedSearch(planned_points(plan), Journal(folder / "trials.jsonl"))
        done = len(search.results())
        waves = [stack for wave in _waves(plan, search.ask(plan.num_trials)) for stack in wave]
        stacks = len(waves)
        members = [len({_member(trial) for trial in stack}) for stack in waves]
        largest = max(members, default=0) * plan.fit.num_seeds
        if members and largest == plan.fit.num_seeds and len(members) > 1:
            notes.append(
                "every trial has a shape of its own, so none train side by side; learning rate, "
                "weight decay and dropout can vary inside a stack"
            )
    return {
        "search": plan.search,
        "trials": plan.num_trials,
        "done": done,
        "jobs": plan.jobs,
        "stacks": stacks,
        "largest_stack": largest,
        "dimensions": {d.name: _described(d) for d in plan.space.dimensions},
        "notes": notes,
    }


def _described(dimension: Dimension) -> str:
    if dimension.choices:
        return ", ".join("all" if value is None else str(value) for value in dimension.choices)
    log = ", logarithmic" if dimension.log else ""
    steps = f", {dimension.steps} steps" if dimension.steps else ""
    return f"{dimension.low:g} .. {dimension.high:g}{log}{steps}"
