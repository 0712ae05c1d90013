"""Seeded splits of a manifest into train and test.

Conventions
-----------
group
    Clips that must stay on one side: the dives of one broadcast, the trials of one
    surgeon. Without groups every clip goes its own way.

The result depends on the clip ids and the seed, never on the order of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from aqa_pipeline.config import SplitConfig
from aqa_pipeline.datasets.manifest import KNOWN, Manifest, write_manifest
from aqa_pipeline.errors import DataError, UsageError

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class WrittenSplit:
    """A split that was written into a manifest.

    Attributes
    ----------
    path : Path
    column : str
    counts : dict of str to int
        Clips of train and of test.
    """

    path: Path
    column: str
    counts: dict[str, int]


def split_manifest(
    manifest: Manifest,
    *,
    test_fraction: float = SplitConfig.test_fraction,
    seed: int = SplitConfig.seed,
    group_by: str | None = None,
    column: str | None = None,
) -> WrittenSplit:
    """Write a split into a column of a manifest; the other columns stay as they are.

    Parameters
    ----------
    manifest : Manifest
    test_fraction, seed, group_by
        See :func:`split_clips`.
    column : str or None
        Replaced if it exists. None: ``split`` where the manifest has none, else a new
        column ``split_by_<group>`` or ``split_seed_<seed>``.

    Raises
    ------
    UsageError
        If the column is one that must not be overwritten, or the default one exists.
    DataError
        As in :func:`split_clips`.
    """
    clips = manifest.clips
    if column is None:
        column = f"split_by_{group_by}" if group_by else f"split_seed_{seed}"
        if (clips["split"] == "").all():
            column = "split"
        elif column in clips:
            raise UsageError(
                f"{manifest.path} has a column {column!r} already; "
                f"--column {column} replaces it, another name writes beside it"
            )
    elif column in KNOWN and column != "split":
        raise UsageError(f"column {column!r} has a meaning of its own; choose another name")
    sides = split_clips(clips, test_fraction=test_fraction, seed=seed, group_by=group_by)
    write_manifest(manifest.path, clips.assign(**{column: sides}))
    counts = {side: sides.count(side) for side in ("train", "test")}
    return WrittenSplit(path=manifest.path, column=column, counts=counts)


def split_clips(
    clips: pd.DataFrame,
    *,
    test_fraction: float = SplitConfig.test_fraction,
    seed: int = SplitConfig.seed,
    group_by: str | None = None,
) -> list[str]:
    """Divide clips into train and test.

    Without ``group_by`` the clips are sorted by category and score, cut into as many
    equal runs as there are test clips, and one clip is drawn from each run, so that test
    and training scores are spread alike. With it whole groups are drawn, and of 64 draws
    the one is kept whose size and mean score are nearest to what was asked.

    Parameters
    ----------
    clips : DataFrame
        Columns ``clip_id``, ``score``, ``category`` and the one of ``group_by``.
    test_fraction : float
        Share of test clips, above 0 and below 1; at least one clip is on either side.
    seed : int
    group_by : str or None
        Column whose equal values stay together.

    Returns
    -------
    list of str
        ``"train"`` or ``"test"``, one a row.

    Raises
    ------
    UsageError
        If the fraction is out of range or the column does not exist.
    DataError
        If there are fewer than two clips or groups, or a clip has no group.
    """
    if not 0 < test_fraction < 1:
        raise UsageError(f"test_fraction is {test_fraction:g}; it must lie between 0 and 1")
    if len(clips) < 2:
        raise DataError("a split needs at least 2 clips")
    random = np.random.default_rng(seed)
    order = clips.sort_values(["category", "score", "clip_id"], kind="stable").index
    position = clips.index.get_indexer(order)
    if group_by is None:
        is_test = np.zeros(len(clips), dtype=bool)
        is_test[position[_one_of_each_run(len(clips), test_fraction, random)]] = True
    else:
        is_test = _draw_groups(clips, group_by, test_fraction, random)
    return ["test" if test else "train" for test in is_test]


def fold_numbers(clips: pd.DataFrame, *, num_folds: int, seed: int) -> IntArray:
    """Fold of each clip, so that every fold has the spread of scores of the whole.

    The clips are sorted by category and score and dealt out in rounds of ``num_folds``,
    each round in a drawn order.

    Returns
    -------
    ndarray of int64, shape=(N,)
        0-based.

    Raises
    ------
    DataError
        If there are fewer clips than folds.
    """
    if len(clips) < num_folds:
        raise DataError(f"{len(clips)} clips cannot be divided into {num_folds} folds")
    random = np.random.default_rng(seed)
    order = clips.sort_values(["category", "score", "clip_id"], kind="stable").index
    rounds = -(-len(clips) // num_folds)
    dealt = random.permuted(np.tile(np.arange(num_folds), (rounds, 1)), axis=1).ravel()
    folds = np.empty(len(clips), dtype=np.int64)
    folds[clips.index.get_indexer(order)] = dealt[: len(clips)]
    return folds


def draw_groups(
    group: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    fraction: float,
    random: np.random.Generator,
    num_draws: int = 64,
) -> BoolArray:
    """Draw groups that hold about a fraction of the clips, their scores like the others'.

    Of several draws the one is kept whose number of clips and mean score are nearest to what is
    asked for. At least one group is drawn and one left.

    Parameters
    ----------
    group : array_like of int, shape=(N,)
        Two groups or more.
    scores : array_like, shape=(N,)
    fraction : float
        Above 0 and below 1.
    random : numpy.random.Generator
    num_draws : int
        More draws come nearer to what is asked for; of few groups they all end at one choice.

    Returns
    -------
    ndarray of bool, shape=(N,)
        True for the clips of drawn groups.
    """
    group, score = np.asarray(group, dtype=np.int64), np.asarray(scores, dtype=np.float64)
    size, total = np.bincount(group), np.bincount(group, weights=score)
    spread = float(score.std()) or 1.0
    best_cost, best = np.inf, np.zeros(len(size), dtype=bool)
    for _ in range(num_draws):
        order = random.permutation(len(size))
        num_drawn = np.cumsum(size[order])[:-1]
        last = int(np.argmin(np.abs(num_drawn - fraction * len(group))))
        chosen = order[: last + 1]
        mean_gap = total[chosen].sum() / num_drawn[last] - score.mean()
        cost = abs(num_drawn[last] / len(group) - fraction) + abs(mean_gap) / spread
        # Costs that differ only by rounding count as equal: the first draw stays.
        if cost < best_cost - 1e-9:
            best_cost, best = cost, np.isin(np.arange(len(size)), chosen)
    drawn: BoolArray = best[group]
    return drawn


def _one_of_each_run(count: int, fraction: float, random: np.random.Generator) -> IntArray:
    num_test = min(max(round(count * fraction), 1), count - 1)
    bounds = np.arange(num_test + 1) * count // num_test
    return random.integers(bounds[:-1], bounds[1:])


def _draw_groups(
    clips: pd.DataFrame, group_by: str, fraction: float, random: np.random.Generator
) -> npt.NDArray[np.bool_]:
    if group_by not in clips:
        raise UsageError(
            f"no column {group_by!r} to group by; there are {', '.join(map(str, clips))}"
        )
    values = clips[group_by].astype(str)
    empty = int((clips[group_by].isna() | (values == "")).sum())
    if empty:
        raise DataError(f"{empty} of {len(clips)} clips have no {group_by} to group by")
    names, group = np.unique(values.to_numpy(dtype=str), return_inverse=True)
    if len(names) < 2:
        raise DataError(
            f"all {len(clips)} clips have the {group_by} {str(names[0])!r}; a split by {group_by} "
            "needs two or more"
        )
    scores = clips["score"].to_numpy(dtype=float)
    return draw_groups(group, scores, fraction=fraction, random=random)
