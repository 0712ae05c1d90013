"""Plan of a sweep: its trials, and how they are put into stacks."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from aqa_pipeline.atomic import write_json_atomically
from aqa_pipeline.config import FitConfig, HeadConfig, SweepConfig
from aqa_pipeline.datasets.manifest import Manifest, read_manifest, with_exemplar_key
from aqa_pipeline.errors import DataError, UsageError
from aqa_pipeline.extraction.leases import Leases
from aqa_pipeline.runs.config import stored_fit
from aqa_pipeline.training.memory import MOST_MODELS
from aqa_pipeline.training.sweep.search import JOURNAL, Search, draws
from aqa_pipeline.training.sweep.space import Dimension, Point, Space, configs
from aqa_pipeline.training.sweep.trials import FOLDER, Trial

_TRIALS = 32
_TPE_BLOCK = 8  #: trials for each process between two looks at the results


@dataclass(frozen=True)
class DataSource:
    """Where a sweep finds its clips; the same paths on every machine.

    Attributes
    ----------
    manifest_path, cache_folder : Path
    exemplar_key : tuple of str
        Instead of the protocol's; empty: the protocol's.
    """

    manifest_path: Path
    cache_folder: Path
    exemplar_key: tuple[str, ...] = ()

    def manifest(self) -> Manifest:
        manifest = read_manifest(self.manifest_path)
        return with_exemplar_key(manifest, self.exemplar_key) if self.exemplar_key else manifest


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

    @cached_property
    def points(self) -> list[Point]:
        """The points of a grid or of draws; none where they follow from results.

        Raises
        ------
        UsageError
            If a point cannot be trained.
        """
        points: list[Point] = []
        if self.search == "grid":
            points = self.space.grid()[: self.config.trials]
        elif self.search == "random":
            points = draws(self.space, self.config.trials or _TRIALS, seed=self.config.seed)
        for point in points:
            configs(point, head=self.head, fit=self.fit)
        return points

    @property
    def num_trials(self) -> int:
        return len(self.points) or self.config.trials or _TRIALS

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
            "fit": stored_fit(self.fit),
            "seed": self.config.seed,
        }


@contextmanager
def open_search(plan: SweepPlan) -> Iterator[Search]:
    """The search of a plan, with what earlier calls have found.

    Raises
    ------
    UsageError
        If the folder holds a sweep with other settings, or a point cannot be trained.
    DataError
        If its files are damaged.
    """
    folder = plan.folder / FOLDER
    _agree(plan, folder / "settings.json")
    count, points = plan.num_trials, plan.points
    folder.mkdir(parents=True, exist_ok=True)
    with Leases(folder) as leases:
        seed = plan.config.seed
        search = Search(plan.space, folder, leases, count=count, points=points, seed=seed)
        write_json_atomically(folder / "settings.json", plan.settings())
        yield search


def _agree(plan: SweepPlan, path: Path) -> None:
    mine = json.loads(json.dumps(plan.settings()))
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in mine if there.get(name) != mine[name]]
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if differing:
        raise UsageError(
            f"{path.parent}: holds a sweep with another {' and '.join(differing)}; choose another "
            "--run, or --again to throw it away"
        )


def shape_of(head: HeadConfig, fit: FitConfig) -> tuple[HeadConfig, FitConfig]:
    """What all models of a stack share: everything but the members' own and M."""
    return (
        dataclasses.replace(head, dropout=0.0),
        dataclasses.replace(fit, learning_rate=0.0, weight_decay=0.0, num_exemplars=None),
    )


def member_of(point: Point) -> tuple[float, ...]:
    """What a model of a stack has of its own; trials that differ in M alone are one model."""
    names = ("learning_rate", "weight_decay", "dropout")
    return tuple(float(point.get(name) or 0.0) for name in names)


def trials_at_once(plan: SweepPlan) -> int:
    if plan.search != "tpe":
        return plan.num_trials
    return plan.jobs * min(plan.config.stack or _TPE_BLOCK, MOST_MODELS)


def waves(plan: SweepPlan, asked: Sequence[Trial]) -> Iterator[list[list[Trial]]]:
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
        ordered = sorted(trials, key=lambda t: (member_of(t.point), t.number))
        share = -(-len(ordered) // plan.jobs) if len(shapes) < plan.jobs else len(ordered)
        size = min(most, share)
        current: list[Trial] = []
        for trial in ordered:
            if len(current) >= size and member_of(current[-1].point) != member_of(trial.point):
                stacks.append(current)
                current = []
            current.append(trial)
        stacks.append(current)
    for start in range(0, len(stacks), plan.jobs):
        yield stacks[start : start + plan.jobs]


def plan_summary(plan: SweepPlan) -> dict[str, Any]:
    """What a sweep would do, without doing it; plain values.

    Raises
    ------
    UsageError, DataError
        As :func:`open_search`.
    """
    folder = plan.folder / FOLDER
    _agree(plan, folder / "settings.json")
    notes: list[str] = []
    stacks: int | None = None
    largest = min(plan.config.stack or MOST_MODELS, trials_at_once(plan) * plan.fit.num_seeds)
    done: set[int] = set()
    if (folder / JOURNAL).exists():
        with open_search(plan) as search:
            done = {result.number for result in search.results()}
    if plan.points:
        left = [Trial(n, point) for n, point in enumerate(plan.points) if n not in done]
        stacked = [stack for wave in waves(plan, left) for stack in wave]
        stacks = len(stacked)
        members = [len({member_of(trial.point) for trial in stack}) for stack in stacked]
        largest = max(members, default=0) * plan.fit.num_seeds
        if members and largest == plan.fit.num_seeds and len(members) > 1:
            notes.append(
                "every trial has a shape of its own, so none train side by side; learning rate, "
                "weight decay and dropout can vary inside a stack"
            )
    return {
        "search": plan.search,
        "trials": plan.num_trials,
        "done": len(done),
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
