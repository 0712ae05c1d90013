"""Whether a clip looks like the clips a head was trained on.

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

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_PERCENTILE = 99.0
#: Training clips beyond this many are thinned out: the distances among them are N x N.
_MOST_CLIPS = 4000
#: Nearer to a training clip than this is being it.
_KNOWN_AGAIN = 1e-4
#: The same where features are rounded: in distances of the two most similar training clips.
#: bfloat16 against float32 of one clip is 0.08 to 0.13, those of the demo are 0.68 apart.
SAME_SHARE = 0.25


class Familiarity:
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
