"""Choice of the default regressor, aggregation and constants by cross-validation.

The training split of a data set is cut into folds; heads are fitted on all but one (their
epoch chosen by a validation part of those) and judged on the one left out. The test split is
never read. Prints Spearman's rho of the score and of the label (the raw score, where the
protocol divides by difficulty), mean over folds and seeds, and of the seeds' mean.

    cd PROJECT && python .../benchmarks/defaults.py --dataset demo
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from aqa_pipeline.cache.load import find_cache, load_split
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.metrics import spearman
from aqa_pipeline.datasets.manifest import read_manifest
from aqa_pipeline.datasets.parts import parts_of
from aqa_pipeline.datasets.split import fold_numbers
from aqa_pipeline.project import Project
from aqa_pipeline.runs.evaluate import predict_clips
from aqa_pipeline.runs.folder import Run
from aqa_pipeline.training.svr import train_svrs
from aqa_pipeline.training.train import train_heads

CPU = torch.device("cpu")

#: What is compared with the defaults: name -> fields of HeadConfig and FitConfig.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "hidden 128": {"hidden": 128},
    "hidden 64": {"hidden": 64},
    "hidden 32": {"hidden": 32},
    "hidden 16": {"hidden": 16},
    "hidden 32, lr 1e-3": {"hidden": 32, "learning_rate": 1e-3},
    "hidden 32, 24 epochs": {"hidden": 32, "epochs": 24},
    "hidden 64, lr 1e-3": {"hidden": 64, "learning_rate": 1e-3},
    "hidden 64, not standardised": {"hidden": 64, "standardise": False},
    "hidden 64, attention": {"hidden": 64, "aggregation": "attention"},
    "hidden 64, mean (the paper's)": {"hidden": 64, "aggregation": "mean"},
    "hidden 64, CoRe + MLP": {"hidden": 64, "kind": "mlp"},
    "hidden 64, I3D + MLP": {"hidden": 64, "kind": "mlp", "mode": "direct"},
    "M = 10": {"num_exemplars": 10},
    "lstm": {"aggregation": "lstm"},
    "8 groups": {"num_groups": 8},
    "32 groups": {"num_groups": 32},
    "recipe official": {"recipe": "official"},
    "recipe paper": {"recipe": "paper"},
    "I3D + GART": {"mode": "direct"},
    "I3D + USDL": {"kind": "usdl", "mode": "direct"},
    "I3D + MUSDL": {"kind": "musdl", "mode": "direct"},
    "I3D + SVR": {"kind": "svr", "mode": "direct"},
}


def configs(settings: dict[str, Any], num_seeds: int) -> tuple[HeadConfig, FitConfig]:
    """All exemplars of a difficulty vote, as in the demo, unless said otherwise."""
    names = {field.name for field in dataclasses.fields(HeadConfig)}
    head = HeadConfig(**{k: v for k, v in settings.items() if k in names})
    rest = {k: v for k, v in settings.items() if k not in names}
    return head, FitConfig(**{"num_exemplars": None, "num_seeds": num_seeds, **rest})


def folds(train: FeatureSet, rows: Any, count: int) -> Iterator[tuple[FeatureSet, FeatureSet]]:
    fold = fold_numbers(rows, num_folds=count, seed=0)
    for k in range(count):
        yield train.take(np.flatnonzero(fold != k)), train.take(np.flatnonzero(fold == k))


def judge(run: Run, clips: FeatureSet) -> list[float]:
    """rho, rho of the label, rho of the mean of the heads."""
    predicted = predict_clips(run, clips)
    labels = (predicted.per_head - clips.offset) / clips.scale
    return [
        float(np.mean([spearman(clips.score, p) for p in predicted.per_head])),
        float(np.mean([spearman(clips.label, p) for p in labels])),
        spearman(clips.score, predicted.score),
    ]


@click.command()
@click.option("--dataset", default="demo", show_default=True)
@click.option("--folds", "num_folds", default=4, show_default=True)
@click.option("--seeds", default=5, show_default=True)
@click.option("--only", multiple=True, help="Variants to run; default: all.")
@click.option("--json", "as_json", is_flag=True, help="JSON alone on stdout.")
def main(dataset: str, num_folds: int, seeds: int, only: tuple[str, ...], as_json: bool) -> None:
    """Cross-validate heads inside the training split of a data set."""
    project = Project.find()
    manifest = read_manifest(project.manifest_path(dataset))
    cache: FeatureCache = find_cache(project.cache / dataset, manifest.protocol)
    protocol, part = manifest.protocol, parts_of(manifest)[0]
    clips = load_split(manifest, cache, part)
    rows = part.rows(manifest, "train").reset_index(drop=True)
    found = []
    if not as_json:
        print(f"{len(clips.train)} training clips, {num_folds} folds, {seeds} seeds")
        print(f"{'':24s}    rho  label's rho  heads averaged  seconds")
    for name in only or VARIANTS:
        head_config, config = configs(VARIANTS[name], seeds)
        started = time.perf_counter()
        values = []
        for fit, held_out in folds(clips.train, rows, num_folds):
            if head_config.is_svr:
                head = train_svrs(fit, head_config=head_config, config=config, device=CPU).head
            else:
                head = train_heads(  # type: ignore[assignment]
                    fit,
                    head_config=head_config,
                    config=config,
                    score_range=protocol.score_range,
                    epsilon=protocol.epsilon,
                    device=CPU,
                ).head
            run = Run(Path(name), head, fit, protocol, clips.labels, config)
            values.append(judge(run, held_out))
        seconds = time.perf_counter() - started
        rho, label_rho, averaged = np.mean(values, axis=0).tolist()
        found.append(
            {"name": name, "rho": rho, "label_rho": label_rho, "averaged_rho": averaged,
             "seconds": seconds}
        )  # fmt: skip
        if not as_json:
            print(f"{name:24s}  {rho:5.3f}  {label_rho:11.3f}  {averaged:14.3f}  {seconds:7.0f}",
                  flush=True)  # fmt: skip
    if as_json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
