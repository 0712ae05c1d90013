"""Seconds and memory of one step of fine-tuning, with and without activation checkpointing.

    python benchmarks/finetune.py                          # one pair at 112 pixels, on the CPU
    python benchmarks/finetune.py --device cuda --size 224 --pairs 4 --precision bfloat16
    python benchmarks/finetune.py --row 1 --row 5          # the first and the last row alone

Each row runs in a process of its own, so that its memory is its own: on a CPU the most the
process ever held, less what it held before the first step; on a GPU what torch allocated.
Seconds on a CPU are the processor's: of all its cores together.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from aqa_pipeline.finetune.draws import StepDraw
    from aqa_pipeline.finetune.step import FramesOf

CASES = (("all", False), ("all", True), ("mixed_4", False), ("mixed_4", True), ("mixed_5", False))


def measure(options: argparse.Namespace, unfreeze: str, checkpointing: bool) -> dict[str, float]:
    import numpy as np
    import torch

    from aqa_pipeline.backbone.i3d import I3D
    from aqa_pipeline.backbone.precision import computing_in
    from aqa_pipeline.config import PIXEL_PRESETS, FinetuneConfig, FitConfig, HeadConfig
    from aqa_pipeline.core.featureset import FeatureSet
    from aqa_pipeline.finetune.draws import PLAIN_VIEW, StepDraw
    from aqa_pipeline.finetune.folded import lay_out_channels_last
    from aqa_pipeline.finetune.model import PairModel, kept_bytes, resolve_precision
    from aqa_pipeline.finetune.model import unfreeze as let_learn
    from aqa_pipeline.finetune.start import fresh_head
    from aqa_pipeline.finetune.step import TrainStep

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    clips = 2 * options.pairs
    rng = np.random.default_rng(0)
    score = rng.uniform(10, 28, clips)
    ones = np.ones(clips)
    known = FeatureSet(
        clip_id=tuple(map(str, range(clips))),
        features=rng.normal(size=(clips, options.snippets, 1024)).astype(np.float32),
        score=score, scale=ones, offset=0 * ones, difficulty=ones,
        category=("",) * clips, key=((),) * clips,
    )  # fmt: skip
    backbone = I3D().to(device)
    let_learn(backbone, unfreeze)  # type: ignore[arg-type]
    if device.type == "cuda":
        lay_out_channels_last(backbone)
    head = fresh_head(
        HeadConfig(),
        known,
        np.arange(clips),
        known.features,
        score_range=None,
        epsilon=None,
        seed=0,
    )
    index = np.arange(16 * options.snippets).reshape(options.snippets, 16)
    model = PairModel(
        backbone, head.to(device), snippets=index, pixels=PIXEL_PRESETS["kinetics"],
        precision=resolve_precision(options.precision, device), checkpointing=checkpointing,
    ).to(device)  # fmt: skip
    stepper = TrainStep(
        model,
        label=torch.from_numpy(score).to(device),
        fit_config=FitConfig(),
        config=FinetuneConfig(),
        micro_batch_pairs=options.pairs,
    )
    shape = (clips, index.size, options.size, options.size, 3)
    frames = rng.integers(0, 256, shape, dtype=np.uint8)
    pairs = np.arange(clips).reshape(-1, 2)
    draw = StepDraw(pairs, dict.fromkeys(range(clips), PLAIN_VIEW))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
    seconds = []
    steps = [draw] * (options.steps + 1)
    for of_step in frames_of_steps(frames, steps, device):
        # On a CPU the processor's seconds, which other programs on the machine hardly touch.
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        started = clock()
        with computing_in("float32"):
            stepper.step(draw, of_step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    found = {"seconds": min(seconds[1:]), "peak_gib": (peak - before) / 2**30}
    if device.type != "cuda":
        kept = kept_bytes(model, torch.from_numpy(frames[:2]))
        found["kept_gib"] = (kept.checkpointed if checkpointing else kept.plain) / 2**30
    return found


def frames_of_steps(
    frames: npt.NDArray[np.uint8], steps: Sequence[StepDraw], device: torch.device
) -> Iterator[FramesOf]:
    """Frames as training gets them: on a GPU those of the next step go up meanwhile."""
    import numpy as np
    import torch

    from aqa_pipeline.config import PIXEL_PRESETS
    from aqa_pipeline.finetune.upload import Uploads
    from aqa_pipeline.media.clip import DecodeTask

    if device.type != "cuda":
        yield from [lambda rows: torch.from_numpy(frames[list(rows)])] * len(steps)
        return
    pixels, nowhere = PIXEL_PRESETS["kinetics"], Path()
    tasks = [
        DecodeTask(str(row), nowhere, np.arange(frames.shape[1]), pixels, nowhere, False)
        for row in range(len(frames))
    ]
    uploads = Uploads(tasks, jitter=0, device=device)
    yield from uploads.ahead(steps, repeat(dict(enumerate(frames))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=112, help="side of a frame, in pixels")
    parser.add_argument("--snippets", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=1, help="pairs a step")
    parser.add_argument("--steps", type=int, default=2, help="the quickest counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    parser.add_argument(
        "--row", type=int, action="append", choices=range(1, len(CASES) + 1), help="default: all"
    )
    parser.add_argument("--case", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        unfreeze, checkpointing = json.loads(options.case)
        print(json.dumps(measure(options, unfreeze, checkpointing)))
        return
    print("| learns from | checkpointing | s a step | memory of a step, GiB | counted, GiB |")
    print("|---|---|---:|---:|---:|")
    for case in [CASES[row - 1] for row in options.row] if options.row else CASES:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--case", json.dumps(case)],
            check=True,
            capture_output=True,
            text=True,
        )
        found = json.loads(done.stdout)
        counted = f"{found['kept_gib']:.2f}" if "kept_gib" in found else ""
        print(
            f"| `{case[0]}` | {'yes' if case[1] else 'no'} | {found['seconds']:.2f} | "
            f"{found['peak_gib']:.2f} | {counted} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
