"""The GPU's figures of docs/performance.md that need no project: network, encoder, stacks.

    python benchmarks/gpu_speed.py .gpu       # the pack of benchmarks/gpu_pack.py
    python benchmarks/gpu_speed.py .gpu --device cpu --small     # to try this file itself

Each line is a figure; a part that fails is a line, too, and the others go on.
"""

from __future__ import annotations

import argparse
import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from stage2 import some_clips

from aqa_pipeline.backbone.encoder import i3d_backbone
from aqa_pipeline.backbone.gpu_form import PLAIN, Form, gpu_form
from aqa_pipeline.backbone.gpu_network import GpuNetwork, candidates, usable_kernels
from aqa_pipeline.backbone.precision import dtype_of
from aqa_pipeline.backbone.weights import convert_weights, load_i3d
from aqa_pipeline.config import PIXEL_PRESETS, FitConfig, HeadConfig, ModelSettings, Protocol
from aqa_pipeline.media.snippets import snippet_index
from aqa_pipeline.training import adam as stacked_adam
from aqa_pipeline.training.stack import Stack

#: Of one snippet of 16 x 224 x 224.
GFLOP = 55.6
PROTOCOL = Protocol("speed")


def tell(name: str, text: str) -> None:
    print(f"{name:44} {text}", flush=True)


def attempt(function: Callable[..., None], *given: object) -> None:
    started = time.perf_counter()
    try:
        function(*given)
    except Exception as error:  # noqa: BLE001 - the other parts go on
        at = traceback.extract_tb(error.__traceback__)[-1]
        tell(function.__name__, f"{Path(at.filename).name}:{at.lineno} {error!r}"[:300])
    tell(function.__name__, f"{time.perf_counter() - started:.1f} s in all")


def finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(call: Callable[[], object], rounds: int = 7) -> float:
    """Median, after three calls to warm up (and to capture)."""
    for _ in range(4):
        call()
    taken = []
    for _ in range(rounds):
        finish()
        started = time.perf_counter()
        call()
        finish()
        taken.append(time.perf_counter() - started)
    return 1e3 * float(np.median(taken))


