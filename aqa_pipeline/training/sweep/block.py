"""One process's work in a sweep: a block of trials of one shape, trained as stacks.

A block's trials differ in learning rate, weight decay, dropout and M alone. Those that differ
only in M (the exemplars that vote) are one model, evaluated several times: a *member*.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from aqa_pipeline.cache.load import SplitClips, load_split, load_views
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import ModelSettings, Protocol
from aqa_pipeline.core.metrics import fisher_mean
from aqa_pipeline.datasets.parts import Part, parts_of
from aqa_pipeline.datasets.protocol import without_difficulty
from aqa_pipeline.device import free_bytes, is_shortage, release_memory, too_large
from aqa_pipeline.training.memory import MOST_MODELS, bytes_a_model, largest_stack
from aqa_pipeline.training.stack import Stack
from aqa_pipeline.training.sweep.plan import DataSource, SweepPlan, member_of
from aqa_pipeline.training.sweep.search import below_median
from aqa_pipeline.training.sweep.space import configs
from aqa_pipeline.training.sweep.trials import Trial, TrialResult

#: Shares of the epochs after which the worse half is given up.
RUNGS = (0.25, 0.5)

Member = list[TrialResult]


def run_block(
    plan: SweepPlan,
    trials: Sequence[Trial],
    past: Mapping[str, Sequence[float]],
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[TrialResult], list[str]]:
    """Train the trials of a block.

    Parameters
    ----------
    plan : SweepPlan
    trials : sequence of Trial
        Of one shape, see :func:`~aqa_pipeline.training.sweep.plan.shape_of`.
    past : dict of str to sequence of float
        Scores at each rung of trials that are finished.
    threads : int or None
        Of this process; None: as torch chooses.
    progress : callable
        Called as ``progress(done, total)`` with epochs of single trials; ``done`` falls where
        some are to be done again.

    Returns
    -------
    results : list of TrialResult
    notes : list of str
        What the user should know, such as a stack that was made smaller.

    Raises
    ------
    DataError, CacheError
        As :func:`aqa_pipeline.cache.load.load_split`.
    SetupError
        If memory runs out even with the models of one trial.
    """
    if threads:
        torch.set_num_threads(threads)
    manifest = plan.source.manifest()
    parts = parts_of(manifest)
    block = _Block(plan, trials, past, len(parts), progress)
    for number, part in enumerate(parts):
        block.train(part, number)
    categories = [part.category for part in parts]
    for trial in block.trials:
        trial.score = _mean_score(trial, categories, manifest.protocol.rho_average)
    return block.trials, block.notes


class _Block:
    """Trials on their way through the parts; see :func:`run_block`."""

    def __init__(
        self,
        plan: SweepPlan,
        trials: Sequence[Trial],
        past: Mapping[str, Sequence[float]],
        num_parts: int,
        progress: Callable[[int, int], None],
    ) -> None:
        self.trials = [TrialResult(trial.number, trial.point) for trial in trials]
        self.notes: list[str] = []
        self._plan, self._past, self._progress = plan, past, progress
        self._head, self._fit = configs(trials[0].point, head=plan.head, fit=plan.fit)
        self._done, self._total = 0, self._fit.epochs * num_parts * len(trials)

    def train(self, part: Part, number: int) -> None:
        """Train in a part, in as many stacks as memory asks for, what was not given up."""
        seeds, device = self._fit.num_seeds, self._plan.device
        if device.type == "cuda":
            release_memory(device)  # of the part before
        averaged = self._head.aggregation == "mean"
        self._clips, self._protocol, self._views = _load(
            self._plan.source, part, self._fit.use_difficulty, self._fit.views, averaged
        )
        running = [trial for trial in self.trials if trial.state == "done"]
        self._advance(self._fit.epochs * (len(self.trials) - len(running)))
        members: dict[tuple[float, ...], Member] = {}
        for trial in running:
            members.setdefault(member_of(trial.point), []).append(trial)
        most = self._stack_size() // seeds
        every = list(members.values())
        waiting = [every[i : i + most] for i in range(0, len(every), most)]
        while waiting:
            stack = waiting.pop(0)
            if self._fits(stack, number):
                continue
            release_memory(device)
            if len(stack) == 1:
                raise too_large(device)
            half = -(-len(stack) // 2)
            waiting = [stack[:half], stack[half:], *waiting]
            self.notes.append(
                f"stacks of {half * seeds} models instead of {len(stack) * seeds}: memory ran out"
            )

    def _advance(self, epochs: int) -> None:
        self._done += epochs
        self._progress(self._done, self._total)

    def _stack_size(self) -> int:
        """Models side by side; never less than the seeds of one trial."""
        sharers = 1 if self._plan.scheduler else self._plan.jobs
        dropout = any(trial.point.get("dropout", self._head.dropout) for trial in self.trials)
        widest = dataclasses.replace(self._head, dropout=0.5 if dropout else 0.0)
        device, seeds = self._plan.device, self._fit.num_seeds
        model_bytes = bytes_a_model(self._clips.train, widest, self._fit, device=device)
        free = free_bytes(device)
        fitting = largest_stack(model_bytes, free=free, sharers=sharers)
        wanted = min(self._plan.config.stack or MOST_MODELS, len(self.trials) * seeds)
        if fitting < wanted:
            self.notes.append(
                f"stacks of {fitting} models instead of {wanted}: each takes about "
                f"{model_bytes / 1e6:.0f} MB, and {free / 1e9:.1f} GB are free"
                + (f" for {sharers} processes" if sharers > 1 else "")
            )
        return max(min(fitting, wanted), seeds)

    def _fits(self, members: list[Member], number: int) -> bool:
        """Train a stack; False, and nothing is changed, if memory runs out."""
        everyone = [trial for member in members for trial in member]
        before = [copy.deepcopy(trial.__dict__) for trial in everyone]
        done = self._done
        try:
            self._train_stack(members, number)
        except RuntimeError as error:
            if not is_shortage(error):
                raise
        else:
            return True
        for trial, fields in zip(everyone, before, strict=True):
            trial.__dict__.update(fields)
        self._advance(done - self._done)
        return False

    def _train_stack(self, members: list[Member], number: int) -> None:
        started = time.perf_counter()
        fit, seeds = self._fit, self._fit.num_seeds
        settings = [
            configs(member[0].point, head=self._plan.head, fit=self._plan.fit) for member in members
        ]
        stack = Stack(
            self._clips.train,
            [ModelSettings.of(own_fit, own_head) for own_head, own_fit in settings],
            head_config=settings[0][0],
            config=settings[0][1],
            score_range=self._protocol.score_range,
            epsilon=self._protocol.epsilon,
            device=self._plan.device,
            views=self._views,
            num_exemplars=[
                [trial.point.get("num_exemplars", fit.num_exemplars) for trial in member]  # type: ignore[misc]
                for member in members
            ],
            keep_states=False,
        )
        everyone = [trial for member in members for trial in member]
        for trial in everyone:
            trial.stack = max(trial.stack, len(members) * seeds)
        early = RUNGS if self._plan.config.early_stop else ()
        rungs = {math.ceil(share * fit.epochs): f"{number}:{share:g}" for share in early}
        for epoch in range(1, fit.epochs + 1):
            stack.run_epoch()
            self._advance(sum(trial.state == "done" for trial in everyone))
            if epoch not in rungs or epoch == fit.epochs:
                continue
            self._stop_hopeless(_scores(stack, members, seeds), rungs[epoch], epoch)
            kept = [i for i, member in enumerate(members) if any(t.state == "done" for t in member)]
            if len(kept) < len(members):
                members = [members[i] for i in kept]
                if not members:  # earlier waves had better ones: nobody is left
                    break
                stack.keep([i * seeds + seed for i in kept for seed in range(seeds)])
        for trial, score, best_epoch in _scores(stack, members, seeds):
            if trial.state == "done":
                _settle(trial, score, best_epoch, fit.epochs)
        seconds = (time.perf_counter() - started) / len(everyone)
        for trial in everyone:
            trial.seconds += seconds

    def _stop_hopeless(
        self, scores: list[tuple[TrialResult, float, list[int]]], rung: str, epoch: int
    ) -> None:
        """Give up the trials of a stack that lie below the median at a rung."""
        running = [reached for reached in scores if reached[0].state == "done"]
        hopeless = below_median([score for _, score, _ in running], self._past.get(rung, ()))
        for (trial, score, best_epoch), is_hopeless in zip(running, hopeless, strict=True):
            trial.rungs[rung] = score
            if is_hopeless:
                trial.state = "stopped"
                _settle(trial, score, best_epoch, epoch)
        self._advance(sum(hopeless) * (self._fit.epochs - epoch))


@lru_cache(maxsize=2)
def _load(
    source: DataSource, part: Part, use_difficulty: bool, with_views: bool, averaged: bool
) -> tuple[SplitClips, Protocol, npt.NDArray[np.float32] | None]:
    manifest = source.manifest()
    if not use_difficulty:
        protocol = without_difficulty(manifest.protocol)
        manifest = dataclasses.replace(manifest, protocol=protocol)
    cache = FeatureCache.open(source.cache_folder)
    clips = load_split(manifest, cache, part)
    views = None
    if with_views:
        views = load_views(manifest, cache, clips.train.clip_id, averaged=averaged)
    return clips, manifest.protocol, views


def _scores(
    stack: Stack, members: list[Member], num_seeds: int
) -> list[tuple[TrialResult, float, list[int]]]:
    """Score and best epochs (one per seed) of each trial of a stack so far."""
    rho, epoch = stack.selection.best_rho, stack.selection.best_epoch
    scores, first = [], 0
    for member in members:
        for place, trial in enumerate(member):
            own = [first + seed * len(member) + place for seed in range(num_seeds)]
            score = float(np.mean([rho[j] for j in own]))
            scores.append((trial, score, [epoch[j] for j in own]))
        first += num_seeds * len(member)
    return scores


def _settle(trial: TrialResult, score: float, best_epoch: list[int], epochs: int) -> None:
    """Write down what a trial came to in a part."""
    trial.per_part.append(score)
    trial.best_epoch += best_epoch
    trial.epochs = epochs


def _mean_score(trial: TrialResult, categories: Sequence[str | None], rho_average: str) -> float:
    by_category: dict[str | None, list[float]] = {}
    for category, score in zip(categories, trial.per_part, strict=False):
        by_category.setdefault(category, []).append(score)
    means = [float(np.mean(scores)) for scores in by_category.values()]
    # fisher_mean leaves out what is not defined: a trial with such a part would look better.
    fisher = len(means) > 1 and rho_average == "fisher" and np.isfinite(means).all()
    return fisher_mean(means) if fisher else float(np.mean(means))
