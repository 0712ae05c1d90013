"""Which exemplars are most like a clip, and their pictures.

Conventions
-----------
distance
    Root mean square difference of the snippet features of two clips, each feature in standard
    deviations over the training clips: about 1.4 for two clips that have nothing in common.
    Snippets are compared with those at the same place.
shown exemplars
    The one most like the clip, and the one most like it on the other side of its score: of a
    clip beside a better one and a worse one more can be seen than of a number.

A run folder holds the exemplars' features and scores, not their pictures: these come from
the videos of the project's manifest, where they are still there.

Whether a clip looks like the clips a head was trained on.

Conventions
-----------
vector
    Mean of a clip's snippet features, each dimension in standard deviations of the training
    clips.
distance
    Root mean square difference of two vectors to the nearest training clip, so about 1.4 for two
    unrelated clips, whatever the dimension.

A head gives a number for anything: a cat gets a score too. A clip further from every training
clip than all but one in a hundred of these are from each other is worth a warning.

In float32 on a CPU the features of a training clip come out the same each time, and its distance
to itself is nothing. A GPU takes other algorithms for other numbers of snippets, and half
precision rounds: then a clip is a training clip where it is much nearer to it than two different
training clips are to each other.
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


#: Distances below this mean that the exemplar is the query clip itself; it is skipped.
_SAME = 1e-3


#: Gives the frames of a clip as they are shown.
ReadFrames = Callable[[ClipRequest], Frames]


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
        See above.
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


def distances(pool: FeatureSet, features: npt.NDArray[np.float32]) -> FloatArray:
    """Distance of a clip to every clip of the pool, shape=(N,); features (S, D)."""
    std = pool.features.std(axis=(0, 1), dtype=np.float64)
    # A constant feature carries nothing; it must not become 0 / 0.
    scale = np.where(std > 1e-6, std, 1.0).astype(np.float32)
    difference = (pool.features - features) / scale
    mean_square = np.einsum("nsd,nsd->n", difference, difference) / features.size
    root: FloatArray = np.sqrt(mean_square.astype(np.float64))
    return root


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
    rows : array_like of int, shape=(M,)
        Exemplars that may be shown; never the clip itself.
    score : float
        Of the clip, in points.
    is_exact : bool
        Whether all features are float32 from a CPU
        (:func:`aqa_pipeline.scoring.backbone.has_exact_features`). Otherwise an exemplar is the
        clip itself if it is much nearer to it than to any other exemplar.

    Returns
    -------
    list of int
        None, one or two positions in the pool.
    """
    others = [i for i in np.asarray(rows, dtype=np.int64).tolist() if distance[i] > _SAME]
    by_distance = sorted(others, key=lambda i: distance[i])
    while not is_exact and by_distance and _is_the_clip(pool, distance, by_distance[0]):
        del by_distance[0]
    if not by_distance:
        return []
    nearest = by_distance[0]
    is_above = pool.score[nearest] > score
    other_side = [i for i in by_distance if (pool.score[i] > score) != is_above]
    return [nearest, *other_side[:1]]


def _is_the_clip(pool: FeatureSet, distance: FloatArray, row: int) -> bool:
    apart = distances(pool, pool.features[row])
    apart = apart[apart > _SAME]  # not from itself, nor from a copy of it
    return bool(apart.size and distance[row] < SAME_SHARE * apart.min())


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
    distance : ndarray of float64, shape=(N,)
        Of :func:`distances` to the run's exemplars.
    rows, score
        As for :func:`choose`.
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


_PERCENTILE = 99.0


#: Training clips beyond this many are thinned out: the distances among them are N x N.
_MOST_CLIPS = 4000


#: Nearer to a training clip than this is being it.
_KNOWN_AGAIN = 1e-4


#: The same where features are rounded: in distances of the two most similar training clips.
#: bfloat16 against float32 of one clip is 0.08 to 0.13, those of the demo are 0.68 apart.
SAME_SHARE = 0.25


class OutlierDetector:
    """Distances to the training clips, against those among the training clips.

    Parameters
    ----------
    features : ndarray, shape=(N, S, D)
        Of the training clips.
    is_exact : bool
        Whether they, and those of the clips to come, are float32 from a CPU.

    Attributes
    ----------
    limit : float
        99th percentile of the training clips' distances to their nearest neighbour; infinite
        with fewer than 2 clips.
    same : float
        A clip nearer to a training clip than this is that clip.
    """

    def __init__(self, features: npt.ArrayLike, *, is_exact: bool = True) -> None:
        vectors = np.asarray(features, dtype=np.float64).mean(axis=1)  # (N, D)
        self._step = max(1, -(-len(vectors) // _MOST_CLIPS))
        vectors = vectors[:: self._step]
        self._mean = vectors.mean(axis=0)
        spread = vectors.std(axis=0)
        # A constant feature carries nothing; it must not become 0 / 0.
        self._spread = np.where(spread > 1e-6, spread, 1.0)
        self._vectors = (vectors - self._mean) / self._spread
        self.limit, self.same = float("inf"), _KNOWN_AGAIN
        if len(vectors) > 1:
            among = _distances(self._vectors, self._vectors)
            np.fill_diagonal(among, np.inf)
            self.limit = float(np.percentile(among.min(axis=1), _PERCENTILE))
            different = among[np.isfinite(among) & (among > _KNOWN_AGAIN)]  # no clip listed twice
            if not is_exact and different.size:
                self.same = max(_KNOWN_AGAIN, SAME_SHARE * float(different.min()))

    def nearest(self, features: npt.ArrayLike) -> tuple[float, int]:
        """Distance of one clip, shape=(S, D), to its nearest training clip, and which that is."""
        vector = (np.asarray(features, dtype=np.float64).mean(axis=0) - self._mean) / self._spread
        distances = _distances(vector[None], self._vectors)[0]
        place = int(distances.argmin())
        return float(distances[place]), place * self._step


def _distances(a: FloatArray, b: FloatArray) -> FloatArray:
    """Root mean square differences of all rows, (n, D) and (m, D) -> (n, m)."""
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2 * a @ b.T
    distances: FloatArray = np.sqrt(np.maximum(squares, 0.0) / a.shape[1])
    return distances