def ceilings(device: torch.device, small: bool) -> None:
    """What the card gives: a copy, and matrix products."""
    n = 2**20 if small else 2**30
    a = torch.empty(n, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    tell("copy", f"{2 * n / milliseconds(lambda: b.copy_(a)) / 1e6:.0f} GB/s")
    side = 256 if small else 8192
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x, y = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        taken = milliseconds(lambda x=x, y=y: x @ y)  # type: ignore[misc]
        tell(f"product {dtype}", f"{2 * side**3 / taken / 1e9:.0f} TFLOP/s")


def network(device: torch.device, weights: Path, small: bool) -> None:
    """The network alone, by precision, form and batch."""
    model, _ = load_i3d(weights)
    side = 64 if small else 224
    pixels = PIXEL_PRESETS["kinetics"]
    one = snippet_index(PROTOCOL.snippet_starts, snippet_frames=PROTOCOL.snippet_frames)
    frames = torch.randint(0, 256, (36 * 103, side, side, 3), dtype=torch.uint8, device=device)
    for precision in ("float32",) if small else ("fp16", "bf16", "tf32", "float32"):
        own = gpu_form(model, pixels).to(device=device, dtype=dtype_of(precision))
        counts = (1,) if small else (1, 9, 18, 36) if precision == "fp16" else (1, 9)
        for clips in counts:
            index = torch.from_numpy(np.concatenate([one + 103 * n for n in range(clips)]))
            index = index.to(device)
            own.form = PLAIN
            kernels = not small and usable_kernels(own, frames, index[:2].contiguous())
            forms = [PLAIN, *(candidates(kernels=kernels) if not small else [])]
            if clips > 9 or precision in ("float32", "tf32"):
                forms = forms[:2]
            for form in forms:
                for graphs in (False, True) if form != PLAIN or clips == 1 else (False,):
                    one_form(own, precision, form, graphs, frames, index)


def one_form(
    own: torch.nn.Module,
    precision: str,
    form: Form,
    graphs: bool,
    frames: torch.Tensor,
    index: torch.Tensor,
) -> None:
    runner = GpuNetwork(own, precision, tries_out=True, graphs=graphs, form=form)  # type: ignore[arg-type]
    name = f"{precision} {len(index)} snippets, {form}{', graph' if graphs else ''}"
    started = time.perf_counter()
    try:
        taken = milliseconds(lambda: runner.features_of_frames(frames, index, is_full=True))
    except RuntimeError as error:
        tell(name, str(error).split("\n", 1)[0][:120])
        return
    total = time.perf_counter() - started
    clips = len(index) / 10
    tell(
        name,
        f"{taken:.2f} ms, {1e3 * clips / taken:.0f} clips/s, "
        f"{GFLOP * len(index) / taken:.0f} TFLOP/s (start {total - 11e-3 * taken:.1f} s)",
    )
    runner.forget()


def profile(device: torch.device, weights: Path) -> None:
    """The longest kernels of a full batch."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    model, _ = load_i3d(weights)
    own = gpu_form(model, PIXEL_PRESETS["kinetics"]).to(device=device, dtype=torch.float16)
    one = snippet_index(PROTOCOL.snippet_starts, snippet_frames=PROTOCOL.snippet_frames)
    frames = torch.randint(0, 256, (9 * 103, 224, 224, 3), dtype=torch.uint8, device=device)
    index = torch.from_numpy(np.concatenate([one + 103 * n for n in range(9)])).to(device)
    runner = GpuNetwork(own, "fp16", tries_out=True, graphs=False)
    for _ in range(2):
        runner.features_of_frames(frames, index, is_full=True)
    finish()
    with profiler(activities=[ProfilerActivity.CUDA]) as found:
        runner.features_of_frames(frames, index, is_full=True)
        finish()
    rows = sorted(found.key_averages(), key=lambda e: -e.self_device_time_total)
    total = sum(row.self_device_time_total for row in rows)
    tell("form", f"{own.form}; {total / 1e3:.2f} ms of kernels")
    for row in rows[:16]:
        spent = row.self_device_time_total / 1e3
        tell("  kernel", f"{spent:6.2f} ms x{row.count:3d} {row.key[:100]}")


def encoder(device: torch.device, weights: Path, small: bool) -> None:
    """Groups of clips through the whole encoder, from frames in ordinary memory."""
    pixels = "demo" if small else "kinetics"
    protocol = Protocol("speed", pixels=pixels)
    crop = PIXEL_PRESETS[pixels].crop
    random = np.random.default_rng(0)
    started = time.perf_counter()
    encode = i3d_backbone(
        weights, protocol, device=str(device), precision="float32" if small else "fp16",
        num_clips=2000,
    )()  # fmt: skip
    if small:
        tell("encoder", "one clip a call on a CPU")
        return
    clips = encode.clips_at_once  # type: ignore[attr-defined]
    group = [random.integers(0, 256, (103, crop, crop, 3), dtype=np.uint8) for _ in range(clips)]
    encode.start(group)()  # type: ignore[attr-defined]
    tell("encoder: start", f"{time.perf_counter() - started:.1f} s, {clips} clips a batch")
    for _ in range(4):
        encode.start(group)()  # type: ignore[attr-defined]
    finish()
    started = time.perf_counter()
    waits = []
    for _ in range(12):
        waits.append(encode.start(group))  # type: ignore[attr-defined]
        if len(waits) > 2:
            waits.pop(0)()
    for wait in waits:
        wait()
    taken = time.perf_counter() - started
    tell("encoder: two groups under way", f"{12 * clips / taken:.0f} clips/s")
    encode(group[0])
    tell("encoder: one clip", f"{milliseconds(lambda: encode(group[0])):.1f} ms")


def stacks(device: torch.device, small: bool) -> None:
    """Seconds of an epoch's parts, K heads side by side, 1059 clips."""
    data = some_clips(120 if small else 1059)
    cases = [(4, 10, 1), (4, 10, 16), (4, 10, 64)] + [(32, 10, k) for k in (1, 2, 4, 16, 64, 128)]
    cases += [(32, None, k) for k in (1, 16)]
    for batch, exemplars, size in cases[:1] if small else cases:
        one_stack(data, device, batch, exemplars, size)
    if small:
        return
    for branches in (1, 8):
        stacked_adam._BRANCHES = branches
        stacked_adam._streams.cache_clear()
        tell("branches of Adam", str(branches))
        one_stack(data, device, 32, 10, 64)


def one_stack(
    data: object, device: torch.device, batch: int, exemplars: int | None, size: int
) -> None:
    started = time.perf_counter()
    own = Stack(
        data,  # type: ignore[arg-type]
        [ModelSettings(float(rate), 0.0, 0.0) for rate in np.geomspace(3e-4, 1e-3, size)],
        head_config=HeadConfig(aggregation="mean"),
        config=FitConfig(batch_size=batch, seed=3, num_exemplars=exemplars),
        score_range=30.0,
        epsilon=30.0,
        device=device,
        keep_states=False,
    )
    finish()
    made = time.perf_counter() - started
    own.run_epoch()
    finish()
    first = time.perf_counter() - started - made
    trained, judged = [], []
    for epoch in (2, 3):
        started = time.perf_counter()
        own._loop.epoch()
        finish()
        trained.append(time.perf_counter() - started)
        started = time.perf_counter()
        own.selection.update(epoch)
        judged.append(time.perf_counter() - started)
    tell(
        f"stack K={size} batch {batch} M={exemplars or 'all'}",
        f"epoch {1e3 * min(trained):.1f} ms trained, {1e3 * min(judged):.1f} ms judged; "
        f"made {made:.2f} s, first epoch {first:.2f} s",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", default="", help="names of parts, by commas")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("aqa_pipeline.backbone.gpu_network").setLevel(logging.INFO)
    device = torch.device(given.device)
    scratch = Path("build/gpu")
    scratch.mkdir(parents=True, exist_ok=True)
    raw = scratch / "raw.safetensors"
    packed = load_file(given.pack / "weights16.safetensors")
    save_file({name: tensor.float() for name, tensor in packed.items()}, raw)
    weights = convert_weights(raw, scratch / "weights.safetensors")
    parts: list[tuple[Callable[..., None], tuple[object, ...]]] = [
        (ceilings, (device, given.small)),
        (stacks, (device, given.small)),
        (encoder, (device, weights, given.small)),
        *([] if given.small else [(profile, (device, weights))]),
        (network, (device, weights, given.small)),
    ]
    for function, arguments in parts:
        if not given.only or function.__name__ in given.only.split(","):
            attempt(function, *arguments)


if __name__ == "__main__":
    main()
