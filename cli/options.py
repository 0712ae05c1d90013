"""Options that commands share, and what they choose in the project."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aqa_pipeline.config import DEVICE, ScoreConfig
from aqa_pipeline.errors import AqaError, UsageError
from aqa_pipeline.project import Project

from .fields import Command, config_option

if TYPE_CHECKING:
    pass

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
    help="Cache folder; needed if several fit the protocol.",
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what would be done without doing it."
)
weights_option = click.option(
    "--weights",
    type=click.Path(path_type=Path),
    default=None,
    help="I3D weights as safetensors; default: what `aqa weights fetch` fetched.",
)
exemplar_key_option = click.option(
    "--exemplar-key",
    metavar="COLUMN",
    multiple=True,
    help="Query and exemplar agree in this manifest column; repeatable. Default: the protocol's.",
)
coverage_option = config_option(ScoreConfig(), "coverage")
timeout_option = config_option(ScoreConfig(), "clip-timeout")


def all_of(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order of help."""

    def decorate(command: Command) -> Command:
        return functools.reduce(lambda made, option: option(made), reversed(options), command)

    return decorate


cluster_options = all_of(
    click.option(
        "--backend",
        type=click.Choice(["local", "dask"]),
        default="local",
        help="Where the work runs: here, or on a dask cluster.",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        default=None,
        help="Scheduler of the dask cluster, such as tcp://node1:8786.",
    ),
)

#: Resolve them with :func:`manifest_path`.
manifest_options = all_of(
    click.option(
        "--dataset", metavar="NAME", default=None, help="Use manifests/NAME.csv of the project."
    ),
    click.option(
        "--manifest",
        type=click.Path(path_type=Path, dir_okay=False),
        default=None,
        help="A manifest anywhere, instead of --dataset.",
    ),
)


def _key_values(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> dict[str, str]:
    pairs = {}
    for text in value:
        name, sign, cell = text.partition("=")
        if not sign or not name:
            raise click.BadParameter(f"{text!r} is not COLUMN=VALUE, such as action_type=107B")
        pairs[name] = cell
    return pairs


key_option = click.option(
    "--key",
    "columns",
    metavar="COLUMN=VALUE",
    multiple=True,
    callback=_key_values,
    help="Another column that the run compares by, such as action_type=107B; repeatable.",
)

_FACTS = ("start_frame", "end_frame", "category", "difficulty", "columns")


def fact_options(command: Command) -> Command:
    """Add ``--start --end --category --difficulty --key``; they arrive as the dict ``facts``."""

    @all_of(
        click.option(
            "--start",
            "start_frame",
            type=click.IntRange(min=0),
            help="First frame, counted from 0.",
        ),
        click.option(
            "--end",
            "end_frame",
            type=click.IntRange(min=1),
            help="Frame after the clip; default: the end of the video.",
        ),
        click.option(
            "--category",
            default="",
            help="Category of the clip; needed if the run has a head for each.",
        ),
        click.option(
            "--difficulty",
            type=click.FloatRange(min=0, min_open=True),
            help="Difficulty of the clip; needed if the run scores by it.",
        ),
        key_option,
    )
    @functools.wraps(command)
    def with_facts(*args: Any, **values: Any) -> Any:
        facts = {name: values.pop(name) for name in _FACTS}
        return command(*args, facts=facts, **values)

    return typing.cast(Command, with_facts)


def option_for(error: AqaError, command: click.Command) -> str:
    """The option of a command that gives the fact an error misses; empty: there is none."""
    fact = getattr(error, "fact", None)
    for option in command.params:
        if fact is not None and str(option.name).split("__")[-1] == fact:
            return f"{option.opts[0]} {option.metavar or ''}".rstrip()
    return ""


def manifest_path(project: Project, dataset: str | None, manifest: Path | None) -> Path:
    """The manifest that ``--dataset`` or ``--manifest`` names, or the project's only one.

    Raises
    ------
    UsageError
        If both are given, none is and the project has not just one, or there is no manifest.
    """
    if dataset is not None and manifest is not None:
        raise UsageError("say which clips: either --dataset NAME or --manifest PATH")
    if manifest is not None:
        return manifest
    known = project.datasets()
    there = f"there are {', '.join(known)}" if known else "there is none yet"
    first = "`aqa demo` makes one" if dataset == "demo" else "`aqa manifest import` makes one"
    chosen = dataset or project.dataset or (known[0] if len(known) == 1 else None)
    if chosen is None:
        raise UsageError(
            f"say which clips: either --dataset NAME or --manifest PATH ({there}"
            + (")" if known else f"; {first})")
        )
    path = project.manifest_path(chosen)
    if not path.exists():
        raise UsageError(f"{path}: no such manifest ({there}); {first}")
    return path


def run_path(project: Project, run: Path | None, dataset: str | None) -> Path:
    """The run folder RUN, or else the only one there is, of a data set if one is named.

    Raises
    ------
    UsageError
        If none is given, and there is not just one.
    """
    if run is not None:
        return project.run_path(run)
    wanted = dataset or project.dataset
    fitting = project.run_names(wanted)
    if wanted in fitting:  # what `aqa fit-head` calls the run of a data set
        return project.runs / wanted
    if len(fitting) != 1:
        known = project.run_names()
        there = f"there are {', '.join(known)}" if known else "there is none yet"
        raise UsageError(f"say which run: `aqa evaluate RUN` ({there}); `aqa fit-head` makes one")
    return project.runs / fitting[0]
