"""``aqa demo``: the whole pipeline on a diving competition made on the spot."""

from __future__ import annotations

from pathlib import Path

import click

from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.errors import ClipError
from aqa_pipeline.project import Project

from .console import progress, say
from .fields import config_option
from .options import device_option, json_option, pass_project, weights_option
from .show import show_metrics


@click.command()
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the competition.")
@click.option("--train", type=click.IntRange(min=20), default=200, help="Dives to learn from.")
@click.option("--test", type=click.IntRange(min=2), default=64, help="Dives to test on.")
@config_option(FitConfig(num_seeds=5), "seeds", help="Heads to train.")
@weights_option
@device_option
@json_option
@pass_project
def demo(
    project: Project,
    seed: int,
    train: int,
    test: int,
    seeds: int,
    weights: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Run everything once on a small diving competition, rendered and encoded here.

    Fetches the I3D weights if need be, renders a few broadcasts with many dives, extracts
    their features, trains heads and scores dives that were not seen before. Everything
    it makes stays: manifests/demo.csv, cache/demo, runs/demo. What is there is not made
    again.
    """
    from aqa_pipeline.device import share_cores

    share_cores()  # before torch is imported
    from aqa_pipeline.backbone.weights import fetch_weights, fetched_path
    from aqa_pipeline.datasets.demo.competition import DemoConfig
    from aqa_pipeline.datasets.demo.dataset import ceiling, write_demo
    from aqa_pipeline.device import find_device
    from aqa_pipeline.extraction.extract import extract_dataset
    from aqa_pipeline.training.fit import fit_dataset

    computing_on = find_device(device)
    if weights is None and not fetched_path().exists():
        say("fetching the I3D weights (47 MB)")
        fetch_weights()
    with progress("render", unit="broadcasts") as shown:
        manifest = write_demo(
            project.manifest_path("demo"),
            DemoConfig(seed=seed, num_train=train, num_test=test),
            progress=shown,
        )
    with progress("extract", unit="clips") as shown:
        summary = extract_dataset(
            manifest,
            cache_root=project.cache,
            weights=weights,
            device=str(computing_on),
            progress=shown,
        )
    if summary.failures:
        first = summary.failures[0]
        raise ClipError(f"{len(summary.failures)} clips failed, {first.clip_id}: {first.error}")
    with progress("fit-head", unit="epochs") as shown:
        metrics = fit_dataset(
            manifest,
            summary.open_cache(),
            project.runs / "demo",
            head_config=HeadConfig(),
            # A difficulty has some twenty training dives: all of them may vote.
            fit_config=FitConfig(num_seeds=seeds, num_exemplars=None),
            device=computing_on,
            progress=shown,
        )
    show_metrics(
        project,
        project.runs / "demo",
        metrics,
        as_json=as_json,
        ceiling=ceiling(manifest),
    )
    say(f"run: {project.shown(project.runs / 'demo')}")
