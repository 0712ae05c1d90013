"""``aqa manifest import``: from official annotations, or one's own table, to a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aqa_pipeline.config import SplitConfig
from aqa_pipeline.errors import UsageError
from aqa_pipeline.project import Project

from .console import print_json, say
from .fields import config_option
from .options import all_of, dry_run_option, json_option, pass_project

if TYPE_CHECKING:
    from aqa_pipeline.datasets.importing import ImportedManifest


@click.group("import")
def import_group() -> None:
    """Make a manifest and its protocol from annotations.

    docs/datasets.md says for each data set where to ask for it and how the folders look.
    """


_annotations_option = click.option(
    "--annotations",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of the official annotation files.",
)

_output_options = all_of(
    click.option(
        "--videos",
        type=click.Path(path_type=Path, file_okay=False),
        default=None,
        help="Folder of the videos or frame folders.",
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path, dir_okay=False),
        default=None,
        show_default="manifests/NAME.csv",
        help="The manifest to write; its protocol goes beside it as .toml.",
    ),
    click.option("--force", is_flag=True, help="Replace a manifest and TOML that exist."),
    dry_run_option,
    json_option,
)


def _finish(
    project: Project,
    imported: ImportedManifest,
    *,
    out: Path | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    path = out or project.manifest_path(imported.protocol.name)
    if not dry_run:
        imported.write(path, replace=force)
    counts = {
        "clips": len(imported.clips),
        "videos": int(imported.clips["video"].nunique()),
        "video_missing": len(imported.missing) if imported.looked_up else None,
    }
    if as_json:
        print_json({"manifest": str(path), "written": not dry_run, **counts})
        return
    verb = "would write" if dry_run else "wrote"
    click.echo(
        f"{verb} {project.shown(path)}: {counts['clips']} clips of {counts['videos']} videos"
        + (f", {counts['video_missing']} clips without" if imported.missing else "")
    )
    if not imported.looked_up:
        say("no --videos: the manifest names them as in the official layout, not looked up")


@import_group.command("mtl_aqa")
@_annotations_option
@_output_options
@pass_project
def mtl_aqa(project: Project, /, annotations: Path, videos: Path | None, **output: Any) -> None:
    """MTL-AQA: 1412 dives, from final_annotations_dict.pkl and the two split lists."""
    from aqa_pipeline.datasets.mtl_aqa import import_mtl_aqa

    _finish(project, import_mtl_aqa(annotations, videos), **output)


@import_group.command("aqa7")
@_annotations_option
@_output_options
@pass_project
def aqa7(project: Project, /, annotations: Path, videos: Path | None, **output: Any) -> None:
    """AQA-7: 1106 clips of six sports, from the two lists of split 4."""
    from aqa_pipeline.datasets.aqa7 import import_aqa7

    _finish(project, import_aqa7(annotations, videos), **output)


@import_group.command("jigsaws")
@_annotations_option
@click.option(
    "--folds",
    type=click.Choice(["published", "seeded", "supertrial"]),
    default=None,
    show_default="published where splits.pkl is there, else seeded",
    help="Folds of the cross-validation.",
)
@config_option(SplitConfig(), "seed", help="Seed of the folds that are made.")
@_output_options
@pass_project
def jigsaws(
    project: Project,
    /,
    annotations: Path,
    videos: Path | None,
    folds: Any,
    seed: int,
    **output: Any,
) -> None:
    """JIGSAWS: 103 trials of three tasks, from pickled labels or the official meta files."""
    from aqa_pipeline.datasets.jigsaws import import_jigsaws

    imported = import_jigsaws(annotations, videos, folds=folds, seed=seed)
    _finish(project, imported, **output)


@import_group.command("finediving")
@_annotations_option
@_output_options
@pass_project
def finediving(project: Project, /, annotations: Path, videos: Path | None, **output: Any) -> None:
    """FineDiving: 3000 dives, from the coarse or fine-grained annotation and the split."""
    from aqa_pipeline.datasets.finediving import import_finediving

    _finish(project, import_finediving(annotations, videos), **output)


@import_group.command("csv")
@click.argument("table", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--name", metavar="NAME", show_default="the file's name", help="Name of the data set."
)
@click.option(
    "--map",
    "columns",
    metavar="OURS=THEIRS",
    multiple=True,
    help="A column under another name: --map score=Punkte. May be repeated.",
)
@click.option(
    "--group-by", metavar="COLUMN", help="Keep clips with equal values in this column together."
)
@config_option(
    SplitConfig(), "test-fraction", help="Share of test clips, where the table has no split."
)
@config_option(SplitConfig(), "seed", help="Seed of the split that is made.")
@_output_options
@pass_project
def csv(
    project: Project,
    /,
    table: Path,
    videos: Path | None,
    name: str | None,
    columns: tuple[str, ...],
    group_by: str | None,
    test_fraction: float,
    seed: int,
    **output: Any,
) -> None:
    """Your own data: TABLE is a CSV with clip_id, video and score.

    category, difficulty, split, start_frame and end_frame are optional; further columns
    are kept. Without a split a seeded one is made and written down.
    """
    from aqa_pipeline.datasets.own import import_csv

    imported = import_csv(
        table,
        videos,
        name=name,
        columns=_mapping(columns),
        test_fraction=test_fraction,
        seed=seed,
        group_by=group_by,
    )
    _finish(project, imported, **output)


def _mapping(pairs: tuple[str, ...]) -> dict[str, str]:
    mapping = {}
    for pair in pairs:
        ours, sign, theirs = pair.partition("=")
        if not sign or not ours or not theirs:
            raise UsageError(f"--map {pair}: expected OURS=THEIRS, such as --map score=Punkte")
        mapping[ours] = theirs
    return mapping
