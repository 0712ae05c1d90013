"""Grad-CAM of the predicted score on the backbone's maps (Fig. 9).

Conventions
-----------
S, D
    Snippets of a clip, channels of the last map.
cam : ndarray of float32, shape=(S, T', H', W')
    ``sum_c weight_c * map_c`` for each snippet, in points: above 0 what raises the score.
    ``weight_c`` is the mean, over the positions of the map, of the derivative of the score.
score
    For a tree, the expected one: the mean over its leaves by their probability. What Eq. 7
    answers, the offset in the likeliest leaf, changes with the choice of the leaf in steps,
    and has no derivative there: it would show only what moves the offset inside the leaf.

The published figure explains a class; here is no class, so that the derivative is that of
the score itself. A snippet's feature is the mean of its last map over all positions, so
every position of a channel has the same derivative, the feature's over their number.
Grad-CAM on the last map therefore needs no backward pass through the network:
:func:`last_map_cam` is exact, at no cost on top of the forward pass that scored the clip.
:func:`layer_cam` takes any layer, and uses captum.

Source: Selvaraju et al., "Grad-CAM", ICCV 2017 (the paper's reference 25); Fig. 9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.backbone.encoder import Encoder, FloatArray, Frames
from aqa_pipeline.backbone.i3d import I3D
from aqa_pipeline.backbone.precision import FLOAT32, computing_in
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.errors import SetupError, UsageError
from aqa_pipeline.heads.head import Head
from aqa_pipeline.heads.outputs import TreeOutput
from aqa_pipeline.runs.folder import Run

#: Layers worth looking at: the last map, and the last one of four times the resolution.
LAST_LAYER = "mixed_5c"
LAYERS = (LAST_LAYER, "mixed_4f")


def expected_score(
    run: Run, clip: FeatureSet, exemplars: npt.ArrayLike, features: Tensor
) -> Tensor:
    """The run's score of one clip as a function with a derivative.

    Parameters
    ----------
    run : Run
    clip : FeatureSet
        Of one clip; its label scale counts, not its features.
    exemplars : array_like of int, shape=(M,)
        Positions in the run's exemplars that vote; none for a direct head.
    features : Tensor of float32, shape=(S, D)

    Returns
    -------
    Tensor of float64, shape=()
        In points. Equal to the predicted score for a head without a tree.
    """
    head = run.head
    rows = np.asarray(exemplars, dtype=np.int64)
    if isinstance(head, Head) and head.is_contrastive:
        if not len(rows):
            raise UsageError("a contrastive head has no score without an exemplar")
        label = torch.from_numpy(run.exemplars.label[rows]).to(head.device)
        label = label.expand(head.num_models, -1)  # (K, M)
        with torch.no_grad():
            pool = torch.from_numpy(run.exemplars.features[rows]).to(head.device)
            exemplar = head.halves(pool).exemplar  # (K, M, H)
        query = head.halves(features.unsqueeze(0)).query.expand(-1, len(rows), -1)
        value = _expected(head, head.root(query, exemplar, label)) + label
    elif isinstance(head, Head):
        value = _expected(head, head.direct_root(features.unsqueeze(0)))
    else:
        value = head.direct_value(features.unsqueeze(0)).target
    mean: Tensor = value.double().mean()  # of the heads and the votes
    score: Tensor = mean * float(clip.scale[0]) + float(clip.offset[0])
    return score


def _expected(head: Head, root: Tensor) -> Tensor:
    """Expected target of root features, (K, B, H) -> (K, B), in label points."""
    layer = head.output
    if not isinstance(layer, TreeOutput):
        return layer.value(root).target
    output = layer.tree(root)
    left = layer.groups.edges[:, :-1, None]  # (K, R, 1)
    width = layer.groups.edges.diff(dim=1).unsqueeze(2)
    probability = output.log_prob.double().exp() * (width > 0)  # nothing is in an empty group
    leaves = left + output.offset.double() * width  # (K, R, B)
    expected: Tensor = (probability * leaves).sum(dim=1) / probability.sum(dim=1)
    return expected


def score_gradient(run: Run, clip: FeatureSet, exemplars: npt.ArrayLike) -> FloatArray:
    """Derivative of the expected score by each feature, shape=(S, D), points a unit."""
    features = torch.from_numpy(clip.features[0]).to(run.head.device).requires_grad_()
    (gradient,) = torch.autograd.grad(expected_score(run, clip, exemplars, features), features)
    result: FloatArray = gradient.cpu().numpy()
    return result


def last_map_cam(maps: npt.NDArray[np.float32], gradient: FloatArray) -> FloatArray:
    """Grad-CAM on the last map.

    Parameters
    ----------
    maps : ndarray of float32, shape=(S, D, T', H', W')
        What :meth:`aqa_pipeline.backbone.fast.FastI3D.feature_map` gave for the snippets.
    gradient : ndarray of float32, shape=(S, D)
        Of :func:`score_gradient`.

    Returns
    -------
    ndarray of float32, shape=(S, T', H', W')
        In points; over all positions it sums to ``gradient`` times the features.
    """
    positions = float(np.prod(maps.shape[2:]))
    cam: FloatArray = np.einsum("scthw,sc->sthw", maps, gradient / positions, optimize=True)
    return cam


def layer_cam(
    network: I3D,
    snippets: Callable[[int], Tensor],
    run: Run,
    clip: FeatureSet,
    exemplars: npt.ArrayLike,
    *,
    layer: str,
) -> FloatArray:
    """Grad-CAM on any layer of the readable network, by captum.

    One snippet after the other, the others' features being constants: the memory is that
    of one snippet.

    Parameters
    ----------
    network : I3D
    snippets : callable
        Gives the network's input for snippet s, shape=(1, 3, T, H, W).
    run, clip, exemplars
        As for :func:`score_gradient`.
    layer : str
        Such as ``mixed_5c`` or ``mixed_4f``.

    Raises
    ------
    UsageError
        If the network has no such layer.
    SetupError
        If captum is not installed.
    """
    module = getattr(network, layer, None)
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"I3D has no layer {layer!r}; worth looking at are {', '.join(LAYERS)}")
    layer_grad_cam = require_captum()
    network.requires_grad_(False)
    features = torch.from_numpy(clip.features[0]).to(run.head.device)
    cams = []
    for number in range(len(features)):
        chosen = torch.arange(len(features), device=features.device).unsqueeze(1) == number

        def score(x: Tensor, chosen: Tensor = chosen) -> Tensor:
            own = network.features(x).to(features.device)  # (1, D)
            whole = torch.where(chosen, own, features)
            return expected_score(run, clip, exemplars, whole).unsqueeze(0)  # a batch of one

        cam = layer_grad_cam(score, module).attribute(snippets(number))  # (1, 1, T', H', W')
        cams.append(cam[0, 0].detach().float().cpu().numpy())
    return np.stack(cams)


def require_captum() -> Any:
    """captum's LayerGradCam.

    Raises
    ------
    SetupError
        If captum is not installed.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        raise SetupError(
            "Grad-CAM on a layer before the last needs captum; "
            "type `pip install 'aqa-pipeline[captum]'`"
        ) from None
    return LayerGradCam


@dataclass(frozen=True, eq=False)
class LayerCam:
    """Grad-CAM on a chosen layer of the readable form of I3D.

    Attributes
    ----------
    network : I3D
    encoder : Encoder
        Makes the input.
    layer : str
    """

    network: I3D
    encoder: Encoder
    layer: str

    def __call__(
        self,
        frames: Frames,
        runs: Sequence[Run],
        clips: Sequence[FeatureSet],
        exemplars: Sequence[npt.NDArray[np.int64]],
    ) -> FloatArray:
        """Mean over the runs, shape=(S, T', H', W'); one clip and list of exemplars per run."""
        snippets = self.encoder.snippets(frames)
        with computing_in(FLOAT32):
            cams = [
                layer_cam(
                    self.network,
                    lambda number: snippets[number : number + 1],
                    run,
                    clip,
                    rows,
                    layer=self.layer,
                )
                for run, clip, rows in zip(runs, clips, exemplars, strict=True)
            ]
        mean: FloatArray = np.mean(cams, axis=0, dtype=np.float32)
        return mean
