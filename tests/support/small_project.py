"""A project with a few tiny videos and a quick backbone, for tests of stages and commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from aqa_pipeline.backbone.encoder import Encode
from aqa_pipeline.config import Protocol
from aqa_pipeline.datasets.manifest import Manifest, read_manifest, write_manifest
from aqa_pipeline.datasets.protocol import write_protocol
from tests.support.videos import frame_numbers, write_video

#: One snippet of 9 frames: what the smallest clip costs on the real network.
PROTOCOL = Protocol(
    name="small",
    window_rule="last",
    window_frames=9,
    snippet_frames=9,
    snippet_starts=(0,),
    pixels="demo",
    exemplar_key=("difficulty",),
    label_transform="raw",
    score_range=30.0,
    epsilon=30.0,
)


def fake_backbone() -> Encode:
    """A network that sees the frame numbers: features are (first, last, mean of the window)."""
    return encode_numbers


def encode_numbers(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(window, crop, crop, 3) -> (1, 3): first, last and mean frame number."""
    numbers = frame_numbers(frames)
    return np.array([[numbers[0], numbers[-1], np.mean(numbers)]], dtype=np.float32)


def make_project(root: Path, *, clips_per_video: int = 8, videos: int = 2) -> Manifest:
    """Write videos, ``manifests/small.csv`` and ``small.toml`` below ``root``; read it back."""
    rows = []
    rng = np.random.default_rng(0)
    for video in range(videos):
        path = root / "videos" / f"v{video}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, 20 + 5 * clips_per_video, size=(160, 128))
        for clip in range(clips_per_video):
            difficulty = (2.0, 2.5)[clip % 2]
            rows.append(
                {
                    "clip_id": f"v{video}_{clip}",
                    "video": f"../videos/{path.name}",
                    "start_frame": 5 * clip,
                    "end_frame": 12 + 5 * clip,
                    "score": round(float(rng.uniform(10, 28)) * difficulty, 2),
                    "split": "test" if clip >= clips_per_video - 2 else "train",
                    "difficulty": difficulty,
                }
            )
    path = root / "manifests" / "small.csv"
    path.parent.mkdir(exist_ok=True)
    write_manifest(path, pd.DataFrame(rows))
    write_protocol(path.with_suffix(".toml"), PROTOCOL)
    return read_manifest(path)
