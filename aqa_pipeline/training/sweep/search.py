"""Optuna study of a sweep: hands out trials and keeps their results in a journal file.

The study lives in the run folder, and several processes, on several machines, may share it. A
trial is running from the moment it is handed out. The process that has it holds a lease; the
trial of a process that was killed is handed out again, with the same number and settings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState, create_trial

from aqa_pipeline.atomic import storage_error
from aqa_pipeline.errors import DataError
from aqa_pipeline.extraction.leases import Leases
from aqa_pipeline.training.sweep.space import Point, Space
from aqa_pipeline.training.sweep.trials import Trial, TrialResult

JOURNAL = "journal.log"
_FEWEST_TO_COMPARE = 4  #: trials, before one of them may be stopped
_FEWEST_TO_WEIGH = 8  #: trials, before the importance of settings is looked for
_BEST_TRIALS = 5  #: PED-ANOVA compares at least so many with all
_LOCK_SECONDS = 10  #: a lock this old is that of a killed process; writing takes milliseconds
#: What a line that was tampered with makes of its replay.
_DAMAGE = (LookupError, ValueError, TypeError, AttributeError, AssertionError, RecursionError)
_RESULT = "result"  # user attribute of an Optuna trial


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep Optuna's log and warnings from the user, and its settings as they were."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


class Search:
    """Trials of a sweep, asked for in blocks.

    Parameters
    ----------
    space : Space
    folder : Path
        Of the journal; it must exist.
    leases : Leases
        Of this process.
    count : int
        Trials in total.
    points : sequence of dict
        One per trial, where they are known beforehand: a grid, or :func:`draws`. Empty: Optuna's
        tree-structured Parzen estimator chooses them from the results so far.
    seed : int
        Of the estimator; a process that joins an existing study draws from a place of its own.

    Raises
    ------
    DataError
        If the journal is damaged.
    SetupError
        If it cannot be written.
    """

    def __init__(
        self,
        space: Space,
        folder: Path,
        leases: Leases,
        *,
        count: int,
        points: Sequence[Point],
        seed: int = 0,
    ) -> None:
        self._space, self._leases, self._count = space, leases, count
        self._path = folder / JOURNAL
        self._asked: dict[int, optuna.Trial] = {}
        with self._journal():
            self._file = _JournalFile(self._path)
            self._study = optuna.create_study(
                study_name="aqa",
                storage=JournalStorage(self._file),
                direction="maximize",
                load_if_exists=True,
            )
            before = len(self._study.get_trials(deepcopy=False))
            self._study.sampler = (
                _ListSampler(points)
                if points
                # Running trials count as bad ones, so that a block is spread out.
                else optuna.samplers.TPESampler(seed=seed + before, constant_liar=True)
            )
            self.results()

    def results(self) -> list[TrialResult]:
        """All results so far, also those of earlier calls and of other processes."""
        finished = (TrialState.COMPLETE, TrialState.PRUNED)
        with self._journal():
            trials = self._study.get_trials(deepcopy=False, states=finished)
            told = [trial.user_attrs[_RESULT] for trial in trials if trial.number < self._count]
            return [TrialResult(**result) for result in told]

    def ask(self, count: int) -> list[Trial]:
        """Up to ``count`` trials that nobody is working on; those of killed processes first."""
        mine: list[optuna.Trial] = []
        with self._journal():
            trials = self._study.get_trials(deepcopy=False)
            for trial in trials[: self._count]:
                if len(mine) == count:
                    break
                left = trial.state == TrialState.RUNNING and trial.number not in self._asked
                if left and self._leases.take(str(trial.number)):
                    mine.append(optuna.Trial(self._study, trial._trial_id))
            created = len(trials)
            while len(mine) < count and created < self._count:
                asked = self._study.ask()
                created = asked.number + 1  # other processes create trials, too
                if created <= self._count and self._leases.take(str(asked.number)):
                    mine.append(asked)
            self._asked |= {trial.number: trial for trial in mine}
            return [Trial(trial.number, _suggested(trial, self._space)) for trial in mine]

    def tell(self, results: Sequence[TrialResult]) -> None:
        """Write results down; they are on the disk before the next begins."""
        with self._journal():
            for result in results:
                trial = self._asked[result.number]
                # Where leases do not work, another process may have been quicker.
                with contextlib.suppress(UpdateFinishedTrialError):
                    for step, score in enumerate(result.rungs.values()):
                        trial.report(score, step)
                    trial.set_user_attr(_RESULT, dataclasses.asdict(result))
                    if result.state == "stopped":
                        state, value = TrialState.PRUNED, None
                    else:  # one that diverged is as bad as can be
                        state = TrialState.COMPLETE
                        value = result.score if math.isfinite(result.score) else -1.0
                    self._study.tell(trial, value, state=state, skip_if_finished=True)
            self._file.sync()
        self._leases.release([str(result.number) for result in results])

    @contextlib.contextmanager
    def _journal(self) -> Iterator[None]:
        """Where the journal is read or written: Optuna keeps silent, errors are a sentence."""
        try:
            with _quietly():
                yield
        except OSError as error:
            raise storage_error(error, self._path) from error
        except _DAMAGE as error:
            raise DataError(
                f"{self._path}: damaged ({error or type(error).__name__}); --again throws it away"
            ) from error


class _JournalFile(JournalFileBackend):
    """Optuna's journal file, which a kill at any moment does not damage.

    What was written of a last line is cut off before the next one. The lock is a file made with
    O_EXCL, which holds on NFS too. Lines reach the disk by :meth:`sync`, not each by itself.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._exclusive = JournalFileOpenLock(str(path), grace_period=_LOCK_SECONDS)
        super().__init__(str(path), self._exclusive)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._exclusive.acquire()
        try:
            with self._path.open("r+b") as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        file.truncate(self._path.read_bytes().rfind(b"\n") + 1)
                        file.seek(0, os.SEEK_END)
                file.write(lines.encode())
        finally:
            with contextlib.suppress(RuntimeError):  # this process stood still for so long
                self._exclusive.release()

    def sync(self) -> None:
        with self._path.open("ab") as file:
            os.fsync(file.fileno())


