"""A sweep on features of MTL-AQA's size, as a user starts it: seconds by the clock.

FOLDER gets a project whose clips, labels and difficulties are made up (those of ``stage2.py``,
1059 training and 353 test clips of one averaged feature), brought in by ``aqa cache import``;
then ``aqa sweep`` runs in it. What comes after ``--`` is passed on to it.

    python benchmarks/sweep.py build/sweep -- --device cuda
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd
from stage2 import some_clips

from aqa_pipeline.datasets.manifest import write_manifest
from aqa_pipeline.datasets.mtl_aqa import PROTOCOL
from aqa_pipeline.datasets.protocol import write_protocol

TRAINING, TEST = 1059, 353


def make_project(folder: Path) -> None:
    """A manifest and a cache of made-up clips."""
    clips = some_clips(TRAINING + TEST)
    names = [f"dive_{i:04d}" for i in range(len(clips))]
    manifest = folder / "manifests" / "mtl_aqa.csv"
    manifest.parent.mkdir(parents=True)
    (folder / "aqa.toml").touch()
    write_manifest(
        manifest,
        pd.DataFrame(
            {
                "clip_id": names,
                "video": "made_up.mp4",
                "end_frame": 103 + np.arange(len(clips)),
                "score": clips.score.round(2),
                "split": ["train"] * TRAINING + ["test"] * TEST,
                "difficulty": clips.difficulty,
            }
        ),
    )
    write_protocol(manifest.with_suffix(".toml"), PROTOCOL)
    np.savez(folder / "features.npz", clip_id=names, features=clips.features[:, 0])
    run(
        folder, "cache", "import", "features.npz", "--dataset", "mtl_aqa", "--backbone-name", "none"
    )


def run(folder: Path, *arguments: str) -> None:
    aqa = Path(sys.executable).with_name("aqa")
    subprocess.run([aqa, *arguments], cwd=folder, check=True)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--trials", default=32, show_default=True)
@click.option("--epochs", default=40, show_default=True)
@click.option("--batch", default=32, show_default=True)
@click.argument("passed_on", nargs=-1, type=click.UNPROCESSED)
def main(folder: Path, trials: int, epochs: int, batch: int, passed_on: tuple[str, ...]) -> None:
    """Time a sweep in FOLDER, which is made if it is not there."""
    if not (folder / "aqa.toml").exists():
        make_project(folder)
    fixed = {"aggregation": "mean", "batch_size": batch, "epochs": epochs, "lr": "1e-4..1e-2:log"}
    settings = [word for name, value in fixed.items() for word in ("--set", f"{name}={value}")]
    started = time.perf_counter()
    run(folder, "sweep", "--dataset", "mtl_aqa", *settings, "--trials", str(trials),
        "--no-early-stop", "--again", *passed_on)  # fmt: skip
    taken = time.perf_counter() - started
    print(f"{trials} trials x {epochs} epochs at batch {batch}: {taken:.1f} s")


if __name__ == "__main__":
    main()
