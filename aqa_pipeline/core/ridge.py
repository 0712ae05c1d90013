"""Ridge regression in closed form, its penalty chosen by exact leave-one-out errors.

Conventions
-----------
N, P
    Clips, features of a clip.
alpha
    Penalty. Features are standardised and divided by sqrt(P), so that the same alphas suit
    any number of them.
key
    Clips that agree in it share an intercept of their own beside the common one. It is
    penalised, too, so that a key of a single clip does no harm; how much is chosen as alpha is.
leave-one-out error
    ``e_i = r_i / (1 - h_i)`` with the residual r and the leverage h of the fit to all clips.
    Where alpha is small both numerator and denominator are differences of nearly equal
    numbers; they are computed as ``V (alpha / (w + alpha)) V'`` instead, w and V being
    eigenvalues and eigenvectors of the kernel, which loses nothing.

Source: Hoerl and Kennard, "Ridge regression", Technometrics 1970; Allen, "The relationship
between variable selection and data augmentation and a method for prediction", Technometrics
1974 (leave-one-out in closed form).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aqa_pipeline.errors import DataError

FloatArray = npt.NDArray[np.float64]

ALPHAS = tuple(np.geomspace(1e-4, 1e4, 33))
#: Variance of a key's own intercept, in units of that of all features together; 0: none.
KEY_WEIGHTS = (0.0, 0.01, 0.1, 1.0)
_SMALLEST_SPREAD = 1e-6  #: a feature that varies less is constant


@dataclass(frozen=True, eq=False)
class Ridge:
    """A fitted ridge regression.

    Attributes
    ----------
    coefficients : ndarray of float64, shape=(P,)
        Of the features as they are, in target units per feature unit.
    intercept : float
    key_intercepts : dict
        Key -> what is added for it; a key that is not there adds nothing.
    alpha, key_weight : float
        Chosen by the leave-one-out error.
    loo : ndarray of float64, shape=(N,)
        What is predicted for each training clip by the fit to all others.
    """

    coefficients: FloatArray
    intercept: float
    alpha: float
    key_weight: float
    loo: FloatArray
    key_intercepts: dict[Hashable, float] = field(default_factory=dict)

    def predict(
        self, features: npt.ArrayLike, keys: Sequence[Hashable] | None = None
    ) -> FloatArray:
        """Predictions for clips, shape=(n,).

        Parameters
        ----------
        features : array_like, shape=(n, P)
        keys : sequence of hashable, length n, optional
        """
        x = np.asarray(features, np.float64)
        own = [self.key_intercepts.get(key, 0.0) for key in keys or ()]
        predicted: FloatArray = x @ self.coefficients + self.intercept
        if own:
            predicted += own
        return predicted


def fit_ridge(
    features: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    keys: Sequence[Hashable] | None = None,
    alphas: Sequence[float] = ALPHAS,
) -> Ridge:
    """Fit a ridge regression, its constants chosen by the leave-one-out error.

    Parameters
    ----------
    features : array_like, shape=(N, P)
    targets : array_like, shape=(N,)
    weights : array_like, shape=(N,), optional
        Of the squared errors, in the fit and in the choice; default: all alike.
    keys : sequence of hashable, length N, optional
    alphas : sequence of float

    Returns
    -------
    Ridge

    Raises
    ------
    DataError
        If there are fewer than 3 clips, or something is not finite.
    """
    x, y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    if len(y) < 3:
        raise DataError(f"{len(y)} clips are too few for a ridge regression: at least 3 are needed")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and np.isfinite(w).all()):
        raise DataError("a ridge regression needs finite features, targets and weights")
    mean, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > _SMALLEST_SPREAD, spread, np.inf) * np.sqrt(x.shape[1])
    standard = (x - mean) / scale
    levels = list(dict.fromkeys(keys or ()))
    member = np.array([[key == level for level in levels] for key in keys or ()], np.float64)
    tried: list[tuple[float, float, float, _Solution]] = []
    for key_weight in KEY_WEIGHTS if len(levels) > 1 else KEY_WEIGHTS[:1]:
        columns = standard
        if key_weight:
            columns = np.hstack([standard, np.sqrt(key_weight) * (member - member.mean(axis=0))])
        solution = _Solution(columns, y, w)
        tried += [(solution.error(alpha), alpha, key_weight, solution) for alpha in alphas]
    _, alpha, chosen, solution = min(tried, key=lambda one: one[0])
    slope, intercept = solution.coefficients(alpha)
    own = np.sqrt(chosen) * slope[x.shape[1] :]
    slope = slope[: x.shape[1]] / scale
    return Ridge(
        coefficients=slope,
        intercept=float(intercept - slope @ mean - (own @ member.mean(axis=0) if chosen else 0.0)),
        alpha=float(alpha),
        key_weight=chosen,
        loo=solution.loo(alpha),
        key_intercepts=dict(zip(levels, own.tolist(), strict=True)) if chosen else {},
    )


class _Solution:
    """All ridge regressions of y on x with a free intercept, one for each alpha.

    With weights, rows are multiplied by their roots; what is left of the intercept's column
    ``z`` is projected out of x and y.
    """

    def __init__(self, x: FloatArray, y: FloatArray, weights: FloatArray) -> None:
        self._x, self._y, self._root = x, y, np.sqrt(weights)
        z = self._root / np.linalg.norm(self._root)
        rows = x * self._root[:, None]
        self._rows = rows - np.outer(z, z @ rows)
        target = y * self._root
        self._target = target - z * (z @ target)
        # Eigenvectors of the kernel through the smaller of the two Gram matrices.
        if len(y) <= x.shape[1]:
            values, vectors = np.linalg.eigh(self._rows @ self._rows.T)
            # The direction of the intercept has eigenvalue 0 and is no residual.
            apart = vectors - np.outer(z, z @ vectors)
            self._values, self._vectors = np.clip(values, 0, None), apart
            self._outside = np.zeros(len(y))
            self._outside_target = np.zeros(len(y))
        else:
            values, right = np.linalg.eigh(self._rows.T @ self._rows)
            kept = values > values.max(initial=0.0) * 1e-12
            self._values = values[kept]
            self._vectors = self._rows @ right[:, kept] / np.sqrt(self._values)
            inside = np.square(self._vectors).sum(axis=1)
            self._outside = np.clip(1 - np.square(z) - inside, 0, None)
            self._outside_target = self._target - self._vectors @ (self._vectors.T @ self._target)
        self._turned = self._vectors.T @ self._target

    def loo(self, alpha: float) -> FloatArray:
        """Leave-one-out predictions, shape=(N,)."""
        shrink = alpha / (self._values + alpha)
        residual = self._outside_target + self._vectors @ (shrink * self._turned)
        free = self._outside + np.square(self._vectors) @ shrink  # 1 - leverage
        error = residual / np.maximum(free, np.finfo(float).tiny)
        predicted: FloatArray = self._y - error / self._root
        return predicted

    def error(self, alpha: float) -> float:
        """Weighted mean of the squared leave-one-out errors."""
        return float(np.average(np.square(self.loo(alpha) - self._y), weights=self._root**2))

    def coefficients(self, alpha: float) -> tuple[FloatArray, float]:
        """Slope, shape=(P,), and intercept."""
        dual = self._vectors @ (self._turned / (self._values + alpha))
        slope: FloatArray = self._rows.T @ dual
        weights = np.square(self._root)
        return slope, float(np.average(self._y - self._x @ slope, weights=weights))
