"""``aqa report``: runs as a page to look at and to hand on."""

from __future__ import annotations

from pathlib import Path

import click

from aqa_pipeline.project import Project

from .console import print_json, progress, say
from .options import json_option, pass_project


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Where to write; default: report.html in the run folder, for several runs in runs/.",
)
@json_option
@pass_project
def report(project: Project, runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write one HTML page on each RUN (a path, or a name in runs/), side by side if several.

    The page needs no network and no script. Votes, tree paths and pictures come from the
    project's cache and videos, and are left out where these are gone.
    """
    from aqa_pipeline.report.page import write_report

    folders = [project.run_path(run) for run in runs]
    page = out or (folders[0] if len(folders) == 1 else project.runs) / "report.html"
    with progress("report", unit="runs") as shown:
        headlines = write_report(folders, page, project=project, progress=shown)
    if as_json:
        print_json({"report": project.shown(page), "runs": headlines})
    else:
        click.echo(project.shown(page))
        say("open it in any browser")
