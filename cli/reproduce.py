"""``aqa reproduce``: the paper's tables and figures."""

from __future__ import annotations

from pathlib import Path

import click

from aqa_pipeline.config import ReproduceConfig
from aqa_pipeline.project import Project

from .console import print_json, print_table, progress, say_above_progress
from .fields import config_options
from .options import (
    cache_option,
    device_option,
    json_option,
    manifest_options,
    manifest_path,
    pass_project,
)

WHAT = ("table1", "table2", "table3", "table4", "fig4", "fig5", "fig6", "fig7", "fig8")


@click.command()
@click.argument("what", type=click.Choice(WHAT))
@manifest_options
@cache_option
@config_options("seeds epochs model-selection recipe", config=ReproduceConfig())
@click.option(
    "--again", is_flag=True, help="Fit again what was already fitted with the same settings."
)
@device_option
@json_option
@pass_project
def reproduce(
    project: Project,
    what: str,
    dataset: str | None,
    manifest: Path | None,
    cache_folder: Path | None,
    config: ReproduceConfig,
    again: bool,
    device: str,
    as_json: bool,
) -> None:
    """Make a table or figure of the paper from cached features, its numbers beside ours.

    table1 and table4 have a column for each category, table2 and table3 compare methods;
    fig4: pairs a group, fig5: depth and number of exemplars, fig6: scatter, fig7: cumulative
    score, fig8: way through the tree. Runs, drawings (SVG) and data (CSV) go to
    runs/reproduce/WHAT-NAME/; runs that are there already, with the same settings, are used.
    """
    from aqa_pipeline.cache.load import open_cache
    from aqa_pipeline.datasets.manifest import read_manifest
    from aqa_pipeline.device import find_device
    from aqa_pipeline.report.paper.reproduce import reproduce as make

    clips = read_manifest(manifest_path(project, dataset, manifest))
    with progress(f"reproduce {what}", unit="epochs") as shown:
        made = make(
            what,
            clips,
            open_cache(clips, cache_root=project.cache, folder=cache_folder),
            runs=project.runs,
            config=config,
            device=find_device(device),
            again=again,
            progress=shown,
            log=say_above_progress,
        )
    files = [project.shown(path) for path in made.files]
    if as_json:
        print_json({**made.as_dict(), "files": files})
        return
    click.echo(made.title)
    for table in made.tables:
        click.echo()
        print_table(table.columns, table.texts(), title=table.title)
    click.echo()
    for line in [*made.notes, *(f"written: {name}" for name in files)]:
        click.echo(line)
