"""Compare two clips: which is better, and how sure that is.

The difference of the two predicted scores is what counts. How far such a difference is off, and
how often it has the right sign, is known from the calibrating clips, taken in pairs. A contrastive
head can also put the two clips side by side, each once as the query and once as the exemplar
(Eq. 3); that answer is given beside the other and is not calibrated.

Conventions
-----------
z
    Predicted difference of two clips, in units of the size their errors have together:
    ``(p_i - p_j) / sqrt(scale_i^2 + scale_j^2)``, p in score points.

The calibrating clips are taken in pairs, each in both orders. Of pairs with a small z about half
turn out in the predicted order, of pairs with a large one almost all; between them the share is
found by isotonic regression, which assumes nothing but that it rises.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

from aqa_pipeline.datasets.manifest import read_manifest
from aqa_pipeline.errors import ClipError, UsageError
from aqa_pipeline.project import Project
from aqa_pipeline.runs.conformal import conformal_quantile, difference_errors
from aqa_pipeline.scoring.assessor import ClipMetadata, FeatureScorer
from aqa_pipeline.scoring.batch import ScoreRequest, metadata_of, score_clips
from aqa_pipeline.scoring.result import ScoredClip
from aqa_pipeline.scoring.scorer import Scorer

FloatArray = npt.NDArray[np.float64]

#: Clips beyond this many are thinned out: there are n x (n - 1) pairs.
_MOST_CLIPS = 1500


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two scored clips beside each other.

    Attributes
    ----------
    a, b : ScoredClip
    difference : float
        Score of ``a`` minus score of ``b``, in points.
    interval : (float, float) or None
        Holds the true difference as often as ``coverage`` says; None without calibration.
    coverage : float
    probability : float or None
        That the judges would give ``a`` more; None without calibration.
    side_by_side : float or None
        What the heads say of the difference when they see both clips at once, in points; None
        for heads that do not compare, and for clips that may not be compared.
    """

    a: ScoredClip
    b: ScoredClip
    difference: float
    interval: tuple[float, float] | None
    coverage: float
    probability: float | None
    side_by_side: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "a": self.a.as_dict(),
            "b": self.b.as_dict(),
            "difference": self.difference,
            "interval": None if self.interval is None else list(self.interval),
            "coverage": self.coverage,
            "probability_a_is_better": self.probability,
            "side_by_side": self.side_by_side,
        }


def compare_clips(scorer: Scorer, a: ScoreRequest, b: ScoreRequest) -> Comparison:
    """Score two clips and compare them.

    Raises
    ------
    ClipError
        If one cannot be read.
    UsageError
        If a fact is missing, or they are of two categories.
    """
    scored: list[ScoredClip] = []
    for result in score_clips(scorer, [a, b]):
        if result.scored is None:
            raise ClipError(result.error)
        scored.append(result.scored)
    return compare(scorer.assessor(a.metadata.category), *scored)


def compare(assessor: FeatureScorer, a: ScoredClip, b: ScoredClip) -> Comparison:
    """Compare two clips that the same heads scored.

    Raises
    ------
    UsageError
        If they are of two categories: their scores cannot be compared.
    """
    if a.category != b.category:
        raise UsageError(
            f"{a.category!r} and {b.category!r} are scored on scales of their own; compare clips "
            "of one category"
        )
    difference = a.score - b.score
    interval = probability = None
    calibration = assessor.calibration
    if calibration is not None and len(calibration) > 1:
        confidence = RankingConfidence(calibration.score, calibration.prediction, calibration.scale)
        probability = confidence.probability(difference, scale_a=a.scale, scale_b=b.scale)
        errors = difference_errors(calibration.residual, scale_a=a.scale, scale_b=b.scale)
        half = conformal_quantile(np.abs(errors), assessor.coverage)
        if math.isfinite(half):
            interval = (difference - half, difference + half)
    return Comparison(
        a=a,
        b=b,
        difference=difference,
        interval=interval,
        coverage=assessor.coverage,
        probability=probability,
        side_by_side=assessor.side_by_side(a, b),
    )


class RankingConfidence:
    """The share of pairs in the predicted order, by how far apart they were predicted.

    Parameters
    ----------
    score, prediction : array_like, shape=(n,)
        True and predicted scores of the calibrating clips, in points; n at least 2.
    scale : array_like, shape=(n,)
        Score points a label point is worth.
    """

    def __init__(
        self, score: npt.ArrayLike, prediction: npt.ArrayLike, scale: npt.ArrayLike
    ) -> None:
        columns = [np.asarray(values, dtype=np.float64) for values in (score, prediction, scale)]
        step = max(1, -(-len(columns[0]) // _MOST_CLIPS))
        truth, predicted, size = (values[::step] for values in columns)
        pair = ~np.eye(len(truth), dtype=bool)
        apart = np.hypot(size[:, None], size[None])[pair]
        z = (predicted[:, None] - predicted[None])[pair] / apart
        gap = (truth[:, None] - truth[None])[pair]
        order = np.argsort(z, kind="stable")
        self._z = z[order]
        self._share: FloatArray = isotonic_regression((np.sign(gap[order]) + 1) / 2).x
        self._margin = 1 / (len(truth) + 2)

    def probability(self, difference: float, *, scale_a: float, scale_b: float) -> float:
        """That the first of two clips is truly the better one.

        Few clips cannot vouch for certainty: it stays 1 / (n + 2) away from 0 and 1.

        Parameters
        ----------
        difference : float
            Predicted score of the first minus that of the second, in points.
        scale_a, scale_b : float
            Score points a label point is worth, for each.
        """
        z = difference / float(np.hypot(scale_a, scale_b))
        # Half way between both orders' answers: ties among the z must not prefer one.
        up = float(np.interp(z, self._z, self._share))
        down = float(np.interp(-z, self._z, self._share))
        return float(np.clip((up + 1 - down) / 2, self._margin, 1 - self._margin))


def find_clip(
    scorer: Scorer,
    name: str,
    metadata: ClipMetadata = ClipMetadata(),  # noqa: B008 - frozen
    *,
    project: Project,
) -> ScoreRequest:
    """The clip that a name means: a video that is there, else a clip id of the run's data set.

    Parameters
    ----------
    scorer : Scorer
    name : str
    metadata : ClipMetadata
        What is given beside the name; it goes before what the manifest says.
    project : Project
        Where the data set's manifest lies.

    Raises
    ------
    ClipError
        If it is neither.
    """
    if Path(name).exists():
        return ScoreRequest(name, Path(name), metadata)
    path = project.manifest_path(scorer.any_run.config.dataset)
    if not path.exists():
        raise ClipError(f"{name}: no such video, and no manifest {path} that could name it")
    manifest = read_manifest(path)
    rows = manifest.clips[manifest.clips["clip_id"] == name]
    if rows.empty:
        raise ClipError(f"{name}: no such video, and no clip of that id in {path}")
    row = rows.iloc[0].to_dict()
    known = metadata_of(row, ClipMetadata())
    given = {field: value for field, value in asdict(metadata).items() if value not in (None, "")}
    given["columns"] = {**known.columns, **metadata.columns}
    return ScoreRequest(
        name, manifest.video_path(str(row["video"])), replace(known, **given), float(row["score"])
    )
