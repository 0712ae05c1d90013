"""What the page asks about a clip beside its video: what the run's exemplar key needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aqa_pipeline.runs.folder import Run

#: Before the name of a column of the exemplar key that is neither category nor difficulty.
KEY_PREFIX = "key."


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


def fields_of(runs: Sequence[Run], *, categories: Sequence[str]) -> list[Field]:
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
    for place, name in enumerate(names):
        if name not in ("category", "difficulty"):
            own = sorted({str(key[place]) for run in runs for key in run.exemplars.key})
            fields.append(_listed(KEY_PREFIX + name, name.replace("_", " ").capitalize(), own))
    return fields


def _listed(name: str, label: str, values: Sequence[str]) -> Field:
    return Field(name, label, tuple(values), values[0] if values else "", is_free=False)
