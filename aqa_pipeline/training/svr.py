"""Fitting support vector machines: the only module that imports scikit-learn.

Source: C3D-SVR and Pose+DCT (the paper's references 21 and 24), which do not say how their
constants were found; here the clips that choose the epoch of other heads choose them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.config import FitConfig, HeadConfig, SvrGrid
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.metrics import relative_l2, spearman
from aqa_pipeline.errors import SetupError
from aqa_pipeline.heads.svr import SvrHead, squared_distances
from aqa_pipeline.training.stack import checked_labels
from aqa_pipeline.training.train import TrainedHeads
from aqa_pipeline.training.validation import cross_fitted, hold_out

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Columns of history.csv, one row a model and grid point; ``epoch`` numbers the points.
GRID_COLUMNS = ("seed", "epoch", "cost", "epsilon", "gamma", "selection_rho")


@dataclass(frozen=True, eq=False)
class _Machine:
    """The machine of one grid point and how it does on the validation clips."""

    point: int
    support_rows: IntArray
    dual: FloatArray
    intercept: float
    gamma: float
    rho: float
    relative_l2: float
    scores: FloatArray


def train_svrs(
    train: FeatureSet,
    *,
    head_config: HeadConfig,
    config: FitConfig,
    device: torch.device,
    test: FeatureSet | None = None,
    grid: SvrGrid = SvrGrid(),  # noqa: B008 - frozen
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrainedHeads[SvrHead]:
    """Fit one machine a seed, its constants chosen from a grid.

    Seeds differ by their validation part alone. Parameters and errors are those of
    :func:`aqa_pipeline.training.train.train_heads`; an "epoch" is a point of the grid.

    Raises
    ------
    SetupError
        If scikit-learn is not installed.
    """
    svm = _scikit_learn()
    labels = checked_labels(train)
    split = hold_out(train, config, test)
    head = SvrHead(
        head_config,
        num_snippets=train.features.shape[1],
        feature_dim=train.features.shape[2],
        num_models=config.num_seeds,
    )
    features = torch.from_numpy(train.features)
    for k, rows in enumerate(split.fit):
        if head_config.standardise:
            std, head.mean[k] = torch.std_mean(
                head.raw_vectors(features[rows]), dim=0, correction=0
            )
            # A constant feature carries nothing; it must not become 0 / 0.
            head.std[k] = torch.where(std > 1e-6, std, torch.ones_like(std))
        head.centre[k] = float(labels[rows].mean())
        head.spread[k] = float(labels[rows].std()) or 1.0
    fitted = head.vectors(features)  # (K, N, E)
    points = list(itertools.product(grid.gamma, grid.cost, grid.epsilon))
    history: list[tuple[float, ...]] = []
    best: list[_Machine] = []
    validation_scores = []
    lowest_error = []
    for k, (rows, clips) in enumerate(zip(split.fit, split.validation, strict=True)):
        centre, spread = float(head.centre[k]), float(head.spread[k])
        wanted = (labels[rows] - centre) / spread
        own = fitted[k, rows].double()
        asked = head.vectors(torch.from_numpy(clips.features))[k].double()
        inner, outer = squared_distances(own, own), squared_distances(asked, own)
        # The scale at which exp(-gamma |x - y|^2) tells such vectors apart.
        scale = max(own.shape[1] * float(own.var(correction=0)), 1e-12)
        machines = []
        for point, (factor, cost, epsilon) in enumerate(points, start=1):
            gamma = factor / scale
            machine = svm.SVR(kernel="precomputed", C=cost, epsilon=epsilon)
            machine.fit(_kernel(inner, gamma), wanted)
            label = centre + spread * machine.predict(_kernel(outer, gamma))
            scores = clips.to_score(label)
            machines.append(
                _Machine(
                    point=point,
                    support_rows=rows[machine.support_],
                    dual=machine.dual_coef_[0],
                    intercept=float(machine.intercept_[0]),
                    gamma=gamma,
                    rho=spearman(clips.score, scores),
                    relative_l2=relative_l2(clips.score, scores),
                    scores=scores,
                )
            )
            history.append((config.seed + k, point, cost, epsilon, gamma, machines[-1].rho))
            progress(k * len(points) + point, config.num_seeds * len(points))
        validation_scores.append(np.stack([machine.scores for machine in machines]))
        best.append(max(machines, key=lambda machine: np.nan_to_num(machine.rho, nan=-2.0)))
        errors = [machine.relative_l2 for machine in machines]
        lowest_error.append(min(errors, key=lambda error: np.nan_to_num(error, nan=np.inf)))
    _install(head, best, fitted)
    return TrainedHeads(
        head=head.to(device),
        best_epoch=tuple(machine.point for machine in best),
        selection_rho=tuple(machine.rho for machine in best),
        best_relative_l2=tuple(lowest_error),
        validation_rows=split.held_out,
        held_out_scores=cross_fitted(
            np.stack(validation_scores, axis=1),
            train.score[split.held_out],
            seeds=[config.seed + k for k in range(config.num_seeds)],
        ),
        history=history,
        history_columns=GRID_COLUMNS,
    )


def _kernel(distances: Tensor, gamma: float) -> FloatArray:
    values: FloatArray = (-gamma * distances).exp().numpy()
    return values


def _install(head: SvrHead, machines: list[_Machine], vectors: Tensor) -> None:
    """Put the fitted machines into the head, filled up to the most support vectors."""
    width = max(len(machine.dual) for machine in machines)
    num_models, _, length = vectors.shape
    head.support = torch.zeros(num_models, width, length)
    head.dual = torch.zeros(num_models, width, dtype=torch.float64)
    for k, machine in enumerate(machines):
        count = len(machine.dual)
        head.support[k, :count] = vectors[k, machine.support_rows]
        head.dual[k, :count] = torch.from_numpy(machine.dual)
        head.intercept[k], head.gamma[k] = machine.intercept, machine.gamma


def _scikit_learn() -> ModuleType:
    try:
        from sklearn import svm
    except ImportError:
        raise SetupError(
            "svr and dct-svr are fitted by scikit-learn, which is not installed; type "
            "`pip install 'aqa-pipeline[svr]'`"
        ) from None
    module: ModuleType = svm
    return module
