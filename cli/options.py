"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from aqa_pipeline.config import DEVICE
from aqa_pipeline.errors import UsageError
from aqa_pipeline.project import Project

Command = TypeVar("Command", bound=Callable[..., Any])

pass_project = click.make_pass_decorator(Project)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON alone on stdout.")
device_option = click.option(
    "--device",
    metavar="auto|cpu|cuda[:N]",
    default=DEVICE,
    help="Where to compute; auto: a GPU if there is one.",
)
cache_option = click.option(
    "--cache",
    "cache_folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Cache folder, where several fit the protocol.",
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Say what would be done, and do nothing."
)
weights_option = click.option(
    "--weights",
    type=click.Path(path_type=Path),
    default=None,
    help="I3D weights as safetensors; default: what `aqa weights fetch` fetched.",
)


def cluster_options(command: Command) -> Command:
    """``--backend local|dask`` and ``--scheduler ADDRESS``."""
    command = click.option(
        "--scheduler",
        metavar="ADDRESS",
        default=None,
        help="Scheduler of the dask cluster, such as tcp://node1:8786.",
    )(command)
    return click.option(
        "--backend",
        type=click.Choice(["local", "dask"]),
        default="local",
        help="Where the work is done: here, or on a dask cluster.",
    )(command)


def manifest_options(command: Command) -> Command:
    """``--dataset NAME`` or ``--manifest PATH``; resolve them with :func:`manifest_path`."""
    command = click.option(
        "--manifest",
        type=click.Path(path_type=Path, dir_okay=False),
        default=None,
        help="A manifest anywhere, instead of --dataset.",
    )(command)
    return click.option(
        "--dataset", metavar="NAME", default=None, help="Use manifests/NAME.csv of the project."
    )(command)


def manifest_path(project: Project, dataset: str | None, manifest: Path | None) -> Path:
    """The manifest that ``--dataset`` or ``--manifest`` names.

    Raises
    ------
    UsageError
        If neither or both are given, or the data set has no manifest.
    """
    if (dataset is None) == (manifest is None):
        raise UsageError("say which clips: either --dataset NAME or --manifest PATH")
    if manifest is not None:
        return manifest
    path = project.manifest_path(str(dataset))
    if not path.exists():
        known = sorted(p.stem for p in project.manifests.glob("*.csv"))
        there = f"there are {', '.join(known)}" if known else "there is none yet"
        first = "`aqa demo` makes one" if dataset == "demo" else "`aqa manifest import` makes one"
        raise UsageError(f"{path}: no such manifest ({there}); {first}")
    return path


def model_selection_value(_: click.Context, __: click.Parameter, value: str) -> str:
    """The library's word for a choice of ``--protocol``."""
    return "test" if value == "literature" else "validation"
