"""Scored clips and the votes of their exemplars."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aqa_pipeline.core.featureset import Key


@dataclass(frozen=True)
class ExemplarVote:
    """One known performance that the clip was compared with.

    Attributes
    ----------
    clip_id : str
    score : float
        Its known score, in points.
    difficulty : float
        NaN where not given.
    vote : float
        Score of the clip that follows from the comparison, in points; mean over the heads.
    part : str
        Fold whose heads compared; empty where there is only one.
    """

    clip_id: str
    score: float
    difficulty: float
    vote: float
    part: str = ""


@dataclass(frozen=True, eq=False)
class ScoredClip:
    """A scored clip.

    Attributes
    ----------
    video : str
    start_frame, end_frame : int
        Half-open: from the first to behind the last frame that was looked at.
    video_frames : int
        Length of the whole video.
    num_clamped : int
        Frames of the window that are the video's first or last one repeated.
    category : str
    difficulty : float or None
    score : float
        Mean of all heads, in points.
    interval : (float, float) or None
        Holds the true score with probability ``coverage``; None where a warning says why.
    coverage : float
    num_calibrating : int
        Clips that calibrated the interval.
    per_head : tuple of float
        In points, folds one after the other.
    exemplars : tuple of ExemplarVote
        Empty for a head that does not compare.
    warnings : tuple of str
        Sentences about what may be wrong with the score.
    distance : float
        To the nearest training clip, see :mod:`aqa_pipeline.scoring.similarity`; above
        ``usual_distance`` the clip is unlike them.
    usual_distance : float
    features : ndarray of float32, shape=(snippets, dim)
    key : tuple
        Values of the exemplar key.
    scale, offset : float
        ``score = offset + scale * label``, see :mod:`aqa_pipeline.core.labels`.
    """

    video: str
    start_frame: int
    end_frame: int
    video_frames: int
    num_clamped: int
    category: str
    difficulty: float | None
    score: float
    interval: tuple[float, float] | None
    coverage: float
    num_calibrating: int
    per_head: tuple[float, ...]
    exemplars: tuple[ExemplarVote, ...]
    warnings: tuple[str, ...]
    distance: float
    usual_distance: float
    features: npt.NDArray[np.float32]
    key: Key
    scale: float
    offset: float

    def __repr__(self) -> str:
        interval = ""
        if self.interval is not None:
            low, high = self.interval
            interval = f", {100 * self.coverage:.0f} % interval {low:.2f} .. {high:.2f}"
        count = len(self.warnings)
        warned = f", {count} warning{'' if count == 1 else 's'}" if count else ""
        return f"ScoredClip({self.video}: {self.score:.2f}{interval}{warned})"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; without the features."""
        return {
            "video": self.video,
            "start_frame": self.start_frame,
            "end_frame": self.end_frame,
            "video_frames": self.video_frames,
            "clamped_frames": self.num_clamped,
            "category": self.category,
            "difficulty": self.difficulty,
            "score": self.score,
            "interval": None if self.interval is None else list(self.interval),
            "coverage": self.coverage,
            "calibrating_clips": self.num_calibrating,
            "per_head": list(self.per_head),
            "exemplars": [
                asdict(vote)
                | {"difficulty": None if math.isnan(vote.difficulty) else vote.difficulty}
                for vote in self.exemplars
            ],
            "distance": self.distance,
            "usual_distance": self.usual_distance,
            "warnings": list(self.warnings),
        }
