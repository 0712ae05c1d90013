"""Coverage of the 90 % intervals on the demo: five divisions of its dives, five heads each.

    python benchmarks/coverage.py PROJECT

PROJECT is a folder in which ``aqa demo`` has run. Seed 0 is the demo's own division; seeds 1 to 4
divide the same 264 dives anew (as ``aqa manifest split`` does) and draw other heads. Prints how
many test scores lie inside the intervals, and how many to expect from the counts alone.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import torch

from aqa_pipeline.cache.load import find_cache
from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.datasets.manifest import read_manifest
from aqa_pipeline.datasets.split import split_clips
from aqa_pipeline.runs.conformal import coverage_spread
from aqa_pipeline.training.fit import fit_dataset

SEEDS = 5
HEADS = 5


def main(project: Path) -> None:
    manifest = read_manifest(project / "manifests" / "demo.csv")
    cache = find_cache(project / "cache" / "demo", manifest.protocol)
    clips = manifest.clips
    num_test = int((clips["split"] == "test").sum())
    inside = tests = 0
    for seed in range(SEEDS):
        divided = manifest
        if seed:
            sides = split_clips(clips, test_fraction=num_test / len(clips), seed=seed)
            divided = dataclasses.replace(manifest, clips=clips.assign(split=sides))
        with tempfile.TemporaryDirectory() as folder:
            metrics = fit_dataset(
                divided,
                cache,
                Path(folder) / "run",
                head_config=HeadConfig(),
                fit_config=FitConfig(num_seeds=HEADS, num_exemplars=None, seed=HEADS * seed),
                device=torch.device("cpu"),
            )
        found = metrics.intervals
        inside, tests = inside + found["inside"], tests + found["num_test"]
        low, high = (round(share * found["num_test"]) for share in found["expected_95"])
        print(
            f"seed {seed}: {found['inside']} of {found['num_test']} inside, {low} to {high} "
            f"expected, {found['mean_width']:.1f} points wide, "
            f"{found['calibrating_clips']} clips calibrate, "
            f"Spearman of single heads {metrics.heads['rho'].mean:.3f}, "
            f"averaged {metrics.ensemble.rho:.3f}",
            flush=True,
        )
    mean, _, _ = coverage_spread(
        num_residuals=found["calibrating_clips"], num_clips=num_test, coverage=found["asked"]
    )
    print(f"all: {inside} of {tests} inside, {inside / tests:.1%}; {mean:.1%} expected")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
