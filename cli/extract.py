"""``aqa extract``: stage one."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aqa_pipeline.config import PRECISION, ExtractConfig
from aqa_pipeline.errors import UsageError
from aqa_pipeline.project import Project

from .console import print_json, print_table, progress, say
from .fields import config_options
from .options import (
    cluster_options,
    device_option,
    dry_run_option,
    json_option,
    manifest_options,
    manifest_path,
    pass_project,
    weights_option,
)

if TYPE_CHECKING:
    from aqa_pipeline.extraction.extract import ExtractSummary
    from aqa_pipeline.extraction.plan import ExtractPlan

SOME_FAILED = 3
_FAILURES_SHOWN = 10


@click.command()
@manifest_options
@weights_option
@device_option
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "tf32", "bf16", "fp16"]),
    default=PRECISION,
    help="Precision on a GPU; auto: the fastest that agrees with float32 on sample clips.",
)
@config_options(
    "workers clip-timeout flush-clips flush-seconds strict-window",
    click.option("--retry-failed", is_flag=True, help="Retry clips that failed before."),
    "views",
    config=ExtractConfig(),
)
@click.option(
    "--shard",
    metavar="I/N",
    default=None,
    help="Only part I of N of the manifest; slurm: the parts of a job array.",
)
@cluster_options
@dry_run_option
@json_option
@pass_project
def extract(
    project: Project,
    dataset: str | None,
    manifest: Path | None,
    weights: Path | None,
    device: str,
    precision: str,
    config: ExtractConfig,
    retry_failed: bool,
    shard: str | None,
    backend: str,
    scheduler: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Turn every clip of a manifest into I3D features, once.

    Clips that are in the cache already are not decoded again, so a run that was
    interrupted resumes where it stopped, and several may work on one manifest at once. A
    clip that fails is written down and the others go on; then the exit code is 3.
    """
    from aqa_pipeline.datasets.manifest import read_manifest
    from aqa_pipeline.device import share_cores
    from aqa_pipeline.extraction.extract import extract_dataset, prepare_job
    from aqa_pipeline.extraction.plan import shard_of
    from aqa_pipeline.extraction.shards import parse_shard

    share_cores()
    if (backend == "dask") != (scheduler is not None):
        raise UsageError("--backend dask and --scheduler ADDRESS go together")
    if scheduler and shard:
        raise UsageError("--backend dask makes its own shards; leave out --shard")
    part = parse_shard(shard, os.environ) if shard else None
    clips = read_manifest(manifest_path(project, dataset, manifest))
    if part:
        say(f"shard {part}: {len(shard_of(clips, part))} of {len(clips)} clips")
    wanted: dict[str, Any] = {
        "cache_root": project.cache,
        "weights": weights,
        "device": device,
        "precision": precision,
        "shard": part,
        "retry_failed": retry_failed,
    }
    if dry_run:
        on_cluster = scheduler is not None
        job = prepare_job(clips, **wanted, config=config, on_cluster=on_cluster, compares=False)
        _show_plan(project, job.plan(), as_json)
        return
    with progress("extract", unit="shards" if scheduler else "clips") as shown:
        summary = extract_dataset(
            clips,
            **wanted,
            **dataclasses.asdict(config),
            scheduler=scheduler,
            progress=shown,
        )
    _show_summary(project, summary, as_json)
    if summary.failures:
        raise click.exceptions.Exit(SOME_FAILED)


def _show_plan(project: Project, plan: ExtractPlan, as_json: bool) -> None:
    from aqa_pipeline.extraction.plan import estimate

    costs = estimate(plan)
    counts = {
        "clips": len(plan.manifest),
        "cached": plan.num_cached,
        "outdated": plan.num_outdated,
        "to_extract": len(plan.to_do),
        "failed_before": len(plan.failed_before),
        "video_missing": len(plan.missing),
    }
    nearest = project.shown(costs.nearest) if costs.nearest else None
    if as_json:
        result = {
            "cache": project.shown(plan.folder),
            "views": [view.name for view in plan.views],
            **counts,
            "new_bytes": costs.num_bytes,
            "views_per_second": costs.views_per_second,
            "seconds": costs.seconds,
            "nearest_cache": nearest,
            "differences": costs.differences,
        }
        print_json(result)
        return
    rows = [[name.replace("_", " "), str(count)] for name, count in counts.items()]
    rows.append(["views of each clip", str(len(plan.views))])
    rows.append(["new data", f"{costs.num_bytes / 1e6:.1f} MB"])
    rows.append(["time on this machine", _duration(costs.seconds)])
    print_table(["would extract into", project.shown(plan.folder)], rows)
    if nearest:
        differing = "; ".join(costs.differences)
        click.echo(f"nothing there yet; {nearest} was made with other settings: {differing}")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 120:
        return f"about {seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 120 else f"about {seconds / 3600:.1f} h"


def _show_summary(project: Project, summary: ExtractSummary, as_json: bool) -> None:
    if as_json:
        result: dict[str, Any] = dataclasses.asdict(summary)
        print_json({**result, "folder": project.shown(summary.folder)})
        return
    rows = [
        ["clips wanted", str(summary.num_wanted)],
        ["cached before", str(summary.num_cached)],
        ["extracted", str(summary.num_extracted)],
        ["by other processes meanwhile", str(summary.num_elsewhere)],
        ["with repeated frames", str(len(summary.clamped))],
        ["failed", str(len(summary.failures))],
    ]
    print_table(["features in", project.shown(summary.folder)], rows)
    if summary.failures:
        stages = Counter(failure.stage for failure in summary.failures)
        click.echo("failed: " + ", ".join(f"{count} {stage}" for stage, count in stages.items()))
        for failure in summary.failures[:_FAILURES_SHOWN]:
            click.echo(f"  {failure.clip_id}: {failure.error}")
        if len(summary.failures) > _FAILURES_SHOWN:
            click.echo(f"  and {len(summary.failures) - _FAILURES_SHOWN} more")
