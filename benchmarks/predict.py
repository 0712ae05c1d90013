"""Time to score a new video, against its backbone pass and the published way.

    python benchmarks/predict.py PROJECT

PROJECT is a folder in which ``aqa demo`` has run. After start-up, by turns: one clip's backbone
pass alone; ``Scorer.score`` on the same clip, from the file to the score; and, once, what the
published program does for a score with 10 exemplars: each vote decodes and encodes the clip and its
exemplar, 20 encodings.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aqa_pipeline import Scorer
from aqa_pipeline.datasets.manifest import read_manifest
from aqa_pipeline.scoring.assessor import ClipMetadata

ROUNDS = 7
EXEMPLARS = 10


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main(project: Path) -> None:
    os.chdir(project)
    manifest = read_manifest(Path("manifests/demo.csv"))
    rows = manifest.clips.to_dict("records")
    row = next(row for row in rows if row["split"] == "test")
    known = [row for row in rows if row["split"] == "train"][:EXEMPLARS]
    started = time.perf_counter()
    with Scorer.load("demo") as scorer:

        def decode(row: dict[str, Any]) -> Any:
            return scorer.decode(
                manifest.video_path(row["video"]),
                ClipMetadata(int(row["start_frame"]), int(row["end_frame"])),
            )

        def score() -> None:
            scorer.score(
                manifest.video_path(row["video"]),
                start_frame=int(row["start_frame"]),
                end_frame=int(row["end_frame"]),
                difficulty=row["difficulty"],
            )

        def published() -> None:
            for other in known:
                for clip in (row, other):
                    scorer.encode(decode(clip).frames)

        frames = decode(row).frames
        score()
        print(f"start-up and first score: {time.perf_counter() - started:.2f} s")
        taken = np.array(
            [(seconds(lambda: scorer.encode(frames)), seconds(score)) for _ in range(ROUNDS)]
        )
        encode, whole = np.median(taken, axis=0)
        ratio = float(np.median(taken[:, 1] / taken[:, 0]))
        print(
            f"{torch.get_num_threads()} threads, {frames.shape[1]} pixels: backbone pass "
            f"{encode:.3f} s, score {whole:.3f} s, ratio {ratio:.3f}"
        )
        twenty = seconds(published)
        print(
            f"the published way, {2 * EXEMPLARS} encodings: {twenty:.2f} s, "
            f"{twenty / whole:.1f} times as long"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
