"""Check that the quick form of the backbone ranks clips as the plain one does.

    aqa demo && python benchmarks/same_ranking.py [PROJECT]
    aqa demo && python benchmarks/same_ranking.py --disturb 1e-5 [PROJECT]

Decodes the demo's test clips, takes their features with both forms, and scores both with
the heads of runs/demo. With --disturb the second form's features are the cached ones with
a drawn error up to that fraction of the largest: seconds instead of minutes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from plain_i3d import PlainI3D
from stage1_files import tasks_of

from aqa_pipeline.backbone.encoder import i3d_backbone
from aqa_pipeline.backbone.i3d import normalise
from aqa_pipeline.backbone.weights import find_weights, load_i3d
from aqa_pipeline.cache.load import feature_set, find_cache, load_features
from aqa_pipeline.config import PIXEL_PRESETS
from aqa_pipeline.core.labels import LabelScale
from aqa_pipeline.core.metrics import spearman
from aqa_pipeline.datasets.manifest import read_manifest
from aqa_pipeline.datasets.parts import Part
from aqa_pipeline.media.clip import read_clip
from aqa_pipeline.media.snippets import snippet_index
from aqa_pipeline.runs.evaluate import predict_clips
from aqa_pipeline.runs.folder import read_run


def both_features(manifest: Any, rows: Any, weights: Path) -> dict[str, np.ndarray]:
    """Features of clips, shape=(clips, snippets, dim), in both forms."""
    protocol = manifest.protocol
    pixels = PIXEL_PRESETS[protocol.pixels]
    index = snippet_index(protocol.snippet_starts, snippet_frames=protocol.snippet_frames)
    plain = PlainI3D(load_i3d(weights)[0])
    encode = i3d_backbone(weights, protocol)()
    tasks = {task.clip_id: task for task in tasks_of(manifest, Path("cache/video-index"))}
    features: dict[str, list[np.ndarray]] = {"plain": [], "ours": []}
    for clip_id in rows["clip_id"]:
        frames = read_clip(tasks[clip_id]).frames
        snippets = normalise(torch.from_numpy(frames[index]), pixels).contiguous()
        features["plain"].append(plain.features(snippets).numpy())
        features["ours"].append(encode(frames))
    return {name: np.stack(values) for name, values in features.items()}


def disturbed_features(manifest: Any, rows: Any, fraction: float) -> dict[str, np.ndarray]:
    """Cached features of clips, and the same with errors up to a fraction of the largest."""
    cache = find_cache(Path("cache/demo"), manifest.protocol)
    cached = load_features(manifest, cache, rows["clip_id"].tolist())
    errors = np.random.default_rng(0).uniform(-1, 1, cached.shape) * fraction * cached.max()
    return {"plain": cached, "ours": (cached + errors).astype(np.float32)}


@click.command()
@click.argument("project", type=click.Path(path_type=Path, exists=True), default=Path())
@click.option("--clips", type=int, default=None, help="Only the first so many test clips.")
@click.option("--disturb", type=float, default=None, help="Fraction of the largest feature.")
@click.option("--json", "as_json", is_flag=True, help="JSON alone on stdout.")
def main(project: Path, clips: int | None, disturb: float | None, as_json: bool) -> None:
    """Compare the rankings of both forms."""
    os.chdir(project)
    manifest = read_manifest(Path("manifests/demo.csv"))
    train, rows = (Part().rows(manifest, side) for side in ("train", "test"))
    rows = rows.iloc[:clips]
    run = read_run(Path("runs/demo"), device=torch.device("cpu"))
    labels = LabelScale.of(
        manifest.protocol,
        train_scores=train["score"].to_numpy(dtype=float),
        train_categories=train["category"].tolist(),
    )
    if disturb is None:
        features = both_features(manifest, rows, find_weights(None))
    else:
        features = disturbed_features(manifest, rows, disturb)
    scores = {
        name: predict_clips(run, feature_set(rows, values, manifest, labels)).per_head
        for name, values in features.items()
    }
    true = rows["score"].to_numpy(dtype=float)
    rho = {name: [spearman(true, head) for head in heads] for name, heads in scores.items()}
    error = np.abs(features["ours"] - features["plain"]).max() / np.abs(features["plain"]).max()
    result = {
        "clips": len(rows),
        "relative_error_of_features": float(error),
        "rho_plain": float(np.mean(rho["plain"])),
        "rho_ours": float(np.mean(rho["ours"])),
        "largest_difference_of_rho": float(
            max(abs(a - b) for a, b in zip(rho["plain"], rho["ours"], strict=True))
        ),
        "rho_between": float(min(map(spearman, scores["plain"], scores["ours"]))),
        "largest_difference_points": float(np.abs(scores["plain"] - scores["ours"]).max()),
    }
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name.replace('_', ' '):30s} {value:.6g}")


if __name__ == "__main__":
    main()
