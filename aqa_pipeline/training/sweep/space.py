"""Search space of a sweep: its dimensions, and points in it.

Conventions
-----------
dimension
    A field of :class:`~aqa_pipeline.config.HeadConfig` or
    :class:`~aqa_pipeline.config.FitConfig`, with the values it may take: ``8,16,32`` or
    ``lo..hi``, with ``:log`` for even steps of the exponent and ``:N`` for N steps of a grid.
point
    A value for each dimension, by field name; JSON values alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.errors import UsageError

Value = int | float | str | bool | None
Point = dict[str, Value]

#: What the command line calls some fields.
ALIASES = {"lr": "learning_rate", "head": "kind", "m": "num_exemplars", "depth": "num_groups"}
_HEAD_FIELDS = (
    "kind", "mode", "recipe", "num_groups", "hidden", "aggregation", "reduced_dim", "dropout",
    "standardise", "sigma", "score_bins",
)  # fmt: skip
_FIT_FIELDS = (
    "learning_rate", "weight_decay", "batch_size", "epochs", "num_exemplars", "use_difficulty",
    "views",
)  # fmt: skip
FIELDS = (*_HEAD_FIELDS, *_FIT_FIELDS)
_MOST_GRID_POINTS = 100_000


@dataclass(frozen=True)
class Dimension:
    """One field and what it may be.

    Attributes
    ----------
    name : str
    choices : tuple
        Listed values; empty for a range.
    low, high : float
        Ends of a range, both included.
    log, integer : bool
    steps : int
        Points of the range in a grid; 0: not said.
    """

    name: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    steps: int = 0

    def grid(self) -> list[Value]:
        """Values of a grid.

        Raises
        ------
        UsageError
            If it is a range and nobody said in how many steps.
        """
        if self.choices:
            return list(self.choices)
        if self.integer and not self.steps and not self.log:
            return list(range(int(self.low), int(self.high) + 1))
        if not self.steps:
            log = ":log" if self.log else ""
            raise UsageError(
                f"{self.name}: a grid needs the number of steps of a range; type "
                f"{self.name}={self.low:g}..{self.high:g}{log}:5, or --search random"
            )
        spaced = np.geomspace if self.log else np.linspace
        values = spaced(self.low, self.high, self.steps).tolist()
        return list(dict.fromkeys(round(v) for v in values)) if self.integer else values

    @property
    def is_fixed(self) -> bool:
        return len(self.choices) == 1


def parse_dimension(name: str, given: Any) -> Dimension:
    """A dimension from a name and what may be chosen.

    Parameters
    ----------
    name : str
        Field, as in the configuration or on the command line (``lr``, ``num-groups``).
    given : str, number, bool or list
        ``"8,16,32"``, ``"1e-4..1e-2:log"``, a list, or one value.

    Raises
    ------
    UsageError
        If the field does not exist or cannot have such a value.
    """
    field = name.strip().replace("-", "_")
    field = ALIASES.get(field, field)
    if field not in FIELDS:
        raise UsageError(
            f"{name!r} cannot be swept; there are {', '.join((*ALIASES, *sorted(FIELDS)))}"
        )
    if isinstance(given, str) and ".." in given:
        return _range(field, given)
    items = given.split(",") if isinstance(given, str) else given
    items = items if isinstance(items, list | tuple) else [items]
    values = tuple(dict.fromkeys(_value(field, item) for item in items))
    return Dimension(field, choices=values)


def _range(field: str, text: str) -> Dimension:
    body, *options = text.split(":")
    log = "log" in options
    steps = [option for option in options if option != "log"]
    low, _, high = body.partition("..")
    ends = [_value(field, end) for end in (low, high)]
    numbers = [end for end in ends if isinstance(end, int | float) and not isinstance(end, bool)]
    if len(numbers) != 2 or len(steps) > 1 or not all(s.isdecimal() and int(s) > 0 for s in steps):
        raise UsageError(
            f"{field}={text}: expected lo..hi, lo..hi:log, or either with :N for N grid steps"
        )
    if not numbers[0] < numbers[1] or (log and numbers[0] <= 0):
        raise UsageError(
            f"{field}={text}: the first end must be below the second"
            + (", and above 0 for :log" if log else "")
        )
    integer = int in _types(field)
    return Dimension(
        field,
        low=float(numbers[0]),
        high=float(numbers[1]),
        log=log,
        integer=integer,
        steps=int(steps[0]) if steps else 0,
    )


def _hints() -> dict[str, Any]:
    return {**typing.get_type_hints(HeadConfig), **typing.get_type_hints(FitConfig)}


def _types(field: str) -> tuple[Any, ...]:
    hint = _hints()[field]
    return typing.get_args(hint) if typing.get_args(hint) else (hint,)


def _value(field: str, item: Any) -> Value:
    """One value of a field, checked against its type."""
    text = str(item).strip()
    types = _types(field)
    if typing.get_origin(_hints()[field]) is Literal:
        if text in types:
            return text
        raise UsageError(f"{field}={text}: expected one of {', '.join(map(str, types))}")
    try:
        if bool in types:
            return {"true": True, "false": False}[text.lower()]
        if type(None) in types and text in ("all", "None"):
            return None
        number = float(text)
        if not math.isfinite(number):
            raise ValueError
        if int in types and float not in types:
            if number != int(number):
                raise ValueError
            return int(number)
    except (KeyError, ValueError):
        names = {bool: "true or false", int: "a whole number", float: "a number"}
        expected = next(name for kind, name in names.items() if kind in types)
        more = " or all" if type(None) in types else ""
        raise UsageError(f"{field}={text}: expected {expected}{more}") from None
    return number


@dataclass(frozen=True)
class Space:
    """Dimensions, each of another field."""

    dimensions: tuple[Dimension, ...]

    @property
    def varied(self) -> tuple[Dimension, ...]:
        """Dimensions with more than one value."""
        return tuple(d for d in self.dimensions if not d.is_fixed)

    def grid(self) -> list[Point]:
        """Every combination.

        Raises
        ------
        UsageError
            If a range does not say in how many steps, or there are too many.
        """
        lists = [dimension.grid() for dimension in self.dimensions]
        count = math.prod(map(len, lists))
        if count > _MOST_GRID_POINTS:
            raise UsageError(f"this grid has {count:,} points; type --search random --trials 100")
        names = [dimension.name for dimension in self.dimensions]
        return [dict(zip(names, values, strict=True)) for values in itertools.product(*lists)]

    @property
    def is_listed(self) -> bool:
        """Whether a grid of it is defined."""
        return all(d.choices or d.steps for d in self.dimensions)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, to be compared with those of an earlier call."""
        return {
            d.name: list(d.choices)
            if d.choices
            else {k: v for k, v in dataclasses.asdict(d).items() if k not in ("name", "choices")}
            for d in self.dimensions
        }


