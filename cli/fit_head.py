"""``aqa fit-head``: stage two."""

from __future__ import annotations

from pathlib import Path

import click

from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.project import Project

from .console import progress, say
from .fields import config_options
from .options import (
    cache_option,
    device_option,
    exemplar_key_option,
    json_option,
    manifest_options,
    manifest_path,
    pass_project,
)
from .show import show_metrics


@click.command("fit-head")
@manifest_options
@click.option(
    "--run", metavar="NAME", default=None, help="Run folder; default: the data set's name."
)
@cache_option
@config_options(
    "head mode recipe num-groups aggregation standardise hidden difficulty",
    exemplar_key_option,
    "num-exemplars model-selection seeds seed epochs batch-size lr weight-decay dropout views",
    "validation-fraction range",
    head=HeadConfig(),
    fit=FitConfig(),
)
@device_option
@json_option
@pass_project
def fit_head(
    project: Project,
    dataset: str | None,
    manifest: Path | None,
    run: str | None,
    cache_folder: Path | None,
    head: HeadConfig,
    fit: FitConfig,
    exemplar_key: tuple[str, ...],
    device: str,
    as_json: bool,
) -> None:
    """Train heads on cached features and score the test split once.

    The default is CoRe + GART. The epoch is chosen on a validation part of the training
    split. Everything needed to score new clips goes into the run folder. Categories and
    folds, where the protocol has them, get heads and a folder each.
    """
    from aqa_pipeline.cache.load import open_cache
    from aqa_pipeline.datasets.manifest import read_manifest, with_exemplar_key
    from aqa_pipeline.training.fit import fit_dataset

    clips = read_manifest(manifest_path(project, dataset, manifest))
    cache = open_cache(clips, cache_root=project.cache, folder=cache_folder)
    if exemplar_key:
        clips = with_exemplar_key(clips, exemplar_key)
    folder = project.runs / (run or clips.name)
    with progress("fit-head", unit="grid points" if head.is_svr else "epochs") as shown:
        metrics = fit_dataset(
            clips,
            cache,
            folder,
            head_config=head,
            fit_config=fit,
            device=device,
            progress=shown,
        )
    show_metrics(project, folder, metrics, as_json=as_json)
    say(f"run: {project.shown(folder)}")
