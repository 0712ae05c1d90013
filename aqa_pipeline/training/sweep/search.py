"""Which points a sweep tries: a list made beforehand, or what Optuna asks for.

A search hands out trials in blocks and is told their results. Both kinds keep what they know
in one file, so that a sweep goes on after a kill.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from aqa_pipeline.errors import SetupError
from aqa_pipeline.training.sweep.space import Dimension, Point, Space, Value
from aqa_pipeline.training.sweep.trials import Journal, Trial, TrialResult

_RESULT = "result"  # user attribute of an Optuna trial
#: What stands for None and booleans in Optuna's categories, which would warn of them.
_AS_TEXT = "json:"


class Search(Protocol):
    """Where trials come from and results go."""

    def results(self) -> list[TrialResult]:
        """All results so far, also those of earlier calls and of other processes."""
        ...

    def ask(self, count: int) -> list[Trial]:
        """Up to ``count`` trials that nobody has tried; none when the sweep is over."""
        ...

    def tell(self, results: Sequence[TrialResult]) -> None:
        """Write results down."""
        ...


class ListedSearch:
    """Points known beforehand: a grid, or draws.

    Parameters
    ----------
    points : sequence of dict
    journal : Journal
    """

    def __init__(self, points: Sequence[Point], journal: Journal) -> None:
        self._trials = [Trial(number, point) for number, point in enumerate(points)]
        self._journal = journal
        self._results = {r.number: r for r in journal.read() if r.number < len(points)}
        self._asked = set(self._results)

    def results(self) -> list[TrialResult]:
        return [self._results[number] for number in sorted(self._results)]

    def ask(self, count: int) -> list[Trial]:
        fresh = [trial for trial in self._trials if trial.number not in self._asked][:count]
        self._asked |= {trial.number for trial in fresh}
        return fresh

    def tell(self, results: Sequence[TrialResult]) -> None:
        self._journal.append(results)
        self._results |= {result.number: result for result in results}


class TpeSearch:
    """Optuna's tree-structured Parzen estimator, asked for blocks of trials.

    The study is a journal file that several processes, on several machines, may share: each
    asks for trials of its own, learns from the results of all, and stops when all together
    have ``count``. A trial of a process that was killed is never told and does not count.

    Parameters
    ----------
    space : Space
    path : Path
        The journal file.
    count : int
        Trials in all.
    seed : int
        Of the first process; those that join an existing study draw on from their own place.

    Raises
    ------
    SetupError
        If Optuna is not installed.
    """

    def __init__(self, space: Space, path: Path, *, count: int, seed: int) -> None:
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise SetupError(
                f"--search tpe needs the extra optuna ({error}): type "
                "`pip install aqa-pipeline[optuna]`, or --search random"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("optuna").setLevel(logging.ERROR)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        self._count = count
        self._distributions = {d.name: _distribution(d) for d in space.dimensions}
        storage = JournalStorage(JournalFileBackend(str(path)))
        study = optuna.create_study(
            study_name="aqa", storage=storage, direction="maximize", load_if_exists=True
        )
        # Trials that are still running count as bad ones, so that a block is spread out.
        study.sampler = optuna.samplers.TPESampler(
            seed=seed + len(study.trials), constant_liar=True, multivariate=False
        )
        self._study = study

    def results(self) -> list[TrialResult]:
        told = [t.user_attrs[_RESULT] for t in self._study.get_trials(states=self._finished)]
        return [TrialResult.from_dict(json.loads(text)) for text in told]

    def ask(self, count: int) -> list[Trial]:
        missing = self._count - len(self._study.get_trials(states=self._finished))
        trials = []
        for _ in range(min(count, missing)):
            asked = self._study.ask(self._distributions)
            point = {name: _value(value) for name, value in asked.params.items()}
            trials.append(Trial(asked.number, point))
        return trials

    def tell(self, results: Sequence[TrialResult]) -> None:
        from optuna.trial import TrialState

        frozen = {t.number: t for t in self._study.get_trials(deepcopy=False)}
        for result in results:
            text = json.dumps(result.as_dict())
            self._study._storage.set_trial_user_attr(frozen[result.number]._trial_id, _RESULT, text)
            if not math.isfinite(result.score):  # diverged: as bad as can be
                self._study.tell(result.number, -1.0)
            elif result.state == "stopped":
                # A stopped trial's own score still says more than that it was stopped.
                self._study.tell(result.number, result.score)
            else:
                self._study.tell(result.number, result.score, state=TrialState.COMPLETE)


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if dimension.choices:
        return CategoricalDistribution([_plain(value) for value in dimension.choices])
    low, high, log = dimension.low, dimension.high, dimension.log
    if dimension.integer:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def _plain(value: Value) -> Value:
    return f"{_AS_TEXT}{json.dumps(value)}" if value is None or isinstance(value, bool) else value


def _value(value: Value) -> Value:
    if isinstance(value, str) and value.startswith(_AS_TEXT):
        decoded: Value = json.loads(value.removeprefix(_AS_TEXT))
        return decoded
    return value