def parse_space(settings: Sequence[str], file: Path | None = None) -> Space:
    """A space from ``name=values`` settings and a TOML file; the settings count for more.

    Raises
    ------
    UsageError
        If nothing is varied, or a name or value is wrong.
    """
    given: dict[str, Dimension] = {}
    for name, value in (_read(file) if file else {}).items():
        if isinstance(value, Mapping):
            raise UsageError(f'{file}: {name} is a table; write {name} = [..] or "lo..hi:log"')
        dimension = parse_dimension(name, value)
        given[dimension.name] = dimension
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not value:
            raise UsageError(f"--set {setting}: expected name=value, as in --set lr=1e-4..1e-2:log")
        dimension = parse_dimension(name, value)
        given[dimension.name] = dimension
    space = Space(tuple(given.values()))
    if not space.varied:
        raise UsageError(
            "nothing to vary: type, for instance, --set lr=1e-4..1e-2:log --set num_groups=8,16,32"
        )
    return space


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from None


def configs(
    point: Mapping[str, Value], *, head: HeadConfig, fit: FitConfig
) -> tuple[HeadConfig, FitConfig]:
    """The configurations that a point asks for, beside what is fixed.

    Raises
    ------
    UsageError
        If the point asks for what cannot be trained in a sweep.
    """
    own_head = dataclasses.replace(head, **_of(point, _HEAD_FIELDS))
    own_fit = dataclasses.replace(fit, **_of(point, _FIT_FIELDS))
    if own_head.is_svr:
        raise UsageError(
            f"kind {own_head.kind} is fitted from a grid of its own; leave it out of the sweep"
        )
    if own_head.mode == "contrastive" and own_head.kind not in ("gart", "mlp"):
        raise UsageError(f"kind {own_head.kind} cannot compare; add --set mode=direct")
    if own_head.num_groups < 2 or own_head.num_groups & (own_head.num_groups - 1):
        raise UsageError(f"num_groups is {own_head.num_groups}; a binary tree needs a power of two")
    for name, low, high in _LIMITS:
        value = getattr(own_head, name, getattr(own_fit, name, None))
        if value is not None and not low <= value < high:
            raise UsageError(f"{name}={value:g} lies outside {low:g} .. {high:g}")
    return own_head, own_fit


_LIMITS = (
    ("dropout", 0, 1), ("learning_rate", 1e-12, math.inf), ("weight_decay", 0, math.inf),
    ("batch_size", 1, math.inf), ("epochs", 1, math.inf), ("hidden", 1, math.inf),
    ("reduced_dim", 1, math.inf), ("num_exemplars", 1, math.inf), ("score_bins", 2, math.inf),
    ("sigma", 1e-12, math.inf),
)  # fmt: skip


def _of(point: Mapping[str, Value], fields: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in point.items() if name in fields}
