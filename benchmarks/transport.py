"""Frames from decoders to the network's door, decoding itself being free.

    python benchmarks/transport.py --lanes 2 --lanes 4 --clips 300
    python benchmarks/transport.py --device cuda --json

Clips of 103 x 224 x 224 x 3 bytes (15.5 MB) come from processes that have them ready. What
counts is the processor time of the main process for one clip, because all decoders share
it: 1000 ms divided by it are the clips a second that no number of decoders can exceed. On a
GPU the frames are uploaded, too, as extraction does it. A clip that is not the right one,
here or on the GPU, ends the benchmark.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from aqa_pipeline.config import PIXEL_PRESETS
from aqa_pipeline.media.decode_pool import Decoded, DecodedClip, DecodePool, DecodeTask
from aqa_pipeline.media.views import PLAIN, cut_view

WINDOW = 103
PIXELS = PIXEL_PRESETS["kinetics"]
MARKED = np.array([0, WINDOW - 16])  # first frames of two snippets: their corner names the clip

_ready: list[npt.NDArray[np.uint8]] = []


def mark_of(clip_id: str) -> npt.NDArray[np.uint8]:
    """The colour of a clip's corners, shape=(3,)."""
    return np.frombuffer(int(clip_id).to_bytes(3, "little"), np.uint8)


def no_decoding(task: DecodeTask) -> DecodedClip:
    """A clip that is there already, with its number in two corners."""
    if not _ready:
        rng = np.random.default_rng(0)
        shape = (WINDOW, PIXELS.crop, PIXELS.crop, 3)
        _ready.append(rng.integers(0, 256, shape, dtype=np.uint8))
    _ready[0][MARKED, 0, 0] = mark_of(task.clip_id)
    return DecodedClip(_ready[0], np.zeros(WINDOW), 0, WINDOW)


def window_of(decoded: Decoded) -> npt.NDArray[np.uint8]:
    """The plain view, as extraction cuts it."""
    if decoded.clip is None:
        raise SystemExit(str(decoded.error))
    task = decoded.task
    window = cut_view(decoded.clip.frames, PLAIN, positions=task.positions, union=task.union)
    if (window[MARKED, 0, 0] != mark_of(task.clip_id)).any():
        raise SystemExit(f"clip {task.clip_id}: the frames of another one")
    return window


class Uploader:
    """Uploads groups of clips, with next to no network behind it; two groups are under way."""

    def __init__(self, device: str) -> None:
        import torch

        from aqa_pipeline.backbone.gpu_encoder import BatchedEncoder

        self._encoder = BatchedEncoder(
            lambda x: x[:, :, 0, 0, 0],
            pixels=PIXELS,
            index=MARKED[:, None] + np.arange(16),
            window_frames=WINDOW,
            device=torch.device(device),
            batch=18,
        )
        self.group = self._encoder.clips_at_once
        self._pending: list[tuple[list[Decoded], Callable[[], list[npt.NDArray[np.float32]]]]] = []

    def begin(self, some: list[Decoded]) -> None:
        if len(self._pending) == 2:
            self.finish()
        self._pending.append((some, self._encoder.start([window_of(one) for one in some])))

    def finish(self) -> None:
        """Wait for a group, and look whether its clips have arrived."""
        if not self._pending:
            return
        some, wait = self._pending.pop(0)
        for one, features in zip(some, wait(), strict=True):
            expected = (mark_of(one.task.clip_id) / 255 - PIXELS.mean) / PIXELS.std
            if np.abs(features - expected).max() > 1e-3:
                raise SystemExit(f"clip {one.task.clip_id}: the GPU has the frames of another one")


def measure(*, lanes: int, clips: int, device: str) -> dict[str, Any]:
    """Clips a second, and processor time of this process for each."""
    uploader = None if device == "cpu" else Uploader(device)
    group = 1 if uploader is None else uploader.group
    first = 4 * lanes + 4 * group  # until every process runs, and every slot has been used
    tasks = [
        DecodeTask(str(number), Path("v"), np.arange(WINDOW), PIXELS, Path(), False)
        for number in range(first + clips)
    ]

    def take(decoded: Iterator[Decoded], count: int) -> None:
        for done in range(0, count, group):
            some = [next(decoded) for _ in range(min(group, count - done))]
            if uploader is None:
                window_of(some[0])
            else:
                uploader.begin(some)
        if uploader is not None:
            uploader.finish()
            uploader.finish()

    with DecodePool(workers=lanes, clip_timeout_seconds=60, decode=no_decoding) as pool:
        if uploader is not None:
            pool.lock_pages()
        decoded = pool.decode([[task] for task in tasks])
        take(decoded, first)
        started, spent_before = time.perf_counter(), time.process_time()
        take(decoded, clips)
        seconds, spent = time.perf_counter() - started, time.process_time() - spent_before
    return {
        "lanes": lanes,
        "clips_per_second": clips / seconds,
        "processor_ms_per_clip": 1e3 * spent / clips,
    }


@click.command()
@click.option("--lanes", type=int, multiple=True, help="Decoders; by default as many as extract.")
@click.option("--clips", default=300, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON alone on stdout.")
def main(lanes: tuple[int, ...], clips: int, device: str, as_json: bool) -> None:
    """Measure what a clip costs the main process on its way from a decoder."""
    from aqa_pipeline.extraction.work import default_workers

    rows = [
        measure(lanes=count, clips=clips, device=device)
        for count in lanes or (default_workers(device),)
    ]
    if as_json:
        print(json.dumps({"device": device, "clip_megabytes": 15.5, "transport": rows}, indent=2))
        return
    print("lanes  clips/s  main process, ms of processor time a clip")
    for row in rows:
        print("{lanes:5d}  {clips_per_second:7.1f}  {processor_ms_per_clip:7.2f}".format(**row))


if __name__ == "__main__":
    main()
