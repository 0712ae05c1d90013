"""``aqa sweep``: many heads, and the best of them as a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aqa_pipeline.config import FitConfig, HeadConfig, SweepConfig
from aqa_pipeline.errors import UsageError
from aqa_pipeline.project import Project

from .console import number, print_json, print_table, progress, say, say_above_progress
from .fields import config_options
from .options import (
    cache_option,
    cluster_options,
    device_option,
    dry_run_option,
    exemplar_key_option,
    json_option,
    manifest_options,
    manifest_path,
    pass_project,
)
from .show import show_metrics

if TYPE_CHECKING:
    from aqa_pipeline.training.sweep.plan import SweepPlan
    from aqa_pipeline.training.sweep.run import SweepOutcome
    from aqa_pipeline.training.sweep.trials import TrialResult

_TRIALS_SHOWN = 10


@click.command()
@manifest_options
@click.option(
    "--run",
    metavar="NAME",
    default=None,
    help="Run folder of the best; default: the data set's name and -sweep.",
)
@cache_option
@click.option(
    "--space",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help='TOML file of what to vary: lr = "1e-4..1e-2:log", num_groups = [8, 16, 32].',
)
@click.option(
    "--set",
    "settings",
    metavar="NAME=VALUES",
    multiple=True,
    help="Vary NAME, repeatable: lr=1e-4..1e-2:log, num_groups=8,16,32, or fix it: epochs=40. "
    "A grid takes lr=1e-4..1e-2:log:5, five values.",
)
@config_options(
    "search trials seeds seed search-seed",
    exemplar_key_option,
    "validation-fraction stack jobs early-stop",
    changed={
        "seeds": {"help": "Heads of each trial; their mean is its score."},
        "seed": {"help": "First seed of the heads."},
        "validation-fraction": {"help": "Part of the training split that judges the trials."},
    },
    fit=FitConfig(),
    config=SweepConfig(),
)
@cluster_options
@click.option("--again", is_flag=True, help="Discard what an earlier sweep found in this run.")
@device_option
@dry_run_option
@json_option
@pass_project
def sweep(
    project: Project,
    dataset: str | None,
    manifest: Path | None,
    run: str | None,
    cache_folder: Path | None,
    space: Path | None,
    settings: tuple[str, ...],
    fit: FitConfig,
    config: SweepConfig,
    exemplar_key: tuple[str, ...],
    backend: str,
    scheduler: str | None,
    again: bool,
    device: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Try many settings of `aqa fit-head` and keep the best.

    Heads of one shape train side by side. Trials are judged on the validation part of the
    training split alone; the best settings are then fitted into the run folder and the test
    split is read once. An interrupted or killed sweep resumes where it stopped.

    \b
    Example:
      aqa sweep --dataset demo --set lr=1e-4..1e-2:log --set num_groups=8,16 --trials 16
    """
    import shutil

    from aqa_pipeline.cache.load import open_cache
    from aqa_pipeline.datasets.manifest import read_manifest
    from aqa_pipeline.device import find_device
    from aqa_pipeline.training.sweep.plan import DataSource, SweepPlan
    from aqa_pipeline.training.sweep.run import run_sweep
    from aqa_pipeline.training.sweep.space import parse_space
    from aqa_pipeline.training.sweep.trials import FOLDER

    if (backend == "dask") != (scheduler is not None):
        raise UsageError("--backend dask and --scheduler ADDRESS go together")
    parsed = parse_space(settings, space)
    path = manifest_path(project, dataset, manifest)
    clips = read_manifest(path)
    cache = open_cache(clips, cache_root=project.cache, folder=cache_folder)
    plan = SweepPlan(
        source=DataSource(path.absolute(), cache.folder.absolute(), exemplar_key),
        folder=project.runs / (run or f"{clips.name}-sweep"),
        space=parsed,
        head=HeadConfig(),
        fit=fit,
        config=config,
        device=find_device(device),
        scheduler=scheduler,
    )
    if dry_run:
        _show_plan(project, plan, as_json)
        return
    if again and (plan.folder / FOLDER).exists():
        shutil.rmtree(plan.folder / FOLDER)
    with progress("sweep", unit="epochs") as shown:
        outcome = run_sweep(plan, progress=shown, log=say_above_progress)
    _show_outcome(project, plan, outcome, as_json)


def _show_plan(project: Project, plan: SweepPlan, as_json: bool) -> None:
    from aqa_pipeline.training.sweep.plan import plan_summary

    summary = plan_summary(plan)
    if as_json:
        print_json({"run": project.shown(plan.folder), **summary})
        return
    rows = [
        ["search", str(summary["search"])],
        ["trials", str(summary["trials"])],
        ["done before", str(summary["done"])],
        ["heads of each trial", str(plan.fit.num_seeds)],
        ["processes", str(plan.jobs)],
        ["stacks", "as results come in" if summary["stacks"] is None else str(summary["stacks"])],
        ["heads in the largest stack", str(summary["largest_stack"])],
    ]
    rows += [[name, text] for name, text in summary["dimensions"].items()]
    print_table(["would sweep into", project.shown(plan.folder)], rows)
    for note in summary["notes"]:
        say(note)


def _show_outcome(project: Project, plan: SweepPlan, outcome: SweepOutcome, as_json: bool) -> None:
    varied = [d.name for d in plan.space.varied]
    if as_json:
        print_json(
            {
                "run": project.shown(plan.folder),
                "results_csv": project.shown(outcome.results_csv),
                "best": dataclasses.asdict(outcome.best),
                "trials": [dataclasses.asdict(result) for result in outcome.results],
                "importance": outcome.importance,
                "metrics": outcome.metrics.as_dict(),
            }
        )
        return
    ranked = sorted(
        outcome.results, key=lambda r: (r.state != "done", -_defined(r.score), r.number)
    )
    parts = max((len(r.per_part) for r in ranked), default=1)
    rows = [
        [
            str(r.number),
            *(_shown(r.point[name]) for name in varied),
            number(r.score),
            _state(r, of=parts),
        ]
        for r in ranked[:_TRIALS_SHOWN]
    ]
    stopped = sum(r.state == "stopped" for r in ranked)
    print_table(
        ["trial", *varied, "Spearman, validation", ""],
        rows,
        title=f"best {len(rows)} of {len(ranked)} trials; {stopped} were stopped early",
    )
    shares = [f"{name} {100 * s:.0f} %" for name, s in outcome.importance.items() if s == s]
    if shares:
        click.echo(f"what sets the best trials apart (PED-ANOVA): {', '.join(shares)}")
    click.echo()
    show_metrics(project, plan.folder, outcome.metrics, as_json=False)
    click.echo(f"trial {outcome.best.number} chosen by its validation part, out of {len(ranked)}")
    click.echo(f"all trials: {project.shown(outcome.results_csv)}")
    say(f"run: {project.shown(plan.folder)}")


def _state(result: TrialResult, *, of: int) -> str:
    """How a trial ended; the score of a stopped one may be a mean over fewer parts."""
    if result.state == "done" or of == 1:
        return result.state
    return f"stopped, {len(result.per_part)} of {of} parts"


def _defined(score: float) -> float:
    return score if score == score else -2.0


def _shown(value: Any) -> str:
    if value is None:
        return "all"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
