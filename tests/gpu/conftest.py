"""Fixtures of the checks that need a GPU: `make gpu`, with the pack of `make gpu-pack`.

The pack holds the weights (in float16, and so on both sides), one broadcast of the demo, and
the features that a CPU computed of its clips. `AQA_GPU_REHEARSAL=1` runs what can run on a
CPU, to try the checks themselves.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from aqa_pipeline.backbone.encoder import i3d_backbone
from aqa_pipeline.backbone.weights import convert_weights
from aqa_pipeline.config import PIXEL_PRESETS, Protocol
from aqa_pipeline.media.clip import DecodeTask, read_clip

REHEARSAL = os.environ.get("AQA_GPU_REHEARSAL") == "1"
PACK = Path(os.environ.get("AQA_GPU_PACK", ".gpu"))

Reading = Callable[[str, str], None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() or REHEARSAL:
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def reading() -> Iterator[Reading]:
    """Writes a measured number down: to the terminal, and to the file AQA_GPU_READINGS."""
    path = os.environ.get("AQA_GPU_READINGS", os.devnull)
    with open(path, "a", encoding="utf-8") as file:

        def write(name: str, text: str) -> None:
            line = f"{name:40} {text}"
            print(line, file=file, flush=True)
            print("\n" + line, flush=True)  # noqa: T201 - readings are what this is for

        yield write


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if REHEARSAL else "cuda")


@dataclass(frozen=True)
class Golden:
    """Clips of a demo broadcast, and what a CPU made of them in float32."""

    protocol: Protocol
    weights: Path
    frames: list[npt.NDArray[np.uint8]]
    sums: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]  # (clips, snippets, dim)

    def encoder(self, device: torch.device, precision: str, num_clips: int = 1000):  # type: ignore[no-untyped-def]
        """The encoder of an extraction of many clips."""
        load = i3d_backbone(
            self.weights,
            self.protocol,
            device=str(device),
            precision=precision,
            num_clips=num_clips,
        )
        return load()


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    if not (PACK / "golden.npz").exists():
        pytest.skip(f"needs {PACK}: type `make gpu-pack`")
    scratch = tmp_path_factory.mktemp("golden")
    raw = scratch / "raw.safetensors"
    save_file({n: t.float() for n, t in load_file(PACK / "weights16.safetensors").items()}, raw)
    known = np.load(PACK / "golden.npz")
    count = 2 if REHEARSAL else len(known["sums"])
    video, index = PACK / "golden.mp4", scratch / "index"
    pixels = PIXEL_PRESETS["demo"]
    tasks = [
        DecodeTask(f"g{n}", video, positions, pixels, index, False)
        for n, positions in enumerate(known["positions"][:count])
    ]
    return Golden(
        protocol=Protocol("demo", pixels="demo"),
        weights=convert_weights(raw, scratch / "weights.safetensors"),
        frames=[read_clip(task).frames for task in tasks],
        sums=known["sums"][:count],
        features=known["features"][:count],
    )


@contextlib.contextmanager
def limited_memory(extra_bytes: float, device: torch.device) -> Iterator[None]:
    """Leave only so much memory of the GPU to this process."""
    device = torch.device("cuda", device.index or 0)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    share = (torch.cuda.memory_allocated(device) + extra_bytes) / total
    torch.cuda.set_per_process_memory_fraction(share, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def largest_error(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """Relative to the largest number of ``b``."""
    return float(np.abs(a - b).max() / np.abs(b).max())
