"""One process's work in a sweep: trials of one shape, trained as stacks.

A block's trials differ in learning rate, weight decay, dropout and M alone. Those that differ
only in M (the exemplars that vote) are one training, judged several times.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aqa_pipeline.cache.load import SplitClips, load_split, load_views
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import FitConfig, HeadConfig, ModelSettings, Protocol
from aqa_pipeline.core.metrics import fisher_mean
from aqa_pipeline.datasets.manifest import Manifest, read_manifest, with_exemplar_key
from aqa_pipeline.datasets.parts import Part, parts_of
from aqa_pipeline.datasets.protocol import without_difficulty
from aqa_pipeline.device import free_bytes, is_shortage, release_memory, too_large
from aqa_pipeline.training.memory import MOST_MODELS, bytes_a_model, largest_stack
from aqa_pipeline.training.stack import Stack
from aqa_pipeline.training.sweep.search import below_median
from aqa_pipeline.training.sweep.space import Point, configs
from aqa_pipeline.training.sweep.trials import Trial, TrialResult

#: Shares of the epochs after which the worse half is given up.
RUNGS = (0.25, 0.5)


@dataclass(frozen=True)
class DataSource:
    """Where a block finds its clips; the same paths on every machine.

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


@dataclass(frozen=True)
class Block:
    """Work for one process.

    Attributes
    ----------
    source : DataSource
    trials : tuple of Trial
        Of one shape, see :func:`shape_of`.
    head, fit : HeadConfig, FitConfig
        What no trial changes.
    device : str
    threads : int or None
        Of the process; None: as torch chooses.
    sharers : int
        Processes in the same memory.
    stack : int or None
        Most models side by side; None: chosen from free memory.
    early_stop : bool
    past : dict of str to tuple of float
        Scores at each rung of trials that are finished.
    """

    source: DataSource
    trials: tuple[Trial, ...]
    head: HeadConfig
    fit: FitConfig
    device: str = "cpu"
    threads: int | None = None
    sharers: int = 1
    stack: int | None = None
    early_stop: bool = True
    past: dict[str, tuple[float, ...]] = field(default_factory=dict)


def shape_of(head: HeadConfig, fit: FitConfig) -> tuple[HeadConfig, FitConfig]:
    """What all models of a stack share: everything but the members' own and M."""
    return (
        dataclasses.replace(head, dropout=0.0),
        dataclasses.replace(fit, learning_rate=0.0, weight_decay=0.0, num_exemplars=None),
    )


