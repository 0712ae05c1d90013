"""What a sweep will do: its trials, and how they are put into stacks."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from aqa_pipeline.atomic import write_json_atomically
from aqa_pipeline.config import FitConfig, HeadConfig, SweepConfig
from aqa_pipeline.errors import DataError, UsageError
from aqa_pipeline.runs.config import stored_fit
from aqa_pipeline.training.memory import MOST_MODELS
from aqa_pipeline.training.sweep.block import DataSource, shape_of
from aqa_pipeline.training.sweep.search import ListedSearch, Search, TpeSearch
from aqa_pipeline.training.sweep.space import Dimension, Space, configs
from aqa_pipeline.training.sweep.trials import Journal, Trial

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
            "fit": stored_fit(self.fit),
            "seed": self.config.seed,
        }


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
    largest = min(plan.config.stack or MOST_MODELS, trials_at_once(plan) * plan.fit.num_seeds)
    done = 0
    if plan.search == "tpe":
        if (folder / "study.log").exists():
            done = len(open_search(plan).results())
    else:
        search = ListedSearch(planned_points(plan), Journal(folder / "trials.jsonl"))
        done = len(search.results())
        stacked = [stack for wave in waves(plan, search.ask(plan.num_trials)) for stack in wave]
        stacks = len(stacked)
        members = [len({_member(trial) for trial in stack}) for stack in stacked]
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
