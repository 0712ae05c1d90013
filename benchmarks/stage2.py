"""Stage two against a plain loop, in one process, by turns.

Both train CoRe + GART (16 groups, node features of 256, averaged features of 1024 numbers) on
features of the size of MTL-AQA: 1059 training and 353 test clips in its difficulties, with a
planted signal. What counts is the ratio, because machines are shared; seconds are the lowest
of the rounds, with ours and the plain loop's by turns.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import numpy as np
import torch
from plain_head import PlainProgram

from aqa_pipeline.config import FitConfig, HeadConfig, ModelSettings
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.groups import PairLabels
from aqa_pipeline.core.pairs import ExemplarKeys, vote_exemplars
from aqa_pipeline.device import find_device
from aqa_pipeline.heads.batch_voting import vote
from aqa_pipeline.training.stack import Stack

HEAD = HeadConfig(aggregation="mean")
RATE = 5e-4
#: Share of each difficulty, in percent, as in MTL-AQA: its groups have 1 to 248 clips.
DIFFICULTIES = {3.2: 23, 3.0: 14, 3.4: 12, 3.3: 9, 2.8: 8, 3.1: 7, 2.9: 6, 3.5: 5, 3.6: 4,
                2.7: 3, 3.8: 3, 2.6: 2, 2.4: 1, 2.0: 1, 1.9: 1, 3.7: 1}  # fmt: skip


def some_clips(count: int, *, dim: int = 1024, seed: int = 0) -> FeatureSet:
    """Clips of averaged features in which half of the raw score's variance can be seen."""
    random = np.random.default_rng(seed)
    share = np.array(list(DIFFICULTIES.values()), dtype=float)
    difficulty = random.choice(list(DIFFICULTIES), size=count, p=share / share.sum())
    raw = random.normal(23, 4, count).clip(0, 30).round(1)
    direction = random.normal(size=dim)
    features = random.normal(size=(count, 1, dim))
    features += 0.06 * ((raw - 23) / 4)[:, None, None] * direction
    return FeatureSet(
        clip_id=tuple(map(str, range(count))),
        features=features.astype(np.float32),
        score=raw * difficulty,
        scale=difficulty,
        offset=np.zeros(count),
        difficulty=difficulty,
        category=("",) * count,
        key=tuple((float(d),) for d in difficulty),
    )


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def a_stack(clips: FeatureSet, size: int, batch: int, device: torch.device) -> Stack:
    """A stack that learns from almost all clips, as the plain loop does."""
    rates = np.geomspace(RATE / 2, RATE * 2, size) if size > 1 else [RATE]
    return Stack(
        clips,
        [ModelSettings(float(rate), 0.0, 0.0) for rate in rates],
        head_config=HEAD,
        config=FitConfig(batch_size=batch, validation_fraction=4 / len(clips)),
        score_range=30.0,
        epsilon=30.0,
        device=device,
        keep_states=False,
    )


def epochs(clips: FeatureSet, batches: list[int], rounds: int, device: torch.device) -> list[Any]:
    """Seconds of an epoch, ours and the plain loop's by turns."""
    rows = []
    for batch in batches:
        stack = a_stack(clips, 1, batch, device)
        edges = stack.head.settings()["output"]["group_edges"][0]
        plain = PlainProgram(clips, edges, learning_rate=RATE)
        stack.run_epoch()  # memory is taken, and on a GPU the step is captured
        taken = [
            (seconds(stack.run_epoch), seconds(partial(plain.epoch, batch))) for _ in range(rounds)
        ]
        ours, theirs = np.min(taken, axis=0).tolist()
        rows.append({"batch": batch, "plain": theirs, "ours": ours, "ratio": theirs / ours})
    return rows


def stacks(clips: FeatureSet, sizes: list[int], device: torch.device) -> list[Any]:
    """Seconds of an epoch a head, alone and side by side."""
    rows = []
    for size in sizes:
        stack = a_stack(clips, size, 32, device)
        stack.run_epoch()
        taken = min(seconds(stack.run_epoch) for _ in range(2))
        rows.append({"heads": size, "seconds_a_head": taken / size})
    return rows


