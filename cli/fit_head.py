"""``aqa fit-head``: stage two."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.project import Project

from .console import progress, say
from .metrics import show_metrics
from .options import (
    cache_option,
    device_option,
    json_option,
    manifest_options,
    manifest_path,
    model_selection_value,
    pass_project,
)


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
@cache_option
@click.option(
    "--head",
    "kind",
    type=click.Choice(["gart", "mlp", "usdl", "musdl", "svr", "dct-svr"]),
    default=HeadConfig.kind,
    help="Regression tree or 3-layer MLP; with --mode direct also a distribution over scores "
    "(usdl) or over each judge's marks (musdl), and support vectors on the mean of the snippets "
    "(svr) or on their slow changes (dct-svr).",
)
@click.option(
    "--mode",
    type=click.Choice(["contrastive", "direct"]),
    default=HeadConfig.mode,
    help="Compare with exemplars (CoRe), or score from the clip alone (I3D).",
)
@click.option(
    "--recipe",
    type=click.Choice(["default", "official", "paper"]),
    default=HeadConfig.recipe,
    help="Groups and loss of the tree: ours, as published, or as printed in the paper.",
)
@click.option(
    "--num-groups",
    type=click.IntRange(min=2),
    default=HeadConfig.num_groups,
    help="Leaves of the tree, a power of two; the paper's depth 5 is 32, published as 16.",
)
@click.option(
    "--aggregation",
    type=click.Choice(["mean", "ordered", "attention", "lstm"]),
    default=HeadConfig.aggregation,
    help="How the snippets become one vector; mean is the paper's, the others know the order. "
    "lstm with --head mlp --mode direct is the C3D-LSTM way.",
)
@click.option(
    "--standardise/--no-standardise",
    default=HeadConfig.standardise,
    help="Features to zero mean and unit variance, by the clips a head learns from.",
)
@click.option(
    "--hidden",
    type=click.IntRange(min=1),
    default=HeadConfig.hidden,
    help="Width of every node of the tree, or of the MLP's layers.",
)
@click.option(
    "--difficulty/--no-difficulty",
    "use_difficulty",
    default=FitConfig.use_difficulty,
    help="Use the difficulty as the protocol says, or never (the paper's starred methods).",
)
@click.option(
    "--exemplar-key",
    metavar="COLUMN",
    multiple=True,
    help="Query and exemplar agree in this manifest column; repeatable. Default: the protocol's.",
)
@click.option(
    "--num-exemplars",
    metavar="INTEGER|all",
    callback=exemplar_count,
    default=str(FitConfig.num_exemplars),
    help="Exemplars that vote on a test clip.",
)
@click.option(
    "--protocol",
    "model_selection",
    type=click.Choice(["default", "literature"]),
    default="default",
    callback=model_selection_value,
    help="Choose the epoch on a validation part, or on the test set as published programs do.",
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
    "--dropout",
    type=click.FloatRange(0, 1, max_open=True),
    default=HeadConfig.dropout,
    help="Share of the root feature that is dropped in training.",
)
@click.option(
    "--views/--no-views",
    default=FitConfig.views,
    help="Train on a drawn view of each clip, of all that `aqa extract --views` cached.",
)
@click.option(
    "--validation-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=FitConfig.validation_fraction,
    help="Part of the training split that chooses the epoch.",
)
@click.option(
    "--range",
    "relative_l2_range",
    type=click.Choice(["evaluated", "class"]),
    default=FitConfig.relative_l2_range,
    help="What R-l2 divides by: the range of the evaluated clips, or of all clips of the class.",
)
@device_option
@json_option
@pass_project
def fit_head(
    project: Project,
    /,
    dataset: str | None,
    manifest: Path | None,
    run: str | None,
    cache_folder: Path | None,
    exemplar_key: tuple[str, ...],
    seeds: int,
    lr: float,
    device: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train heads on cached features and score the test split once.

    The default is CoRe + GART. The epoch is chosen on a validation part of the training
    split. Everything needed to score new clips goes into the run folder. Categories and
    folds, where the protocol has them, get heads and a folder each.
    """
    from aqa_pipeline.cache.load import open_cache
    from aqa_pipeline.datasets.manifest import read_manifest, with_exemplar_key
    from aqa_pipeline.device import find_device
    from aqa_pipeline.training.fit import fit_dataset

    clips = read_manifest(manifest_path(project, dataset, manifest))
    cache = open_cache(project.cache, clips, cache_folder)
    if exemplar_key:
        clips = with_exemplar_key(clips, exemplar_key)
    settings |= {"num_seeds": seeds, "learning_rate": lr}
    folder = project.runs / (run or clips.name)
    unit = "grid points" if settings["kind"] in ("svr", "dct-svr") else "epochs"
    with progress("fit-head", unit=unit) as advance:
        metrics = fit_dataset(
            clips,
            cache,
            folder,
            head_config=HeadConfig(**_taken(settings, HeadConfig)),
            fit_config=FitConfig(**_taken(settings, FitConfig)),
            device=find_device(device),
            progress=advance,
        )
    show_metrics(project, folder, metrics, as_json=as_json)
    say(f"run: {project.shown(folder)}")


def _taken(settings: dict[str, Any], config: type) -> dict[str, Any]:
    """The options that are fields of a configuration."""
    names = {field.name for field in dataclasses.fields(config)}
    return {name: value for name, value in settings.items() if name in names}
