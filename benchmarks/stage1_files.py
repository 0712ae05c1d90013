"""The whole extraction over files that are written here: its speed and its memory."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import av
import numpy as np
import pandas as pd
from stage1_network import clocks

from aqa_pipeline.backbone.encoder import i3d_backbone
from aqa_pipeline.backbone.i3d import I3D
from aqa_pipeline.backbone.weights import weights_identity
from aqa_pipeline.cache.fingerprint import fingerprint_of
from aqa_pipeline.config import PIXEL_PRESETS, ExtractConfig, Protocol
from aqa_pipeline.datasets.locate import locate
from aqa_pipeline.datasets.manifest import Manifest, read_manifest, write_manifest
from aqa_pipeline.datasets.protocol import write_protocol
from aqa_pipeline.extraction.plan import plan_extraction
from aqa_pipeline.extraction.work import default_workers, extract
from aqa_pipeline.media.decode_pool import DecodeTask, decode_clip

Row = dict[str, Any]


def write_broadcast(path: Path, num_frames: int, *, size: tuple[int, int]) -> None:
    """H.264, 25 frames a second, a keyframe every two seconds, something moving."""
    width, height = size
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    pool = blocks.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = 50
        for number in range(num_frames):
            image = np.roll(pool, number // 2, axis=1)
            left = 5 * number % (width - 80)
            image[100:200, left : left + 60] = 255 - number % 256
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))


def write_project(
    root: Path, *, clips: int, num_frames: int, size: tuple[int, int], pixels: str
) -> Manifest:
    """One broadcast with clips spread over it."""
    (root / "manifests").mkdir(parents=True)
    write_broadcast(root / "broadcast.mp4", num_frames, size=size)
    ends = np.linspace(110, num_frames, clips).astype(int)
    path = root / "manifests" / "bench.csv"
    rows = {"clip_id": [f"c{n}" for n in range(clips)], "video": "../broadcast.mp4"}
    write_manifest(path, pd.DataFrame({**rows, "end_frame": ends, "score": 50.0}))
    write_protocol(path.with_suffix(".toml"), Protocol("bench", pixels=pixels))
    (root / "aqa.toml").touch()
    return read_manifest(path)


def write_weights(path: Path, model: I3D) -> Path:
    from safetensors.torch import save_file

    from aqa_pipeline.backbone.weights import convert_weights

    raw = path.with_name("raw.safetensors")
    save_file(model.state_dict(), raw)
    return convert_weights(raw, path)


def tasks_of(manifest: Manifest, index_folder: Path) -> list[DecodeTask]:
    located, _ = locate(manifest, index_folder=index_folder)
    pixels = PIXEL_PRESETS[manifest.protocol.pixels]
    return [
        DecodeTask(item.clip.clip_id, item.clip.video, item.positions, pixels, index_folder, False)
        for item in located
    ]


def extraction(
    root: Path, weights: Path, *, clips: int, rounds: int, device: str, precision: str
) -> Row:
    """Clips a second of `aqa extract`'s function and of the network alone, by turns."""
    manifest = write_project(
        root, clips=clips, num_frames=110 * clips, size=(640, 360), pixels="kinetics"
    )
    tasks = tasks_of(manifest, root / "cache" / "video-index")
    decode_seconds, windows = 0.0, []
    for task in tasks:
        started = time.perf_counter()
        windows.append(decode_clip(task).frames)
        decode_seconds += time.perf_counter() - started
    fingerprint = fingerprint_of(
        manifest.protocol, weights_sha256=weights_identity(weights), precision=precision
    )
    backbone = i3d_backbone(weights, manifest.protocol, device=device, precision=precision)
    encode = backbone()
    encode(windows[0])

    def network_alone() -> None:
        group = getattr(encode, "clips_at_once", 1)
        for first in range(0, clips, group):
            if group > 1:
                encode.start(windows[first : first + group])()  # type: ignore[attr-defined]
            else:
                encode(windows[first])

    def whole_with_children(number: int) -> tuple[float, float]:
        """As :func:`clocks`, the decoding processes included once they have ended."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall, processor = clocks(lambda: whole(number))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return wall, processor + spent

    config = ExtractConfig(workers=default_workers(device))  # as `aqa extract` decides

    def whole(number: int) -> None:
        plan = plan_extraction(
            manifest, cache_root=root / f"cache{number}", fingerprint=fingerprint
        )
        summary = extract(plan, backbone=lambda: encode, config=config)
        if summary.num_extracted != clips:
            raise SystemExit(f"{clips - summary.num_extracted} clips failed")

    taken = np.array([(whole_with_children(n), clocks(network_alone)) for n in range(rounds)])
    whole_seconds, alone_seconds = np.median(taken[..., 0], axis=0)
    ratios = np.median(taken[:, 0] / taken[:, 1], axis=0)
    return {
        "clips": clips,
        "clips_per_second": clips / whole_seconds,
        "network_alone_clips_per_second": clips / alone_seconds,
        "slower_by": float(ratios[0]) - 1,
        "more_processor_time": float(ratios[1]) - 1,
        "decode_frames_per_second": len(tasks) * len(windows[0]) / decode_seconds,
    }


# --- memory -----------------------------------------------------------------------------


def memory_of_tree(pid: int) -> int:
    """Bytes of a process and all below it, pages that several share counted once (PSS)."""
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
            for thread in Path(f"/proc/{one}/task").iterdir():
                waiting += [int(n) for n in (thread / "children").read_text().split()]
    return total


@contextlib.contextmanager
def watched_memory(pid: int) -> Iterator[list[int]]:
    seen, stop = [0], Event()

    def watch() -> None:
        while not stop.wait(0.25):
            seen[0] = max(seen[0], memory_of_tree(pid))

    thread = Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def memory(root: Path, weights: Path, *, clips: int, num_frames: int, size: tuple[int, int]) -> Row:
    """Peak memory of the real command."""
    write_project(root, clips=clips, num_frames=num_frames, size=size, pixels="kinetics")
    command = [sys.executable, "-c", "from aqa_cli.main import main; main()", "extract"]
    options = ["--dataset", "bench", "--weights", str(weights), "--json", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, *options], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with watched_memory(process.pid) as seen:
        out, err = process.communicate()
    if process.returncode or json.loads(out)["num_extracted"] != clips:
        raise SystemExit(f"aqa extract failed: {err}")
    return {
        "picture": f"{size[0]}x{size[1]}",
        "video_minutes": num_frames / 25 / 60,
        "clips": clips,
        "peak_gigabytes": seen[0] / 1e9,
    }
