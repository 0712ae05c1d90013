"""The protocol file ``NAME.toml`` beside a manifest: how its clips are used.

Reading is strict: an unknown key or a value of the wrong kind is an error that names
the key, since a silently ignored line in this file would change every number.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aqa_pipeline.atomic import write_text_atomically
from aqa_pipeline.config import PIXEL_PRESETS, Protocol
from aqa_pipeline.errors import DataError

#: Field -> the comment written above it.
_COMMENTS = {
    "name": "Name of the data set.",
    "window_rule": (
        "Frames of a clip: last = the window_frames before end_frame; first = from start_frame;\n"
        "even = evenly spaced from start_frame to end_frame - 1."
    ),
    "window_frames": "Length of the window, in frames.",
    "snippet_frames": "Length of a snippet, in frames.",
    "snippet_starts": "First frame of each snippet inside the window.",
    "pixels": f"Resize, crop and normalisation: one of {', '.join(PIXEL_PRESETS)}.",
    "shift_frames": "Augmented views shift a training clip by up to this many frames either way.",
    "exemplar_key": "Query and exemplar agree in these manifest columns; []: any two clips.",
    "label_transform": (
        "What the head learns: none = score; raw = score / difficulty;\n"
        "range = score mapped to 0..100 by category."
    ),
    "label_ranges": (
        "For range: [lowest, highest] score of each category. Used by test-set model selection;\n"
        "the default takes them from the training scores."
    ),
    "score_range": "Largest label difference the groups cover; left out: training labels' range.",
    "epsilon": "Divides the exemplar's label (Eq. 4); left out: the largest training label.",
    "score_range_without_difficulty": (
        "score_range and epsilon under --no-difficulty; left out: from the training scores."
    ),
    "per_category": "One head for each category.",
    "fold_columns": "Columns that hold train/test of each cross-validation fold; [] means split.",
    "rho_average": "Average of Spearman's rho over categories: fisher or mean.",
    "source": "Where these facts come from.",
}

_CHOICES = {
    "window_rule": ("last", "first", "even"),
    "pixels": tuple(PIXEL_PRESETS),
    "label_transform": ("none", "raw", "range"),
    "rho_average": ("fisher", "mean"),
}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # TOML has inf and nan.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_ranges(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(map(_is_number, pair))
        and pair[0] < pair[1]
        for pair in value.values()
    )


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda v: isinstance(v, str) and bool(v), "a text"),
    "window_frames": (lambda v: _is_int(v) and v >= 1, "a whole number, 1 or more"),
    "snippet_frames": (
        lambda v: _is_int(v) and v >= 9,
        "a whole number, 9 or more (the backbone needs 9)",
    ),
    "snippet_starts": (
        lambda v: isinstance(v, list) and bool(v) and all(_is_int(i) and i >= 0 for i in v),
        "a list of whole numbers, 0 or more",
    ),
    "shift_frames": (lambda v: _is_int(v) and v >= 0, "a whole number, 0 or more"),
    "exemplar_key": (
        lambda v: isinstance(v, list) and all(isinstance(i, str) for i in v),
        "a list of texts",
    ),
    "fold_columns": (
        lambda v: isinstance(v, list) and all(isinstance(i, str) for i in v),
        "a list of texts",
    ),
    "label_ranges": (_is_ranges, "a table of CATEGORY = [lowest, highest]"),
    "score_range": (lambda v: _is_number(v) and v > 0, "a number above 0"),
    "score_range_without_difficulty": (lambda v: _is_number(v) and v > 0, "a number above 0"),
    "epsilon": (lambda v: _is_number(v) and v > 0, "a number above 0"),
    "per_category": (lambda v: isinstance(v, bool), "true or false"),
    "source": (lambda v: isinstance(v, str), "a text"),
}


def read_protocol(path: Path) -> Protocol:
    """Read a protocol file.

    Keys that are left out have the defaults of :class:`~aqa_pipeline.config.Protocol`;
    ``name`` defaults to the file's name.

    Raises
    ------
    DataError
        If the file cannot be read, is not TOML, has an unknown key or a wrong value. All
        wrong keys are named at once.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a TOML file: {error}") from None
    values: dict[str, Any] = {"name": path.stem}
    faults: list[str] = []
    for key, value in table.items():
        fault = _fault(key, value)
        if fault:
            faults.append(f"{key}: {fault}")
        else:
            values[key] = _frozen(key, value)
    if not faults:
        starts = values.get("snippet_starts", Protocol.snippet_starts)
        window = values.get("window_frames", Protocol.window_frames)
        length = values.get("snippet_frames", Protocol.snippet_frames)
        if max(starts) + length > window:
            faults.append(
                f"snippet_starts: a snippet of {length} frames from {max(starts)} "
                f"ends past the window of {window}"
            )
    if faults:
        raise DataError(f"{path}: " + "; ".join(faults))
    return Protocol(**values)


def _fault(key: str, value: Any) -> str | None:
    if key not in _COMMENTS:
        return f"unknown key; the keys are {', '.join(_COMMENTS)}"
    if key in _CHOICES:
        choices = _CHOICES[key]
        return None if value in choices else f"{value!r} is not one of {', '.join(choices)}"
    fits, expected = _KINDS[key]
    return None if fits(value) else f"{value!r} is not {expected}"


def _frozen(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, dict):
        return {category: (float(low), float(high)) for category, (low, high) in value.items()}
    # "30" and "30.0" in the file are one setting.
    return float(value) if key in ("score_range", "epsilon") else value


def write_protocol(path: Path, protocol: Protocol) -> None:
    """Write a protocol file, each key under a comment that explains it."""
    lines = ["# How the clips of this data set are cut, labelled, compared and averaged."]
    tables = []
    for field in dataclasses.fields(Protocol):
        value = getattr(protocol, field.name)
        comment = "".join(f"# {line}\n" for line in _COMMENTS[field.name].splitlines())
        if isinstance(value, dict):
            if value:
                rows = "".join(f"{_toml(key)} = {_toml(pair)}\n" for key, pair in value.items())
                tables.append(f"\n{comment}[{field.name}]\n{rows}")
        elif value is None:
            lines.append(f"\n{comment}# {field.name} =")
        else:
            lines.append(f"\n{comment}{field.name} = {_toml(value)}")
    write_text_atomically(path, "\n".join(lines) + "\n" + "".join(tables))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A TOML basic string escapes what JSON escapes, and DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)


def without_difficulty(protocol: Protocol) -> Protocol:
    """The protocol of the paper's starred methods, which never see the difficulty.

    The label is the score itself, and the difficulty is no part of the exemplar key.
    """
    return dataclasses.replace(
        protocol,
        label_transform="none" if protocol.label_transform == "raw" else protocol.label_transform,
        exemplar_key=tuple(name for name in protocol.exemplar_key if name != "difficulty"),
        score_range=protocol.score_range_without_difficulty,
        epsilon=protocol.score_range_without_difficulty,
    )