class _ListSampler(optuna.samplers.BaseSampler):
    """The point of a trial by its number: Optuna's grid sampler shuffles."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = points

    def infer_relative_search_space(self, *_: Any) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, *_: Any) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Any, trial: Any, param_name: str, param_distribution: Any
    ) -> Any:
        return self._points[trial.number][param_name]


def _suggested(trial: optuna.Trial, space: Space) -> Point:
    point: Point = {}
    for d in space.dimensions:
        if d.is_fixed:
            point[d.name] = d.choices[0]
        elif d.choices:
            point[d.name] = trial.suggest_categorical(d.name, d.choices)
        elif d.integer:
            point[d.name] = trial.suggest_int(d.name, int(d.low), int(d.high), log=d.log)
        else:
            point[d.name] = trial.suggest_float(d.name, d.low, d.high, log=d.log)
    return point


@_quietly()
def draws(space: Space, count: int, *, seed: int) -> list[Point]:
    """Points by chance; the first are the same whatever the count."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [_suggested(study.ask(), space) for _ in range(count)]


@_quietly()
def below_median(scores: Sequence[float], others: Sequence[float]) -> list[bool]:
    """Scores at a rung that Optuna's median pruner gives up.

    Parameters
    ----------
    scores : sequence of float
        Of trials that have come to the rung side by side; NaN is below all.
    others : sequence of float
        Of trials that came to it before.
    """
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [create_trial(value=0.0, intermediate_values={0: score}) for score in (*scores, *others)]
    )
    pruner = optuna.pruners.MedianPruner(n_startup_trials=_FEWEST_TO_COMPARE)
    trials = study.get_trials(deepcopy=False)
    return [pruner.prune(study, trial) for trial in trials[: len(scores)]]


@_quietly()
def importance(
    table: pd.DataFrame, names: Sequence[str], *, log: Sequence[str] = ()
) -> dict[str, float]:
    """How much each setting sets the best trials apart from all, as shares of 1.

    Optuna's PED-ANOVA on the best tenth of the trials, at least five of them. A hint where to
    look: settings may work together, and few trials differ by chance.

    Parameters
    ----------
    table : DataFrame
        See :func:`~aqa_pipeline.training.sweep.trials.results_table`; stopped trials count with
        the score they had.
    names : sequence of str
        Columns of the settings.
    log : sequence of str
        Those with a logarithmic range.

    Returns
    -------
    dict of str to float
        NaN with fewer than 8 trials, equal scores or a single setting. Largest first.
    """
    known = table[np.isfinite(table["score"].astype(float))] if len(table) else table
    if len(known) < _FEWEST_TO_WEIGH or len(names) < 2 or not known["score"].std() > 0:
        return dict.fromkeys(names, math.nan)
    distributions = {name: _distribution(known[name], log=name in log) for name in names}
    study = optuna.create_study(direction="maximize")
    for row in known.to_dict("records"):
        params = {name: row[name] for name in names}
        study.add_trial(
            create_trial(value=row["score"], params=params, distributions=distributions)
        )
    # Here, because it imports scikit-learn where there is one, which takes its time.
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    best = max(0.1, min(0.5, _BEST_TRIALS / len(known)))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=best)
    shares = get_param_importances(study, evaluator=evaluator, params=list(names))
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _distribution(values: pd.Series, *, log: bool) -> BaseDistribution:
    if values.nunique() <= 6 or not pd.api.types.is_numeric_dtype(values):
        return CategoricalDistribution(values.drop_duplicates().tolist())
    return FloatDistribution(float(values.min()), float(values.max()), log=log)
