"""``aqa cache``: what is in the feature caches, whether it is sound, exchange with others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from aqa_pipeline.errors import SetupError, UsageError
from aqa_pipeline.project import Project

from .console import print_json, print_table, progress, say
from .options import (
    cache_option,
    dry_run_option,
    json_option,
    manifest_options,
    manifest_path,
    pass_project,
)

SOME_DAMAGED = 3
#: With more segments than this, opening a cache takes seconds.
MANY_SEGMENTS = 200

folder_argument = click.argument(
    "folders", metavar="[FOLDER]...", nargs=-1, type=click.Path(path_type=Path)
)
dataset_option = click.option(
    "--dataset", metavar="NAME", default=None, help="The caches in cache/NAME of the project."
)


def chosen_folders(project: Project, dataset: str | None, folders: tuple[Path, ...]) -> list[Path]:
    """Cache folders given, or those of a data set, or all of the project.

    Raises
    ------
    UsageError
        If both are given, or there is no cache.
    """
    if folders:
        if dataset is not None:
            raise UsageError("say which caches: either --dataset NAME or folders")
        return list(folders)
    found = sorted(
        path.parent for path in project.cache.glob(f"{dataset or '*'}/*/fingerprint.json")
    )
    if not found:
        where = project.shown(project.cache / dataset if dataset else project.cache)
        raise UsageError(
            f"{where}: no feature cache here; `aqa extract` or `aqa cache import` makes one"
        )
    return found


@click.group()
def cache() -> None:
    """Manage the feature caches, and exchange features with other programs.

    Without --dataset or a FOLDER, a command works on every cache of the project.
    """


@cache.command()
@folder_argument
@dataset_option
@json_option
@pass_project
def info(project: Project, folders: tuple[Path, ...], dataset: str | None, as_json: bool) -> None:
    """Show what caches hold; no feature is read."""
    from aqa_pipeline.cache.verify import cache_info

    told = [cache_info(folder) for folder in chosen_folders(project, dataset, folders)]
    if as_json:
        print_json({"caches": [dataclasses.asdict(item) for item in told]})
        return
    for item in told:
        fingerprint = item.identity.fingerprint
        rows = [
            ["backbone", fingerprint.backbone],
            ["pixels", fingerprint.pixels.name if fingerprint.pixels else "unknown (imported)"],
            ["clips", str(item.num_clips)],
            *([f"  view {name}", str(count)] for name, count in item.clips_of_view.items()),
            ["failed", str(item.num_failed)],
            ["segments", str(item.num_segments)],
            ["damaged", str(len(item.damaged))],
            ["unfinished files", str(len(item.temporaries))],
            ["size", megabytes(item.num_bytes)],
        ]
        print_table([project.shown(item.folder), ""], rows)
        if item.num_segments > MANY_SEGMENTS:
            say(f"{item.num_segments} segments: `aqa cache compact` makes opening faster")


@cache.command()
@folder_argument
@dataset_option
@click.option("--keep", is_flag=True, help="Leave damaged segments where they are.")
@json_option
@pass_project
def verify(
    project: Project,
    folders: tuple[Path, ...],
    dataset: str | None,
    keep: bool,
    as_json: bool,
) -> None:
    """Hash every clip again, and move damaged segments to quarantine/.

    Nothing is deleted, and the clips of a damaged segment are extracted again by the next
    `aqa extract`. Exit code 3 when there was damage, as for clips that failed.
    """
    from aqa_pipeline.cache.verify import quarantine
    from aqa_pipeline.cache.verify import verify as run_verify

    told: list[dict[str, Any]] = []
    not_moved: SetupError | None = None
    for folder in chosen_folders(project, dataset, folders):
        with progress(f"verify {folder.name}", unit="clips") as shown:
            found = run_verify(folder, progress=shown)
        moved: list[Path] = []
        try:
            moved = [] if keep else quarantine(folder, found.damaged)
        except SetupError as error:
            not_moved = error  # what was found is told first
        told.append({"folder": folder, **dataclasses.asdict(found), "moved": moved})
        if not as_json:
            rows = [
                ["segments", str(found.num_segments)],
                ["clips", str(found.num_clips)],
                ["damaged segments", str(len(found.damaged))],
            ]
            print_table([project.shown(folder), ""], rows)
            for damage in found.damaged:
                click.echo(f"  {damage.path.name}: {damage.reason}")
            if moved:
                say(f"moved to {project.shown(moved[0].parent)}; extract again to replace them")
    if as_json:
        print_json({"caches": told})
    if not_moved is not None:
        raise not_moved
    if any(item["damaged"] for item in told):
        raise click.exceptions.Exit(SOME_DAMAGED)


@cache.command()
@folder_argument
@dataset_option
@dry_run_option
@json_option
@pass_project
def compact(
    project: Project,
    folders: tuple[Path, ...],
    dataset: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Merge the segments of a cache into one, for faster opening.

    Every clip is hashed on the way, the old segments go only when the new one is on the
    disk, and readers and writers may go on meanwhile.
    """
    from aqa_pipeline.cache.compact import compact as run_compact

    told: list[dict[str, Any]] = []
    for folder in chosen_folders(project, dataset, folders):
        done = run_compact(folder, dry_run=dry_run)
        told.append({"folder": folder, **dataclasses.asdict(done), "dry_run": dry_run})
        if not as_json:
            rows = [
                ["would merge" if dry_run else "merged", f"{len(done.merged)} segments"],
                ["clips", str(done.num_clips)],
                ["size", megabytes(done.num_bytes)],
            ]
            print_table([project.shown(folder), ""], rows)
    if as_json:
        print_json({"caches": told})


