"""Options made from the fields of a configuration: ``aqa_pipeline.option`` is their face."""

from __future__ import annotations

import copy
import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import click

from aqa_pipeline.option import Option

Command = TypeVar("Command", bound=Callable[..., Any])

#: Option -> its earlier name, and earlier words with those that are said now.
RENAMED: dict[str, tuple[str, dict[str, str]]] = {
    "model-selection": ("protocol", {"default": "validation", "literature": "test"}),
}


def config_options(
    *rows: str | Callable[[Any], Any],
    changed: Mapping[str, dict[str, Any]] | None = None,
    **configs: Any,
) -> Callable[[Command], Command]:
    """Options from the fields of configurations, which reach the command filled.

    Parameters
    ----------
    *rows : str or decorator
        Names of options, apart by spaces; between them any other option, in the order of help.
    changed : dict of str to dict, optional
        What this command says otherwise: option -> changes, see :func:`config_option`.
    **configs : dataclasses
        Argument of the command -> configuration; its values are the defaults.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def filled(*args: Any, **values: Any) -> Any:
            for argument, config in configs.items():
                own = [key for key in values if key.startswith(f"{argument}__")]
                fields = {key.removeprefix(f"{argument}__"): values.pop(key) for key in own}
                values[argument] = dataclasses.replace(config, **fields)
            return command(*args, **values)

        made: Any = filled
        for row in reversed(rows):
            if not isinstance(row, str):
                made = row(made)
                continue
            for name in reversed(row.split()):
                (argument,) = (a for a, c in configs.items() if name in _faces(c.__class__))
                config, changes = configs[argument], (changed or {}).get(name, {})
                into = f"{argument}__{_faces(config.__class__)[name][0]}"
                made = config_option(config, name, into=into, **changes)(made)
        return typing.cast(Command, made)

    return decorate


def config_option(
    config: Any, name: str, /, *, into: str = "", choices: tuple[str, ...] = (), **changes: Any
) -> Callable[[Command], Command]:
    """One option from a field of a configuration.

    Parameters
    ----------
    config : dataclass
        Its value is the default.
    name : str
        Of the option, without dashes in front.
    into : str
        Argument of the command; empty: the name.
    choices : tuple of str
        Fewer than the field has; empty: all.
    **changes
        ``default``, and fields of :class:`aqa_pipeline.option.Option` that this command says
        otherwise.
    """
    field, kind, face = _faces(config.__class__)[name]
    default = changes.pop("default", getattr(config, field))
    face = dataclasses.replace(face, **{"name": name, **changes})
    flags = [f"--{face.name}"]
    settings: dict[str, Any] = {"default": default, "help": face.help}
    if kind is bool:
        flags = flags if face.only_on else [f"--{face.name}/--no-{face.name}"]
        settings["is_flag"] = True
    elif face.none:
        settings |= {"type": CountOr(face.none), "default": str(default or face.none)}
    elif typing.get_origin(kind) is Literal:
        settings["type"] = click.Choice(choices or typing.get_args(kind))
    elif kind is not str:
        settings["type"] = _number(kind, face)
    if face.metavar:
        settings["metavar"] = face.metavar
    if face.name in RENAMED:
        old, words = RENAMED[face.name]
        flags.append(f"--{old}")
        settings |= {"cls": RenamedOption, "type": OldWords(settings["type"].choices, words)}
    return click.option(*flags, into or face.name.replace("-", "_"), **settings)


@functools.cache
def _faces(config: type) -> dict[str, tuple[str, Any, Option]]:
    """Option -> name and type (beside None) of its field, and its face."""
    types = typing.get_type_hints(config)
    faces = {}
    for field in dataclasses.fields(config):
        if face := field.metadata.get("option"):
            kind = types[field.name]
            if typing.get_origin(kind) is not Literal:
                kind = next((k for k in typing.get_args(kind) if k is not type(None)), kind)
            faces[face.name or field.name.replace("_", "-")] = field.name, kind, face
    return faces


def _number(kind: type, face: Option) -> Any:
    low = face.at_least if face.above is None else face.above
    high = face.at_most if face.below is None else face.below
    if low is None and high is None:
        return click.INT if kind is int else click.FLOAT
    bounds: dict[str, Any] = {
        "min": low, "max": high,
        "min_open": face.above is not None, "max_open": face.below is not None,
    }  # fmt: skip
    return click.IntRange(**bounds) if kind is int else click.FloatRange(**bounds)


class CountOr(click.ParamType):  # type: ignore[type-arg]
    """A whole number from 1 on, or a word that means None."""

    name = "count"

    def __init__(self, word: str) -> None:
        self.word = word

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"INTEGER|{self.word}"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value == self.word:
            return None
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a whole number from 1 on nor {self.word}", param, ctx)
        return int(value)


class OldWords(click.Choice[str]):
    """Choices that go by other words too, which help does not show."""

    def __init__(self, choices: Any, words: Mapping[str, str]) -> None:
        super().__init__(choices)
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(self.words.get(value, value), param, ctx)


class RenamedOption(click.Option):
    """An option that still answers to its earlier name, which help does not show."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        shown = copy.copy(self)
        shown.opts = self.opts[:1]
        return click.Option.get_help_record(shown, ctx)