def run_block(
    block: Block, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[list[TrialResult], list[str]]:
    """Train the trials of a block.

    Parameters
    ----------
    block : Block
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
    if block.threads:
        torch.set_num_threads(block.threads)
    device = torch.device(block.device)
    head, fit = configs(block.trials[0].point, head=block.head, fit=block.fit)
    manifest = block.source.manifest()
    parts = parts_of(manifest)
    results = [TrialResult(trial.number, trial.point) for trial in block.trials]
    notes: list[str] = []
    total, done = fit.epochs * len(parts) * len(results), 0

    def advance(epochs: int) -> None:
        nonlocal done
        done += epochs
        progress(done, total)

    for number, part in enumerate(parts):
        clips, protocol, views = _load(
            block.source, part, fit.use_difficulty, fit.views, head.aggregation == "mean"
        )
        running = [trial for trial in results if trial.state == "done"]
        if device.type == "cuda":
            release_memory(device)  # of the part before
        size = _stack_size(block, clips, head, fit, device, notes)
        advance(fit.epochs * (len(results) - len(running)))
        data = {"clips": clips, "protocol": protocol, "views": views, "device": device}
        waiting = _groups(running, size // fit.num_seeds)
        while waiting:
            group = waiting.pop(0)
            if not _fits(block, group, number, advance=advance, **data):
                waiting = [*_halved(group, fit.num_seeds, device, notes), *waiting]
    categories = [part.category for part in parts]
    for trial in results:
        trial.score = _mean_score(trial, categories, manifest.protocol.rho_average)
    return results, notes


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


def _stack_size(
    block: Block,
    clips: SplitClips,
    head: HeadConfig,
    fit: FitConfig,
    device: torch.device,
    notes: list[str],
) -> int:
    """Models side by side; never less than the seeds of one trial."""
    dropout = any(trial.point.get("dropout", head.dropout) for trial in block.trials)
    widest = dataclasses.replace(head, dropout=0.5 if dropout else 0.0)
    model_bytes = bytes_a_model(clips.train, widest, fit, device=device)
    free = free_bytes(device)
    fitting = largest_stack(model_bytes, free=free, sharers=block.sharers)
    wanted = min(block.stack or MOST_MODELS, len(block.trials) * fit.num_seeds)
    if fitting < wanted:
        note = (
            f"stacks of {fitting} models instead of {wanted}: each takes about "
            f"{model_bytes / 1e6:.0f} MB, and {free / 1e9:.1f} GB are free"
            + (f" for {block.sharers} processes" if block.sharers > 1 else "")
        )
        if note not in notes:
            notes.append(note)
    return max(min(fitting, wanted), fit.num_seeds)


def member_of(point: Point) -> tuple[float, ...]:
    """What a model of a stack has of its own; trials that differ in M alone are one model."""
    names = ("learning_rate", "weight_decay", "dropout")
    return tuple(float(point.get(name) or 0.0) for name in names)


def _groups(running: Sequence[TrialResult], most: int) -> list[list[list[TrialResult]]]:
    """Stacks of members; a member is the trials that differ in M alone."""
    members: dict[tuple[float, ...], list[TrialResult]] = {}
    for trial in running:
        members.setdefault(member_of(trial.point), []).append(trial)
    listed = list(members.values())
    step = max(most, 1)
    return [listed[i : i + step] for i in range(0, len(listed), step)]


def _fits(
    block: Block,
    group: list[list[TrialResult]],
    part_number: int,
    *,
    advance: Callable[[int], None],
    **data: Any,
) -> bool:
    """Train a stack; False, and nothing is changed, if memory runs out."""
    everyone = [trial for member in group for trial in member]
    before = [copy.deepcopy(trial.__dict__) for trial in everyone]
    told = 0

    def count(epochs: int) -> None:
        nonlocal told
        told += epochs
        advance(epochs)

    try:
        _train_group(block, group, part_number, advance=count, **data)
    except RuntimeError as error:
        if not is_shortage(error):
            raise
    else:
        return True
    for trial, fields in zip(everyone, before, strict=True):
        trial.__dict__.update(fields)
    advance(-told)
    return False


def _halved(
    group: list[list[TrialResult]], num_seeds: int, device: torch.device, notes: list[str]
) -> list[list[list[TrialResult]]]:
    """Both halves of a stack that memory did not suffice for.

    Raises
    ------
    SetupError
        If it is one member alone.
    """
    release_memory(device)
    if len(group) == 1:
        raise too_large(device)
    half = -(-len(group) // 2)
    notes.append(
        f"stacks of {half * num_seeds} models instead of {len(group) * num_seeds}: memory ran out"
    )
    return [group[:half], group[half:]]


def _train_group(
    block: Block,
    group: list[list[TrialResult]],
    part_number: int,
    *,
    clips: SplitClips,
    protocol: Protocol,
    views: npt.NDArray[np.float32] | None,
    device: torch.device,
    advance: Callable[[int], None],
) -> None:
    started = time.perf_counter()
    settings = [configs(member[0].point, head=block.head, fit=block.fit) for member in group]
    head, fit = settings[0]
    stack = Stack(
        clips.train,
        [ModelSettings.of(own_fit, own_head) for own_head, own_fit in settings],
        head_config=head,
        config=fit,
        score_range=protocol.score_range,
        epsilon=protocol.epsilon,
        device=device,
        views=views,
        num_exemplars=[
            [trial.point.get("num_exemplars", fit.num_exemplars) for trial in member]  # type: ignore[misc]
            for member in group
        ],
        keep_states=False,
    )
    everyone = [trial for member in group for trial in member]
    for trial in everyone:
        trial.stack = max(trial.stack, len(group) * fit.num_seeds)
    rungs = {math.ceil(share * fit.epochs): f"{part_number}:{share:g}" for share in RUNGS}
    for epoch in range(1, fit.epochs + 1):
        stack.run_epoch()
        running = [trial for trial in everyone if trial.state == "done"]
        advance(len(running))
        rung = rungs.get(epoch) if block.early_stop and epoch < fit.epochs else None
        if rung is None:
            continue
        scores = _scores(stack, group, fit.num_seeds)
        reached = [scores[trial.number][0] for trial in running]
        hopeless = below_median(reached, block.past.get(rung, ()))
        advance(sum(hopeless) * (fit.epochs - epoch))
        for trial, score, is_hopeless in zip(running, reached, hopeless, strict=True):
            trial.rungs[rung] = score
            if is_hopeless:
                trial.state = "stopped"
                _settle(trial, *scores[trial.number], epochs=epoch)
        kept = [i for i, member in enumerate(group) if any(t.state == "done" for t in member)]
        if len(kept) < len(group):
            group = [group[i] for i in kept]
            if not group:  # earlier waves had better ones: nobody is left
                break
            stack.keep([i * fit.num_seeds + s for i in kept for s in range(fit.num_seeds)])
    scores = _scores(stack, group, fit.num_seeds)
    seconds = (time.perf_counter() - started) / len(everyone)
    for trial in everyone:
        trial.seconds += seconds
        if trial.state == "done":
            _settle(trial, *scores[trial.number], epochs=fit.epochs)


def _scores(
    stack: Stack, group: list[list[TrialResult]], num_seeds: int
) -> dict[int, tuple[float, list[int]]]:
    """Score and best epochs of each trial of a stack so far, by its number."""
    rho, epoch = stack.selection.best_rho, stack.selection.best_epoch
    scores, first = {}, 0
    for member in group:
        for place, trial in enumerate(member):
            own = [first + seed * len(member) + place for seed in range(num_seeds)]
            mean = float(np.mean([rho[j] for j in own]))
            scores[trial.number] = mean, [epoch[j] for j in own]
        first += num_seeds * len(member)
    return scores


def _settle(trial: TrialResult, score: float, best_epoch: list[int], *, epochs: int) -> None:
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