@cache.command()
@folder_argument
@dataset_option
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Also remove segments that hold no clip of this manifest.",
)
@dry_run_option
@json_option
@pass_project
def gc(
    project: Project,
    folders: tuple[Path, ...],
    dataset: str | None,
    manifest: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove segments that newer ones replace, and what killed writers left behind.

    Only whole segments are removed; `aqa cache compact` drops single clips that were replaced.
    """
    from aqa_pipeline.cache.compact import collect_garbage

    told: list[dict[str, Any]] = []
    for folder in chosen_folders(project, dataset, folders):
        wanted = wanted_by(manifest, folder) if manifest else None
        garbage = collect_garbage(folder, wanted=wanted, dry_run=dry_run)
        told.append({"folder": folder, **dataclasses.asdict(garbage), "dry_run": dry_run})
        if not as_json:
            rows = [
                ["segments", str(len(garbage.segments))],
                ["unfinished files", str(len(garbage.temporaries))],
                ["size", megabytes(garbage.num_bytes)],
            ]
            verb = "would remove from" if dry_run else "removed from"
            print_table([f"{verb} {project.shown(folder)}", ""], rows)
    if as_json:
        print_json({"caches": told})


def wanted_by(manifest: Path, folder: Path) -> Any:
    """The clips of a cache that a manifest wants."""
    from aqa_pipeline.cache.load import request_clips
    from aqa_pipeline.cache.reader import FeatureCache
    from aqa_pipeline.datasets.manifest import read_manifest

    clips = read_manifest(manifest)
    clip_ids = clips.clips["clip_id"].tolist()
    return request_clips(clips, FeatureCache.open(folder), clip_ids, partial=True)


@cache.command()
@click.argument("file", type=click.Path(path_type=Path))
@manifest_options
@cache_option
@click.option("--partial", is_flag=True, help="Leave out clips without features.")
@json_option
@pass_project
def export(
    project: Project,
    file: Path,
    dataset: str | None,
    manifest: Path | None,
    cache_folder: Path | None,
    partial: bool,
    as_json: bool,
) -> None:
    """Write the features of a manifest's clips to FILE (.npz or .h5), in its order.

    Beside the features stand clip_id, score, split, category, difficulty and frame_index.
    """
    from aqa_pipeline.cache.exchange import export_features
    from aqa_pipeline.cache.load import open_cache
    from aqa_pipeline.datasets.manifest import read_manifest

    clips = read_manifest(manifest_path(project, dataset, manifest))
    source = open_cache(clips, cache_root=project.cache, folder=cache_folder)
    done = export_features(clips, source, file, partial=partial)
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    rows = [["features", " x ".join(map(str, done.shape))], ["left out", str(len(done.left_out))]]
    print_table([str(done.path), ""], rows)


@cache.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@manifest_options
@click.option(
    "--backbone-name",
    metavar="NAME",
    required=True,
    help="What produced the features, such as videoswin or openpose; names the cache folder.",
)
@click.option(
    "--resample",
    type=click.IntRange(min=1),
    default=None,
    help="Resample every clip to this many steps, linearly, where clips differ in length.",
)
@click.option(
    "--partial", is_flag=True, help="Import only the clips that both manifest and file have."
)
@dry_run_option
@json_option
@pass_project
def import_(
    project: Project,
    file: Path,
    dataset: str | None,
    manifest: Path | None,
    backbone_name: str,
    resample: int | None,
    partial: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Import features that another program extracted into a cache of the project.

    FILE is .npz, .h5 or .pkl with `features` (clips x steps x dim or clips x dim) and
    `clip_id`, or with one array a clip named by its id; .npy in the manifest's order; or a
    folder of CLIP_ID.npy. Pickles are read without running what is in them. Then `aqa
    fit-head` works on them as on features of its own.
    """
    from aqa_pipeline.cache.exchange import import_features
    from aqa_pipeline.datasets.manifest import read_manifest

    done = import_features(
        read_manifest(manifest_path(project, dataset, manifest)),
        file,
        cache_root=project.cache,
        backbone=backbone_name,
        resample=resample,
        partial=partial,
        dry_run=dry_run,
    )
    if as_json:
        print_json({**dataclasses.asdict(done), "dry_run": dry_run})
        return
    rows = [
        ["clips", str(done.num_clips)],
        ["new or changed", str(done.num_new)],
        ["steps x dim", f"{done.steps} x {done.dim}"],
        ["matched by", done.matched_by],
        ["only in the manifest", str(len(done.only_in_manifest))],
        ["only in the file", str(len(done.only_in_file))],
    ]
    verb = "would import into" if dry_run else "imported into"
    print_table([f"{verb} {project.shown(done.folder)}", ""], rows)


def megabytes(num_bytes: int) -> str:
    """A size for a table."""
    return f"{num_bytes / 1e6:,.1f} MB"
