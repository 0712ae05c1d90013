"""Similarity of clips: outliers among new ones, and the exemplars most like one.

Conventions
-----------
distance
    Root mean square difference of the features of two clips, each feature in standard deviations
    over the training clips: about 1.4 for two clips that have nothing in common, whatever the
    number of features. Snippets are compared with those at the same offset, or their mean alone.
outlier
    A head gives a number for anything: a cat gets a score too. A clip further from every training
    clip than all but one in a hundred of these are from each other is worth a warning.
same clip
    In float32 on a CPU the features of a clip come out the same each time, and its distance to
    itself is nothing. A GPU takes other algorithms for other numbers of snippets, and half
    precision rounds: there two are one clip where they are much nearer than different ones are.
shown exemplars
    The one most like the clip, and the one most like it on the other side of its score: of a
    clip beside a better one and a worse one more can be seen than of a number.

A run folder holds the exemplars' features and scores, not their pictures: these come from
the videos of the project's manifest, where they are still there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.datasets.manifest import read_manifest
from aqa_pipeline.errors import AqaError
from aqa_pipeline.media.clip import ClipRequest
from aqa_pipeline.project import Project
from aqa_pipeline.runs.folder import Run
from aqa_pipeline.scoring.backbone import has_exact_features

_log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
Frames = npt.NDArray[np.uint8]

#: Gives the frames of a clip as they are shown.
ReadFrames = Callable[[ClipRequest], Frames]

#: Clips nearer to each other than this are the same clip.
SAME = 1e-3
#: The same where features are rounded: in distances of the two most similar different clips.
#: bfloat16 against float32 of one clip is 0.08 to 0.13, those of the demo are 0.68 apart.
_SAME_SHARE = 0.25
_PERCENTILE = 99.0
#: Training clips beyond this many are thinned out: the distances among them are N x N.
_MOST_CLIPS = 4000


class StandardizedClips:
    """Clips whose distances to others are asked for.

    Parameters
    ----------
    features : ndarray, shape=(N, S, D)
    """

    def __init__(self, features: npt.ArrayLike) -> None:
        array = np.asarray(features, dtype=np.float64)
        rows = array.reshape(-1, array.shape[-1])
        self._mean, std = rows.mean(axis=0), rows.std(axis=0)
        # A constant feature carries nothing; it must not become 0 / 0.
        self._std = np.where(std > 1e-6, std, 1.0)
        self._rows = self._standardized(array)

    def _standardized(self, features: npt.ArrayLike) -> FloatArray:
        """Features of M clips, (M, S, D) -> (M, S * D)."""
        standardized: FloatArray = (np.asarray(features, np.float64) - self._mean) / self._std
        return standardized.reshape(len(standardized), -1)

    def distances(self, features: npt.ArrayLike) -> FloatArray:
        """Distances of M clips, shape=(M, S, D), to these, shape=(M, N)."""
        return self._to(self._standardized(features))

    def among(self) -> FloatArray:
        """Distances to each other, shape=(N, N); infinite from a clip to itself."""
        among = self._to(self._rows)
        np.fill_diagonal(among, np.inf)
        return among

    def _to(self, a: FloatArray) -> FloatArray:
        b = self._rows
        squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2 * a @ b.T
        distances: FloatArray = np.sqrt(np.maximum(squares, 0.0) / a.shape[1])
        return distances


def same_below(between: FloatArray, *, is_exact: bool) -> float:
    """The distance below which two clips are one, by those between clips that may differ.

    Parameters
    ----------
    between : ndarray of float64
    is_exact : bool
        Whether all features are float32 from a CPU
        (:func:`aqa_pipeline.scoring.backbone.has_exact_features`).
    """
    different = between[np.isfinite(between) & (between > SAME)]  # no clip listed twice
    if is_exact or not different.size:
        return SAME
    return max(SAME, _SAME_SHARE * float(different.min()))


class OutlierDetector:
    """Distances to the training clips, by mean snippets, against those among the training clips.

    Parameters
    ----------
    features : ndarray, shape=(N, S, D)
        Of the training clips.
    is_exact : bool
        As for :func:`same_below`.

    Attributes
    ----------
    limit : float
        99th percentile of the training clips' distances to their nearest neighbour; infinite
        with fewer than 2 clips.
    same : float
        A clip nearer to a training clip than this is that clip.
    """

    def __init__(self, features: npt.ArrayLike, *, is_exact: bool = True) -> None:
        means = _mean_snippet(features)
        self._step = max(1, -(-len(means) // _MOST_CLIPS))
        self._clips = StandardizedClips(means[:: self._step])
        among = self._clips.among()
        self.same = same_below(among, is_exact=is_exact)
        self.limit = float("inf")
        if len(among) > 1:
            self.limit = float(np.percentile(among.min(axis=1), _PERCENTILE))

    def nearest(self, features: npt.ArrayLike) -> tuple[float, int]:
        """Distance of one clip, shape=(S, D), to its nearest training clip, and which that is."""
        (distances,) = self._clips.distances(_mean_snippet(np.asarray(features)[None]))
        nearest = int(distances.argmin())
        return float(distances[nearest]), nearest * self._step


def _mean_snippet(features: npt.ArrayLike) -> FloatArray:
    """(N, S, D) -> (N, 1, D)."""
    mean: FloatArray = np.asarray(features, dtype=np.float64).mean(axis=1, keepdims=True)
    return mean


@dataclass(frozen=True, eq=False)
class ShownExemplar:
    """An exemplar to stand beside a clip.

    Attributes
    ----------
    row : int
        Position in the run's exemplars.
    clip_id, category : str
    score, difficulty : float
    distance : float
    is_nearest : bool
    frames : ndarray of uint8, shape=(window_frames, H, W, 3), or None
    without_frames : str
        Why there are none, or nothing.
    """

    row: int
    clip_id: str
    category: str
    score: float
    difficulty: float
    distance: float
    is_nearest: bool
    frames: Frames | None
    without_frames: str


def choose(
    pool: FeatureSet,
    distance: FloatArray,
    rows: npt.ArrayLike,
    score: float,
    *,
    is_exact: bool = True,
) -> list[int]:
    """The exemplars to show: the nearest of ``rows``, then the nearest on the other side.

    Parameters
    ----------
    pool : FeatureSet
    distance : ndarray of float64, shape=(N,)
        Of the clip to the pool's.
    rows : array_like of int, shape=(M,)
        Exemplars that may be shown; never the clip itself.
    score : float
        Of the clip, in points.
    is_exact : bool
        As for :func:`same_below`; of rounded features, an exemplar is the clip itself if it is
        much nearer to it than to any other exemplar.

    Returns
    -------
    list of int
        None, one or two positions in the pool.
    """
    others = [i for i in np.asarray(rows, dtype=np.int64).tolist() if distance[i] > SAME]
    by_distance = sorted(others, key=lambda i: distance[i])
    if not is_exact:
        clips = StandardizedClips(pool.features)
        while by_distance:
            nearest = by_distance[0]
            between = clips.distances(pool.features[nearest : nearest + 1])
            if distance[nearest] >= same_below(between, is_exact=False):
                break
            del by_distance[0]
    if not by_distance:
        return []
    nearest = by_distance[0]
    is_above = pool.score[nearest] > score
    other_side = [i for i in by_distance if (pool.score[i] > score) != is_above]
    return [nearest, *other_side[:1]]


def shown_exemplars(
    run: Run,
    distance: FloatArray,
    rows: npt.ArrayLike,
    *,
    score: float,
    project: Project,
    read: ReadFrames,
) -> list[ShownExemplar]:
    """The exemplars to show, with their pictures where these can be reached.

    Parameters
    ----------
    run : Run
    distance, rows, score
        As for :func:`choose`, with the run's exemplars as the pool.
    project : Project
        Its manifest says where the run's clips are.
    read : callable
    """
    pool, reason = run.exemplars, ""
    requests: dict[str, ClipRequest] = {}
    try:
        requests = _requests(run, project)
    except AqaError as error:
        _log.info("no pictures of exemplars: %s", error)
        reason = f"the manifest of {run.config.dataset!r} cannot be read"
    shown: list[ShownExemplar] = []
    for row in choose(pool, distance, rows, score, is_exact=has_exact_features(run)):
        frames, why = None, reason
        clip_id = pool.clip_id[row]
        if clip_id in requests:
            try:
                frames = read(requests[clip_id])
            except AqaError as error:
                _log.info("no pictures of %s: %s", clip_id, error)
                why = "its video cannot be read"
        elif not reason:
            why = "the manifest no longer has it"
        shown.append(
            ShownExemplar(
                row=row,
                clip_id=clip_id,
                category=pool.category[row],
                score=float(pool.score[row]),
                difficulty=float(pool.difficulty[row]),
                distance=float(distance[row]),
                is_nearest=not shown,
                frames=frames,
                without_frames=why,
            )
        )
    return shown


def _requests(run: Run, project: Project) -> dict[str, ClipRequest]:
    manifest = read_manifest(project.manifest_path(run.config.dataset))
    # The protocol the head was fitted with, whatever the file says by now.
    return {
        clip.clip_id: ClipRequest(clip.video, run.protocol, clip.start_frame, clip.end_frame)
        for clip in manifest.clip_list()
    }
