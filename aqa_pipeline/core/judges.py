"""Judges' marks, and the rule that makes a label of them.

Conventions
-----------
marks : ndarray of float64, shape=(N, J)
    One mark a judge, in the judges' own points: 0 to 10 in half points for dives, ratings
    1 to 5 for sutures.
rule
    ``middle three``: the label is the sum of the three middle marks, as in diving, where the
    raw score is that sum and is then multiplied by the difficulty. ``all``: the sum of all
    marks, as of the six ratings of JIGSAWS.

Source: Tang et al., CVPR 2020 (the paper's reference 29), Sec. 3.3.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.errors import DataError

FloatArray = npt.NDArray[np.float64]
Rule = Literal["middle three", "all"]

RULES: tuple[Rule, ...] = ("middle three", "all")

#: A rule must meet this part of the labels, each within TOLERANCE label points. Published
#: tables have typing errors: 27 of the 1412 scores of MTL-AQA do not follow from the marks.
SHARE_REPRODUCED = 0.9
TOLERANCE = 0.05


def counted(rule: Rule, num_judges: int) -> slice:
    """The marks that count, among a clip's marks in ascending order."""
    if rule == "all" or num_judges < 3:
        return slice(0, num_judges)
    first = (num_judges - 3) // 2
    return slice(first, first + 3)


def label_of_marks(marks: npt.ArrayLike, *, rule: Rule) -> FloatArray:
    """Labels that follow from the marks, shape=(N,)."""
    ordered = np.sort(np.asarray(marks, dtype=np.float64), axis=-1)
    total: FloatArray = ordered[..., counted(rule, ordered.shape[-1])].sum(axis=-1)
    return total


def find_rule(marks: npt.ArrayLike, labels: npt.ArrayLike) -> Rule:
    """The rule by which the marks make the labels.

    Parameters
    ----------
    marks : array_like, shape=(N, J)
    labels : array_like, shape=(N,)

    Raises
    ------
    DataError
        If no rule reproduces 90 % of the labels within 0.05.
    """
    labels = np.asarray(labels, dtype=np.float64)
    share = {
        rule: float(np.mean(np.abs(label_of_marks(marks, rule=rule) - labels) <= TOLERANCE + 1e-9))
        for rule in RULES
    }
    best = max(RULES, key=share.__getitem__)
    if not share[best] >= SHARE_REPRODUCED:
        found = ", ".join(f"the sum of {rule}: {share[rule]:.0%}" for rule in RULES)
        raise DataError(
            f"the judges' marks do not make the labels ({found} of {len(labels)} clips; "
            f"{SHARE_REPRODUCED:.0%} are needed). musdl predicts marks and adds them up, so the "
            'label must be that sum: in diving with label_transform = "raw" and --difficulty'
        )
    return best


def marks_of(clips: FeatureSet) -> FloatArray:
    """The judges' marks of the clips, shape=(N, J).

    Raises
    ------
    DataError
        If there are none.
    """
    if clips.judges is None:
        raise DataError(
            "musdl learns from the marks of single judges: the manifest needs the columns "
            "judge_1, judge_2, ... (or rating_1, rating_2, ...) with a number for every "
            "training clip; --head usdl does without"
        )
    return clips.judges


def half_points(marks: npt.ArrayLike) -> FloatArray:
    """Every half point from the lowest mark to the highest, ascending."""
    marks = np.asarray(marks, dtype=np.float64)
    low, high = np.floor(2 * marks.min()), np.ceil(2 * marks.max())
    return np.arange(low, high + 1) / 2
