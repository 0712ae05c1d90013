"""``aqa manifest``: make, check, show and split manifests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from aqa_pipeline.config import FitConfig, SplitConfig
from aqa_pipeline.project import Project

from .console import print_json, print_table, progress, say
from .fields import config_option
from .manifest_import import import_group
from .options import json_option, manifest_path, pass_project

if TYPE_CHECKING:
    from aqa_pipeline.datasets.check import CheckReport
    from aqa_pipeline.datasets.manifest import Manifest

BAD_DATA = 4
_ROWS_SHOWN = 3


@click.group()
def manifest() -> None:
    """Make, check, show and split manifests.

    A manifest lists the clips of a data set, one row per clip; docs/manifest-format.md says
    what is in it. NAME below is manifests/NAME.csv of the project, or a path to a CSV.
    """


def named(project: Project, name: str) -> Manifest:
    """The manifest NAME means."""
    from aqa_pipeline.datasets.manifest import read_manifest

    if name.endswith(".csv"):
        return read_manifest(Path(name))
    return read_manifest(manifest_path(project, name, None))


@manifest.command()
@click.argument("name")
@click.option("--fast", is_flag=True, help="Only check that the videos exist; decode nothing.")
@config_option(FitConfig(), "num-exemplars", none="", help="Exemplars each test clip should find.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=None,
    show_default="one per core",
    help="Decoding processes.",
)
@json_option
@pass_project
def check(
    project: Project, name: str, fast: bool, num_exemplars: int, jobs: int | None, as_json: bool
) -> None:
    """Check every clip of NAME against its protocol and the real files.

    Exits with 4 if there are errors; warnings alone are no failure.
    """
    from aqa_pipeline.datasets.check import check_manifest
    from aqa_pipeline.datasets.locate import video_index_folder

    with progress("check", unit="clips") as shown:
        report = check_manifest(
            named(project, name),
            fast=fast,
            num_exemplars=num_exemplars,
            jobs=jobs,
            index_folder=video_index_folder(project.cache),
            progress=shown,
        )
    _show_report(project, report, as_json)
    if report.has_errors:
        raise click.exceptions.Exit(BAD_DATA)


def _show_report(project: Project, report: CheckReport, as_json: bool) -> None:
    if as_json:
        print_json(report.as_dict())
        return
    looked = "decoded" if report.decoded else "looked for, not decoded"
    click.echo(
        f"{project.shown(report.path)}: {report.num_clips} clips of {report.num_videos} videos, "
        f"{looked}"
    )
    if not report.findings:
        click.echo("nothing to complain about")
        return
    rows = [
        [finding.meaning, finding.severity, str(len(finding.rows))] for finding in report.findings
    ]
    print_table(["finding", "severity", "count"], rows)
    for finding in report.findings:
        click.echo(f"{finding.severity}: {finding.meaning}")
        for where, found in finding.rows[:_ROWS_SHOWN]:
            click.echo(f"  {where}: {found}")
        if len(finding.rows) > _ROWS_SHOWN:
            click.echo(f"  and {len(finding.rows) - _ROWS_SHOWN} more")


@manifest.command()
@click.argument("name")
@json_option
@pass_project
def show(project: Project, name: str, as_json: bool) -> None:
    """Count the clips of NAME by split, category and difficulty, and draw their scores."""
    from aqa_pipeline.datasets.summary import summarise

    summary = summarise(named(project, name))
    if as_json:
        print_json(summary.as_dict())
        return
    click.echo(f"{summary.name}: {summary.num_clips} clips of {summary.num_videos} videos")
    if summary.source:
        click.echo(summary.source)
    tables = {
        "split": summary.splits,
        "category": summary.categories,
        "difficulty": summary.difficulties,
    }
    for title, counts in tables.items():
        if counts:
            click.echo()
            print_table([title, *_SIDES], [[v or "-", *_by_side(c)] for v, c in counts.items()])
    click.echo()
    fullest = max(summary.score_counts)
    bins = zip(summary.score_edges, summary.score_edges[1:], summary.score_counts, strict=False)
    rows = [
        [f"{low:.4g} to {high:.4g}", str(count), "#" * round(40 * count / fullest)]
        for low, high, count in bins
    ]
    width = max(len(row[0]) for row in rows)
    for label, count, bar in rows:
        click.echo(f"score {label:<{width}}  {count:>6}  {bar}".rstrip())


_SIDES = ("train", "test", "neither")


def _by_side(counts: dict[str, int]) -> list[str]:
    return [str(counts.get(side, 0)) for side in ("train", "test", "")]


@manifest.command()
@click.argument("name")
@click.option(
    "--group-by", metavar="COLUMN", help="Keep clips with equal values in this column together."
)
@config_option(SplitConfig(), "test-fraction")
@config_option(SplitConfig(), "seed")
@click.option(
    "--column",
    metavar="COLUMN",
    show_default="split, or split_by_GROUP where there is a split",
    help="Where to write it; an existing column is replaced only if named here.",
)
@json_option
@pass_project
def split(
    project: Project,
    name: str,
    group_by: str | None,
    test_fraction: float,
    seed: int,
    column: str | None,
    as_json: bool,
) -> None:
    """Divide the clips of NAME into train and test, beside the split it has.

    The new column is written into the manifest. To fit with it, name it in the TOML
    beside the manifest: fold_columns = ["split_by_video"].
    """
    from aqa_pipeline.datasets.split import split_manifest

    result = split_manifest(
        named(project, name),
        test_fraction=test_fraction,
        seed=seed,
        group_by=group_by,
        column=column,
    )
    if as_json:
        print_json({"manifest": str(result.path), "column": result.column, **result.counts})
        return
    told = ", ".join(f"{count} {side}" for side, count in result.counts.items())
    click.echo(f"{project.shown(result.path)}: column {result.column}, {told}, seed {seed}")
    if result.column != "split":
        say(f'to fit with it: fold_columns = ["{result.column}"] in {result.path.stem}.toml')


manifest.add_command(import_group)
