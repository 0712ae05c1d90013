"""Options from ``aqa.toml`` and from the environment, under the names that help shows.

``--num-exemplars`` of ``aqa fit-head`` is ``num-exemplars`` or ``num_exemplars`` in the table
``[fit-head]``, and ``AQA_FIT_HEAD_NUM_EXEMPLARS``; ``--no-x`` is ``x = false``. A name that is
none of an option's is an error: it must not be silently without effect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from aqa_pipeline.errors import UsageError

#: Variables that are no options: the program's own, and those of its tests.
NOT_OPTIONS = re.compile(r"AQA_(HOME|REAL_DATA|TEST_\w+|GPU_\w+)")


def commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command with all below it, each with the words behind ``aqa`` that call it."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


def options(command: click.Command) -> list[click.Option]:
    """The options that have a value; ``--help`` and ``--version`` have none."""
    return [p for p in command.params if isinstance(p, click.Option) and p.expose_value]


def names(option: click.Option) -> list[str]:
    """Its names without dashes in front: the one that help shows, then older ones."""
    return [name[2:] for name in option.opts if name.startswith("--")]


def variable(path: Iterable[str], name: str) -> str:
    """The environment variable of an option."""
    return "_".join(["aqa", *path, name]).replace("-", "_").upper()


def name_variables(root: click.Command) -> None:
    """Let every option be read from the environment."""
    for path, command in commands(root):
        for option in options(command):
            option.envvar = [variable(path, name) for name in names(option)]


def check_environment(root: click.Command, environment: Iterable[str]) -> None:
    """Refuse variables ``AQA_...`` that nothing reads.

    Raises
    ------
    UsageError
        Naming the nearest that is read.
    """
    known = {name for _, each in commands(root) for o in options(each) for name in o.envvar or ()}
    for name in sorted(environment):
        if name.startswith("AQA_") and name not in known and not NOT_OPTIONS.fullmatch(name):
            raise UsageError(
                f"environment: {name} is no option; the nearest is {_nearest(name, known)}"
            )


def default_map(
    command: click.Command, table: Mapping[str, Any], file: Path, path: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What ``aqa.toml`` says, as click takes it: parameter -> value, command -> its own.

    Raises
    ------
    UsageError
        If a name is that of no command and of no option, or stands twice.
    """
    commands: dict[str, click.Command] = getattr(command, "commands", {})
    below = {_plain(name): name for name in commands}
    own = {_plain(name): option for option in options(command) for name in names(option)}
    here = f"[{'.'.join(path)}]" if path else "the top of the file"
    found: dict[str, Any] = {}
    into: str
    read: Any
    for key, value in table.items():
        dotted = ".".join([*path, key])
        if name := below.get(_plain(key)):
            if not isinstance(value, dict):
                raise UsageError(f"{file}: {dotted} must be a table: [{dotted}]")
            into, read = name, default_map(commands[name], value, file, (*path, name))
        elif option := own.get(_plain(key)):
            into, read = str(option.name), _as_typed(option, value, f"{file}: {key} in {here}")
        elif isinstance(value, dict) and below:
            raise UsageError(
                f"{file}: [{dotted}] is not a command; the nearest is "
                f"{_nearest(key, commands)}, all are {', '.join(commands)}"
            )
        else:
            known = [names(option)[0] for option in options(command) if not option.hidden]
            raise UsageError(
                f"{file}: {here} has no option {key!r}; the nearest is "
                f"{_nearest(key, [*own, *below])}, all are {', '.join([*sorted(known), *commands])}"
            )
        if into in found:
            raise UsageError(f"{file}: {key} stands in {here} twice, under two names")
        found[into] = read
    return found


def _plain(name: str) -> str:
    return name.replace("_", "-")


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib

    return difflib.get_close_matches(name, list(known), n=1, cutoff=0)[0]


def _as_typed(option: click.Option, value: Any, where: str) -> Any:
    """A value as it would be typed, so that it is read the same way."""
    values = value if isinstance(value, list) and option.multiple else [value]
    for each in values:
        if isinstance(each, list | dict):
            raise UsageError(f"{where}: expected one value, found {each}")
    texts = [str(each).lower() if isinstance(each, bool) else str(each) for each in values]
    return texts if option.multiple else texts[0]