def votes(train: FeatureSet, test: FeatureSet, device: torch.device) -> list[Any]:
    """Voting after ten epochs: by the whole tree one exemplar at a time, and ours."""
    stack = a_stack(train, 1, 32, device)
    plain = PlainProgram(
        train, stack.head.settings()["output"]["group_edges"][0], learning_rate=RATE
    )
    for _ in range(10):
        stack.run_epoch()
    keys = ExemplarKeys.of(train.key)
    pool_groups, query_groups = keys.match(train.key)[0], keys.match(test.key)[0]
    tensors = [torch.from_numpy(a).to(device) for a in (test.features, train.features, train.label)]
    rows = []
    for count in (10, None):
        chosen = vote_exemplars(query_groups, pool_groups, num_exemplars=count, seed=0)
        index = torch.from_numpy(chosen).to(device)

        def ours(index: torch.Tensor = index) -> object:
            queries, pool, label = tensors
            return vote(stack.head, queries=queries, pool=pool, pool_label=label, exemplars=index)

        own = [[e for e in row if e >= 0] for row in chosen.tolist()]
        row = {
            "exemplars": "all" if count is None else str(count),
            "pairs": int((chosen >= 0).sum()),
            "ours": min(seconds(ours) for _ in range(3)),
        }
        if count is not None:  # with all of them the plain way takes minutes
            row["plain"] = seconds(partial(plain.vote, test, own))
        rows.append(row)
    return rows


def growth(counts: list[int], device: torch.device) -> list[Any]:
    """Edges of the groups, and an epoch, as the clips become more."""
    rows = []
    for count in counts:
        clips = some_clips(count, dim=1024 if count < 50_000 else 128)
        groups, _ = ExemplarKeys.of(clips.key).match(clips.key)
        pairs = PairLabels(clips.label, groups)
        places = (len(pairs) - 1) * np.arange(9) // 8
        found = seconds(partial(pairs.magnitudes_at, places))
        stack = a_stack(clips, 1, 256, device)
        rows.append(
            {
                "clips": count,
                "dim": clips.features.shape[2],
                "pairs": len(pairs),
                "edges": found,
                "epoch": seconds(stack._loop.epoch),
            }
        )
    return rows


def memory(clips: FeatureSet, device: torch.device) -> list[Any]:
    """The most this process has held, before and after two epochs of 64 heads over 14 views."""
    random = np.random.default_rng(0)
    shape = (len(clips), 14, *clips.features.shape[1:])
    views = random.standard_normal(shape, dtype=np.float32) * np.float32(0.1)
    views += clips.features[:, None]
    before = most_gib()
    stack = Stack(
        clips,
        [ModelSettings(float(rate), 0.0, 0.0) for rate in np.geomspace(RATE / 5, RATE * 2, 64)],
        head_config=HEAD,
        config=FitConfig(batch_size=32, validation_fraction=0.15),
        score_range=30.0,
        epsilon=30.0,
        device=device,
        views=views,
    )
    taken = [seconds(stack.run_epoch) for _ in range(2)]
    return [
        {"heads": 64, "views": 14, "before": before, "most_gib": most_gib(), "epoch": min(taken)}
    ]


def most_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@click.command()
@click.option(
    "--batch", "batches", type=int, multiple=True, default=(2, 32, 256), show_default=True
)
@click.option("--stack", "sizes", type=int, multiple=True, default=(1, 4, 16), show_default=True)
@click.option("--rounds", default=2, show_default=True)
@click.option("--threads", type=int, default=None, help="Default: torch's own.")
@click.option("--device", default="auto", show_default=True)
@click.option("--clips", "counts", type=int, multiple=True, help="Growth: numbers of clips.")
@click.option("--short", is_flag=True, help="Batch 32 and 256, stacks of 1 and 4: a minute.")
@click.option("--memory", "only_memory", is_flag=True, help="Memory of 64 heads, nothing else.")
@click.option("--json", "as_json", is_flag=True, help="JSON alone on stdout.")
def main(
    batches: tuple[int, ...],
    sizes: tuple[int, ...],
    rounds: int,
    threads: int | None,
    device: str,
    counts: tuple[int, ...],
    short: bool,
    only_memory: bool,
    as_json: bool,
) -> None:
    """Time training, stacks and voting of stage two."""
    if threads:
        torch.set_num_threads(threads)
    if short:
        batches, sizes, rounds = (32, 256), (1, 4), 1
    place = find_device(device)
    everything = some_clips(1059 + 353)
    train, test = everything.take(range(1059)), everything.take(range(1059, 1412))
    result: dict[str, Any] = {"device": str(place), "threads": torch.get_num_threads()}
    if only_memory:
        result["memory"] = memory(train, place)
    else:
        result["epochs"] = epochs(train, list(batches), rounds, place)
        result["stacks"] = stacks(train, list(sizes), place)
        result["votes"] = votes(train, test, place)
        result["growth"] = growth(list(counts), place)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['device']}, {result['threads']} threads; seconds")
    for name, rows in result.items():
        if isinstance(rows, list) and rows:
            header = list(rows[0])
            print(f"\n{name}\n" + "  ".join(f"{h:>14}" for h in header))
            for row in rows:
                print("  ".join(f"{_shown(row.get(h)):>14}" for h in header))


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
