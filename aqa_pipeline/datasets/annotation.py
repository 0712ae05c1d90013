"""Reading official annotation files field by field, with errors that name the place."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from aqa_pipeline.errors import DataError
from aqa_pipeline.pickles import read_pickle

#: Annotations lie at most this many folders below the one given.
_MAX_DEPTH = 3

Key = tuple[str | int, int]


def find_annotation(folder: Path, *names: str) -> Path | None:
    """The annotation file of one of these names, in a folder or up to three below it.

    Parameters
    ----------
    folder : Path
    names : str
        In order of preference.

    Returns
    -------
    Path or None
        None if there is none of them.

    Raises
    ------
    DataError
        If the folder does not exist, or the file stands in two folders below it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of annotations")
    if (folder / names[0]).is_file():
        return folder / names[0]
    found: dict[str, list[Path]] = {name: [] for name in names}
    for parent, folders, files in os.walk(folder):
        folders.sort()
        if len(Path(parent).relative_to(folder).parts) >= _MAX_DEPTH:
            folders.clear()
        for name in set(names) & set(files):
            found[name].append(Path(parent) / name)
    paths = next((paths for paths in found.values() if paths), [])
    if len(paths) > 1 and paths[0].parent != folder:
        raise DataError(
            f"{paths[0]} and {paths[1]} have the same name; give the folder of the one you mean"
        )
    return paths[0] if paths else None


def need_annotation(folder: Path, *names: str) -> Path:
    """As :func:`find_annotation`, but the file has to be there.

    Raises
    ------
    DataError
    """
    path = find_annotation(folder, *names)
    if path is None:
        raise DataError(
            f"{folder}: no {' or '.join(names)} in it, nor in the folders below; docs/datasets.md "
            "says where to get it"
        )
    return path


class Fields:
    """Values of one annotated clip.

    Parameters
    ----------
    place : str
        File and clip, for messages.
    values : Any
        What the annotation holds for the clip; has to be a dict.

    Raises
    ------
    DataError
        If it is no dict.
    """

    def __init__(self, place: str, values: Any) -> None:
        if not isinstance(values, Mapping):
            raise DataError(f"{place}: a dict of fields is expected, found {_told(values)}")
        self.place, self.values = place, values

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def value(self, name: str) -> Any:
        if name not in self.values:
            there = ", ".join(map(str, self.values)) or "nothing"
            raise DataError(f"{self.place}: field {name!r} is missing; there are {there}")
        return self.values[name]

    def number(self, name: str) -> float:
        return as_number(f"{self.place}: {name}", self.value(name))

    def integer(self, name: str) -> int:
        return as_integer(f"{self.place}: {name}", self.value(name))

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str) or not value:
            raise DataError(f"{self.place}: {name} is {_told(value)}, not a text")
        return value

    def numbers(self, name: str, *, count: int) -> list[float]:
        return as_numbers(f"{self.place}: {name}", self.value(name), count=count)

    def plain(self, *, without: Sequence[str]) -> dict[str, str | int | float]:
        """All other fields that hold one text or number."""
        return {
            str(name): _unboxed(value)
            for name, value in self.values.items()
            if name not in without and isinstance(value, str | Real)
        }


def as_number(place: str, value: Any) -> float:
    """A finite number, or a DataError that begins with the place."""
    if type(value) is bool or not isinstance(value, Real) or not math.isfinite(value):
        raise DataError(f"{place} is {_told(value)}, not a finite number")
    return float(value)


def as_integer(place: str, value: Any) -> int:
    """A whole number, possibly written as a float, or a DataError."""
    number = as_number(place, value)
    if number != int(number):
        raise DataError(f"{place} is {_told(value)}, not a whole number")
    return int(number)


def as_numbers(place: str, value: Any, *, count: int) -> list[float]:
    """A list or array of ``count`` finite numbers, or a DataError."""
    items = _listed(value)
    if items is None or len(items) != count:
        raise DataError(f"{place} is {_told(value)}, not a list of {count} numbers")
    return [as_number(f"{place}[{i}]", item) for i, item in enumerate(items)]


def read_dict(path: Path) -> dict[Any, Any]:
    """A pickled dict that is not empty.

    Raises
    ------
    DataError
    """
    value = read_pickle(path)
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: a pickled dict of clips is expected, found {_told(value)}")
    return value


def as_key(place: str, value: Any) -> Key:
    """A clip's key: (video, number of the clip in it).

    Raises
    ------
    DataError
    """
    items = _listed(value)
    if items is not None and len(items) == 2:
        video, clip = items
        if isinstance(video, str | Integral) and isinstance(clip, Integral):
            return (video if isinstance(video, str) else int(video)), int(clip)
    raise DataError(f"{place}: a pair (video, clip) is expected, found {_told(value)}")


def read_split(path: Path, *, known: Mapping[Key, Any]) -> list[Key]:
    """A pickled list of clip keys.

    Raises
    ------
    DataError
        If it is something else, names a clip twice, or one that is not annotated.
    """
    items = _listed(read_pickle(path))
    if not items:
        raise DataError(f"{path}: a pickled list of clips is expected, found another value")
    keys = [as_key(f"{path}, entry {i}", item) for i, item in enumerate(items)]
    seen: set[Key] = set()
    for key in keys:
        if key in seen:
            raise DataError(f"{path}: clip {key} stands twice in the list")
        if key not in known:
            raise DataError(
                f"{path}: clip {key} is not in the annotations; are both files of one release?"
            )
        seen.add(key)
    return keys


def sides_of_split(train: Path, test: Path, *, known: Mapping[Key, Any]) -> dict[Key, str]:
    """``"train"`` or ``"test"`` of each clip in the two pickled lists.

    Raises
    ------
    DataError
        As in :func:`read_split`, or if a clip is on both sides.
    """
    sides: dict[Key, str] = dict.fromkeys(read_split(train, known=known), "train")
    for key in read_split(test, known=known):
        if key in sides:
            raise DataError(f"{test}: clip {key} is in {train.name} too")
        sides[key] = "test"
    return sides


def _listed(value: Any) -> list[Any] | None:
    if hasattr(value, "tolist"):  # a numpy array
        value = value.tolist()
    return list(value) if isinstance(value, list | tuple) else None


def _unboxed(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _told(value: Any) -> str:
    """A value short enough for a sentence."""
    text = repr(value)
    if len(text) > 60:
        text = text[:57] + "..."
    return f"{text} ({type(value).__name__})"
