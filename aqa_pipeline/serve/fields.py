"""Form fields of the upload page, derived from the run's exemplar key, and their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aqa_pipeline.errors import UsageError
from aqa_pipeline.runs.folder import Run
from aqa_pipeline.scoring.assessor import ClipMetadata

#: Before the name of a column of the exemplar key that is neither category nor difficulty.
KEY_PREFIX = "key."
_NAMES = ("start", "end", "category", "difficulty")


@dataclass(frozen=True)
class Field:
    """One field of the form.

    Attributes
    ----------
    name : str
        As it is sent.
    label : str
    values : tuple of str
        Those of the training clips.
    value : str
        To begin with.
    is_free : bool
        Whether other values may be typed: a number need not be a known one.
    """

    name: str
    label: str
    values: tuple[str, ...]
    value: str
    is_free: bool


def form_fields(runs: Sequence[Run], *, categories: Sequence[str]) -> list[Field]:
    """The fields that a run, or the runs of its categories and folds, needs.

    Parameters
    ----------
    runs : sequence of Run
        All with the same exemplar key.
    categories : sequence of str
        Those with heads of their own; one empty text where there are none.
    """
    names = runs[0].protocol.exemplar_key
    fields = []
    known = sorted(filter(None, categories))
    if not known and ("category" in names or runs[0].labels.transform == "range"):
        known = sorted({name for run in runs for name in run.exemplars.category})
    if len(known) > 1:
        fields.append(_listed("category", "Category", known))
    if "difficulty" in names or runs[0].labels.transform == "raw":
        values = np.concatenate([run.exemplars.difficulty for run in runs])
        found = [f"{value:g}" for value in np.unique(values[np.isfinite(values)])]
        middle = found[len(found) // 2] if found else ""
        fields.append(Field("difficulty", "Difficulty", tuple(found), middle, is_free=True))
    for i, name in enumerate(names):
        if name not in ("category", "difficulty"):
            own = sorted({str(key[i]) for run in runs for key in run.exemplars.key})
            fields.append(_listed(KEY_PREFIX + name, name.replace("_", " ").capitalize(), own))
    return fields


def _listed(name: str, label: str, values: Sequence[str]) -> Field:
    return Field(name, label, tuple(values), values[0] if values else "", is_free=False)


def parse_metadata(asked: Mapping[str, str]) -> ClipMetadata:
    """What a sender says of a clip, as text by name.

    Raises
    ------
    UsageError
        If something is unknown, or not a number.
    """
    columns = {
        name.removeprefix(KEY_PREFIX): value
        for name, value in asked.items()
        if name.startswith(KEY_PREFIX)
    }
    unknown = sorted({name for name in asked if not name.startswith(KEY_PREFIX)} - set(_NAMES))
    if unknown:
        raise UsageError(f"unknown: {', '.join(unknown)[:80]}; known are {', '.join(_NAMES)}")
    return ClipMetadata(
        start_frame=_frame(asked, "start"),
        end_frame=_frame(asked, "end"),
        category=asked.get("category", ""),
        difficulty=_positive(asked, "difficulty"),
        columns=columns,
    )


def _frame(asked: Mapping[str, str], name: str) -> int | None:
    text = asked.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError(f"{name} is {text[:20]!r}; expected a frame number, 0 or more")
    return int(text)


def _positive(asked: Mapping[str, str], name: str) -> float | None:
    text = asked.get(name, "").replace(",", ".")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not 0 < value < np.inf:
        raise UsageError(f"{name} is {text[:20]!r}; expected a number above 0")
    return value
