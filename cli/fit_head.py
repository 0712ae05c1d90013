"""``aqa fit-head``: stage two."""

from __future__ import annotations

from pathlib import Path

import click

from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.project import Project

from .console import progress, say
from .metrics import show_metrics
from .options import json_option, manifest_options, manifest_path, pass_project


def exemplar_count(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """``--num-exemplars``: a count, or ``all``, which is None."""
    if value == "all":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a whole number from 1 on nor all")
    return int(value)


@click.command("fit-head")
@manifest_options
@click.option(
    "--run", metavar="NAME", default=None, help="Run folder; default: the data set's name."
)
@click.option(
    "--cache",
    "cache_folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Cache folder, where several fit the protocol.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=FitConfig.num_seeds,
    help="Heads trained side by side, each with a seed of its own.",
)
@click.option("--seed", type=click.IntRange(min=0), default=FitConfig.seed, help="First seed.")
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=FitConfig.epochs,
    help="Passes over the training clips.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=FitConfig.batch_size,
    help="Pairs a step; each is trained in both orders.",
)
@click.option(
    "--lr",
    type=click.FloatRange(min=0, min_open=True),
    default=FitConfig.learning_rate,
    help="Adam's learning rate.",
)
@click.option(
    "--weight-decay",
    type=click.FloatRange(min=0),
    default=FitConfig.weight_decay,
    help="Of Adam; 0 in the paper.",
)
@click.option(
    "--num-groups",
    type=click.IntRange(min=2),
    default=HeadConfig.num_groups,
    help="Leaves of the tree, a power of two.",
)
@click.option(
    "--aggregation",
    type=click.Choice(["mean", "ordered"]),
    default=HeadConfig.aggregation,
    help="How the snippets become one vector; mean is the paper's.",
)
@click.option(
    "--num-exemplars",
    metavar="INTEGER|all",
    callback=exemplar_count,
    default=str(FitConfig.num_exemplars),
    help="Exemplars that vote on a test clip.",
)
@click.option(
    "--validation-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=FitConfig.validation_fraction,
    help="Part of the training split that chooses the epoch.",
)
@json_option
@pass_project
def fit_head(
    project: Project,
    dataset: str | None,
    manifest: Path | None,
    run: str | None,
    cache_folder: Path | None,
    seeds: int,
    seed: int,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    num_groups: int,
    aggregation: str,
    num_exemplars: int | None,
    validation_fraction: float,
    as_json: bool,
) -> None:
    """Train CoRe + GART heads on cached features and score the test split once.

    The epoch is chosen on a validation part of the training split. Everything needed to
    score new clips goes into the run folder.
    """
    import torch

    from aqa_pipeline.feature_cache import FeatureCache
    from aqa_pipeline.fit import fit_head as run_fit
    from aqa_pipeline.manifest import read_manifest
    from aqa_pipeline.plan import find_cache

    clips = read_manifest(manifest_path(project, dataset, manifest))
    cache = (
        FeatureCache.open(cache_folder)
        if cache_folder
        else find_cache(project.cache / clips.name, clips.protocol)
    )
    folder = project.runs / (run or clips.name)
    with progress("fit-head", unit="epochs") as advance:
        result = run_fit(
            clips,
            cache,
            folder,
            head_config=HeadConfig(num_groups=num_groups, aggregation=aggregation),  # type: ignore[arg-type]
            fit_config=FitConfig(
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=lr,
                weight_decay=weight_decay,
                num_exemplars=num_exemplars,
                validation_fraction=validation_fraction,
                seed=seed,
                num_seeds=seeds,
            ),
            device=torch.device("cpu"),
            advance=advance,
        )
    show_metrics(project, folder, result.metrics, as_json=as_json)
    say(f"run: {project.shown(folder)}")
