"""Gain of each rewrite of the backbone, alone: before and after by turns, and the difference.

    python benchmarks/rewrites.py [--json]

Pieces of the network on one snippet of 16 x 224 x 224 where they matter most, median of
the rounds. The last rows were tried and are not in the program.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import click
import numpy as np

from aqa_pipeline.device import share_cores

# ruff: noqa: E402 - before torch is imported: threads that spin would count as work
share_cores()

import torch
import torch.nn.functional as F
from stage1_network import Row, clocks, drawn_weights
from torch import Tensor, nn

from aqa_pipeline.backbone import fast as i3d_fast
from aqa_pipeline.backbone.fast import FastMixed, ReluConv, fast_form, fold, join, max_pool
from aqa_pipeline.backbone.i3d import I3D, Unit, max_pool_same, pad_same
from aqa_pipeline.backbone.winograd import WinogradConv

Call = Callable[[], Tensor]
#: What is rewritten, where, before, after.
Case = tuple[str, str, Call, Call]


def maps(*shape: int) -> Tensor:
    """Not negative, channels last; shape is (N, T, H, W, C)."""
    return torch.rand(shape).permute(0, 4, 1, 2, 3)


def rewrites(model: I3D) -> Iterator[Case]:
    unit, mixed = model.conv_2c, model.mixed_3c
    x = maps(1, 8, 56, 56, 64)
    first = x.contiguous()
    kernel, bias = fold(unit)
    direct = join([unit])
    yield (
        *("folded BatchNorm", "conv_2c"),
        lambda: F.relu(unit.norm(unit.conv(first))),
        lambda: F.relu(F.conv3d(first, kernel, bias)),
    )
    yield (
        "channels last",
        "conv_2c",
        lambda: F.conv3d(first, kernel, bias, padding=1),
        lambda: direct(x),
    )
    y = maps(1, 8, 28, 28, 256)
    units = [mixed.b0, mixed.b1a, mixed.b2a]
    apart, joined = [join([u]) for u in units], join(units)
    yield (
        *("joined 1x1x1", "mixed_3c"),
        lambda: torch.cat([conv(y) for conv in apart], dim=1),
        lambda: joined(y),
    )
    yield (
        *("max pool in two steps, without a copy", "mixed_3c"),
        lambda: max_pool_same(y, kernel=(3, 3, 3), stride=(1, 1, 1)),
        lambda: max_pool(y, kernel=(3, 3), stride=(1, 1)),
    )
    stem = maps(1, 8, 112, 112, 64)
    yield "ReLU in place", "conv_1a", lambda: F.relu(stem), lambda: F.relu_(stem)
    fast = FastMixed(mixed)
    yield "no joining copy", "mixed_3c", lambda: concatenated(fast, y), lambda: fast(y)
    for name, place, x, u in large_units(model):
        conv, winograd = ReluConv([u]), WinogradConv(*fold(u))
        yield f"Winograd, {name}", place, lambda x=x, c=conv: c(x), lambda x=x, w=winograd: w(x)
    network = fast_form(model)
    snippets = maps(10, 16, 224, 224, 3)
    yield (
        *("a snippet at a time", "10 snippets"),
        lambda: all_at_once(network.features, snippets),
        lambda: network.features(snippets),
    )


def concatenated(fast: FastMixed, x: Tensor) -> Tensor:
    """The block with its four branches copied together at the end."""
    parts = torch.split(fast.joined(x).relu_(), fast.widths, dim=1)
    pooled = max_pool(x, kernel=(3, 3), stride=(1, 1))
    branches = [parts[0], fast.b1b(parts[1]), fast.b2b(parts[2]), fast.b3(pooled)]
    return torch.cat(branches, dim=1)


def large_units(model: I3D) -> Iterator[tuple[str, str, Tensor, Unit]]:
    yield "conv_2c", "1 snippet", maps(1, 8, 56, 56, 64), model.conv_2c
    yield "mixed_3c.b2b", "1 snippet", maps(1, 8, 28, 28, 32), model.mixed_3c.b2b
    for name, snippets, frames, size in (
        *(("mixed_3b", 1, 8, 28), ("mixed_3c", 1, 8, 28), ("mixed_4b", 10, 4, 14)),
        *(("mixed_4d", 10, 4, 14), ("mixed_4f", 10, 4, 14)),
    ):
        unit = getattr(model, name).b1b
        channels = unit.conv.weight.shape[1]
        where = f"{snippets} snippet{'s' if snippets > 1 else ''}"
        yield f"{name}.b1b", where, maps(snippets, frames, size, size, channels), unit


def all_at_once(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    before, i3d_fast._LARGE_MAPS_PIXELS = i3d_fast._LARGE_MAPS_PIXELS, x[:, 0].numel()
    try:
        return features(x)
    finally:
        i3d_fast._LARGE_MAPS_PIXELS = before


def left_out(model: I3D) -> Iterator[Case]:
    x = maps(1, 16, 224, 224, 3)
    padded = pad_same(x, kernel=(7, 7, 7), stride=(2, 2, 2), value=0.0)
    stem = join([model.conv_1a])
    kernel = space_to_depth(F.pad(stem.weight, (0, 1) * 3))
    yield (
        *("space-to-depth stem", "conv_1a"),
        lambda: stem(padded),
        lambda: F.conv3d(space_to_depth(F.pad(padded, (0, 1) * 3)), kernel, stem.bias),
    )
    for name, frames, size, u in (
        ("mixed_4f.b2b", 4, 14, model.mixed_4f.b2b),
        ("mixed_5b.b1b", 2, 7, model.mixed_5b.b1b),
        ("mixed_5c.b1b", 2, 7, model.mixed_5c.b1b),
    ):
        y = maps(10, frames, size, size, u.conv.weight.shape[1])
        conv, winograd = ReluConv([u]), WinogradConv(*fold(u))
        yield (
            *(f"Winograd, {name}", "10 snippets"),
            lambda y=y, c=conv: c(y),
            lambda y=y, w=winograd: w(y),
        )
    joined, z = join([model.mixed_3c.b0]), maps(1, 8, 28, 28, 256)
    yield "1x1x1 as pictures", "mixed_3c", lambda: joined(z), lambda: as_pictures(joined, z)


def as_pictures(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """A kernel of one position cannot tell a volume from a picture of T x H by W."""
    n, c, t, h, w = x.shape
    pictures = x.permute(0, 2, 3, 4, 1).reshape(n, t * h, w, c).permute(0, 3, 1, 2)
    pictures = F.conv2d(pictures, conv.weight[..., 0], conv.bias)
    return pictures.permute(0, 2, 3, 1).reshape(n, t, h, w, -1).permute(0, 4, 1, 2, 3)


def space_to_depth(x: Tensor) -> Tensor:
    """(N, C, 2T, 2H, 2W) to (N, 8C, T, H, W): a stride of two becomes a stride of one."""
    n, c, t, h, w = x.shape
    cubes = x.reshape(n, c, t // 2, 2, h // 2, 2, w // 2, 2).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return cubes.reshape(n, t // 2, h // 2, w // 2, 8 * c).permute(0, 4, 1, 2, 3)


@torch.inference_mode()
def measure(case: Case, rounds: int) -> Row:
    what, where, before, after = case
    expected, found = before(), after()
    error = (found - expected).abs().max() / expected.abs().max()
    taken = np.array([(clocks(before), clocks(after)) for _ in range(rounds)])
    ratios = np.median(taken[:, 0] / taken[:, 1], axis=0)
    return {
        "rewrite": what,
        "where": where,
        "before_milliseconds": 1e3 * float(np.median(taken[:, 0, 0])),
        "after_milliseconds": 1e3 * float(np.median(taken[:, 1, 0])),
        "ratio": float(ratios[0]),
        "ratio_of_processor_time": float(ratios[1]),
        "relative_error": float(error),
    }


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON alone on stdout.")
def main(rounds: int, as_json: bool) -> None:
    """Time each rewrite of the backbone alone."""
    model = drawn_weights()
    kept = [measure(case, rounds) for case in rewrites(model)]
    tried = [measure(case, rounds) for case in left_out(model)]
    if as_json:
        threads = torch.get_num_threads()
        print(json.dumps({"threads": threads, "kept": kept, "left_out": tried}, indent=2))
        return
    print(f"{torch.get_num_threads()} threads, milliseconds")
    print(
        f"{'rewrite':39s} {'where':12s}  before   after  ratio  of processor time  relative error"
    )
    for row in (*kept, *tried):
        if row is tried[0]:
            print("tried and left out")
        print(
            f"{row['rewrite']:39s} {row['where']:12s} {row['before_milliseconds']:7.2f} "
            f"{row['after_milliseconds']:7.2f} {row['ratio']:6.2f}  "
            f"{row['ratio_of_processor_time']:17.2f}  {row['relative_error']:.1e}"
        )


if __name__ == "__main__":
    main()
