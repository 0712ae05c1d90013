"""Fields of a configuration that are options of the command line."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """The face of a field on the command line.

    Attributes
    ----------
    help : str
        What ``--help`` says of it.
    name : str
        Empty: the field's name, with dashes.
    at_least, above, at_most, below : float or None
        Bounds of a number; ``above`` and ``below`` are open.
    none : str
        The word for None, such as ``all``; empty: None is what nothing given means.
    metavar : str
        What stands for the value; empty: its type.
    only_on : bool
        A switch without a ``--no-NAME``.
    """

    help: str
    name: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    none: str = ""
    metavar: str = ""
    only_on: bool = False


def option(default: T, help: str, **face: Any) -> T:
    """A field that is an option; ``face`` as in :class:`Option`."""
    made: T = field(default=default, metadata={"option": Option(help, **face)})
    return made


def as_in(config: type, name: str) -> Any:
    """A field with the default and the option of another configuration's."""
    (same,) = (other for other in dataclasses.fields(config) if other.name == name)
    return field(default=same.default, metadata=same.metadata)
