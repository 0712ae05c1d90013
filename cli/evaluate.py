"""``aqa evaluate``: a fitted run on a manifest's test split."""

from __future__ import annotations

from pathlib import Path

import click

from aqa_pipeline.config import FitConfig, RangeOf
from aqa_pipeline.project import Project

from .fields import config_option
from .options import device_option, json_option, pass_project, run_path
from .show import show_metrics


@click.command()
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option(
    "--dataset", metavar="NAME", default=None, help="Data set; default: the one it was fitted on."
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="A manifest anywhere, instead of --dataset.",
)
@config_option(
    FitConfig(),
    "range",
    into="range_of",
    default=None,
    help="What R-l2 divides by: the range of the evaluated clips, or of all clips of the class; "
    "default: as fitted.",
)
@device_option
@json_option
@pass_project
def evaluate(
    project: Project,
    run: Path | None,
    dataset: str | None,
    manifest: Path | None,
    range_of: RangeOf | None,
    device: str,
    as_json: bool,
) -> None:
    """Score the test split again with the run folder RUN (a path, or a name in runs/).

    On the data set it was fitted on, this gives the run's metrics.json to the last digit.
    Without RUN it is the project's only run, or that of the data set.
    """
    from aqa_pipeline.runs.evaluate import evaluate_run

    folder = run_path(project, run, dataset)
    metrics = evaluate_run(
        folder,
        manifest or (project.manifest_path(dataset) if dataset else None),
        cache_root=project.cache,
        device=device,
        range_of=range_of,
    )
    show_metrics(project, folder, metrics, as_json=as_json)
