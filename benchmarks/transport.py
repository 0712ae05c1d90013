"""Frames from decoders to the network's door, decoding itself being free.

    python benchmarks/transport.py --lanes 2 --lanes 4 --clips 300
    python benchmarks/transport.py --device cuda --json

Clips of 103 x 224 x 224 x 3 bytes (15.5 MB) come from processes that have them ready. What
counts is the processor time of the main process for one clip, because all decoders share
it: 1000 ms divided by it are the clips a second that no number of decoders can exceed. On a
GPU the frames are uploaded, too, as extraction does it.
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
from aqa_pipeline.decode_pool import Decoded, DecodedClip, DecodePool, DecodeTask
from aqa_pipeline.views import PLAIN, cut_view

WINDOW = 103
PIXELS = PIXEL_PRESETS["kinetics"]

_ready: list[npt.NDArray[np.uint8]] = []


def no_decoding(task: DecodeTask) -> DecodedClip:
    """A clip that is there already; the first frame says which one it is."""
    if not _ready:
        rng = np.random.default_rng(0)
        shape = (WINDOW, PIXELS.crop, PIXELS.crop, 3)
        _ready.append(rng.integers(0, 256, shape, dtype=np.uint8))
    _ready[0][0, 0, 0] = np.frombuffer(int(task.clip_id).to_bytes(3, "little"), np.uint8)
    return DecodedClip(_ready[0], np.zeros(WINDOW), 0, WINDOW)


def window_of(decoded: Decoded) -> npt.NDArray[np.uint8]:
    """The plain view, as extraction cuts it."""
    if decoded.clip is None:
        raise SystemExit(str(decoded.error))
    task = decoded.task
    window = cut_view(decoded.clip.frames, PLAIN, positions=task.positions, union=task.union)
    if int.from_bytes(window[0, 0, 0].tobytes(), "little") != int(task.clip_id):
        raise SystemExit(f"clip {task.clip_id}: the frames of another one")
    return window


def uploader(device: str) -> tuple[int, Callable[[list[npt.NDArray[np.uint8]]], object]]:
    """Clips of a group, and what begins with one: its upload, and next to no network."""
    import torch

    from aqa_pipeline.batched_encoder import BatchedEncoder

    encoder = BatchedEncoder(
        lambda x: x[:, :, 0, 0, 0],
        pixels=PIXELS,
        index=np.arange(16)[None],
        window_frames=WINDOW,
        device=torch.device(device),
        batch=9,
    )
    return encoder.clips_at_once, encoder.start


def measure(*, lanes: int, clips: int, device: str) -> dict[str, Any]:
    """Clips a second, and processor time of this process for each."""
    begin: Callable[[list[npt.NDArray[np.uint8]]], object] | None = None
    group = 1
    if device != "cpu":
        group, begin = uploader(device)
    first = 4 * lanes + 3 * group  # until every process runs, and every slot has been used
    tasks = [
        DecodeTask(str(number), Path("v"), np.arange(WINDOW), PIXELS, Path(), False)
        for number in range(first + clips)
    ]

    def take(decoded: Iterator[Decoded], count: int) -> None:
        pending: list[Any] = []
        for done in range(0, count, group):
            some = [window_of(next(decoded)) for _ in range(min(group, count - done))]
            if begin is not None:
                pending.append(begin(some))
                if len(pending) > 2:
                    pending.pop(0)()
        for wait in pending:
            wait()

    with DecodePool(workers=lanes, clip_timeout_seconds=60, decode=no_decoding) as pool:
        if begin is not None:
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
    from aqa_pipeline.extract import default_workers

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
