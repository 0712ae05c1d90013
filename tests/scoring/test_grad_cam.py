"""Grad-CAM of the score: against finite differences, and against captum on the real network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from aqa_pipeline.backbone.encoder import Encoder, features_of
from aqa_pipeline.backbone.fast import fast_form, snippets_at_once
from aqa_pipeline.backbone.i3d import I3D, normalise
from aqa_pipeline.config import PIXEL_PRESETS, Protocol
from aqa_pipeline.errors import UsageError
from aqa_pipeline.heads.head import Head
from aqa_pipeline.heads.outputs import TreeOutput
from aqa_pipeline.scoring.grad_cam import expected_score, last_map_cam, layer_cam, score_gradient
from tests.support.drawn_run import drawn_run, one_clip
from tests.support.planted import planted_clips
from tests.support.random_i3d import random_i3d

ROWS = [0, 3, 5]


def test_expected_score_of_a_sure_tree_is_the_predicted_one() -> None:
    from aqa_pipeline.scoring.shapley import snippet_contributions

    run, clip = drawn_run(), one_clip()
    assert isinstance(run.head, Head)
    assert isinstance(run.head.output, TreeOutput)
    # Decisions so far apart that one leaf has all the probability.
    for layer in run.head.output.tree.weights:
        layer.data[:, :, -2:] *= 1e4
    value = expected_score(run, clip, ROWS, torch.from_numpy(clip.features[0]))
    assert value.item() == pytest.approx(snippet_contributions(run, clip, ROWS).score, abs=1e-3)


HEADS = [
    {},
    {"kind": "mlp"},
    {"mode": "direct"},
    {"kind": "mlp", "mode": "direct"},
    {"recipe": "paper"},
]


@pytest.mark.parametrize("config", HEADS, ids=str)
def test_gradient_is_what_finite_differences_say(config: dict[str, Any]) -> None:
    run, clip = drawn_run(**config), one_clip()
    run.head.double()
    rows = [] if config.get("mode") == "direct" else ROWS
    pool = run.exemplars
    object.__setattr__(pool, "features", pool.features.astype(np.float64))
    object.__setattr__(clip, "features", clip.features.astype(np.float64))
    gradient = score_gradient(run, clip, rows)
    assert gradient.shape == (3, 6)
    step = 1e-6
    for place in [(0, 0), (1, 4), (2, 5)]:
        scores = []
        for sign in (1, -1):
            features = clip.features[0].copy()
            features[place] += sign * step
            scores.append(expected_score(run, clip, rows, torch.from_numpy(features)).item())
        assert gradient[place] == pytest.approx((scores[0] - scores[1]) / (2 * step), abs=1e-5)
    assert np.abs(gradient).max() > 1e-3


def test_an_empty_group_does_not_pull_the_expected_score() -> None:
    run, clip = drawn_run(seeds=(0,)), one_clip()
    assert isinstance(run.head, Head)
    assert isinstance(run.head.output, TreeOutput)
    groups = run.head.output.groups
    features = torch.from_numpy(clip.features[0])
    groups.edges[0] = torch.tensor([-30.0, -30.0, -30.0, -30.0, 30.0])
    value = expected_score(run, clip, ROWS, features)
    places = []
    for row in ROWS:  # only the last leaf is left: its place alone speaks
        from aqa_pipeline.heads.tree_path import tree_path

        path = tree_path(
            run.head,
            features,
            exemplar=torch.from_numpy(run.exemplars.features[row]),
            exemplar_label=float(run.exemplars.label[row]),
        )
        assert path.leaf == 3
        places.append(path.value + run.exemplars.label[row])
    assert value.item() == pytest.approx(2.0 * np.mean(places), abs=1e-3)


@pytest.fixture(scope="module")
def network() -> I3D:
    return random_i3d()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Two snippets of 9 frames of 64 pixels, one clip."""
    return np.random.default_rng(0).integers(0, 256, (2, 9, 64, 64, 3), dtype=np.uint8)


def test_fig9_the_last_map_needs_no_backward_pass(network: I3D, frames: np.ndarray) -> None:
    """Equal to captum's LayerGradCam on the readable network."""
    pytest.importorskip("captum")
    x = normalise(torch.from_numpy(frames), PIXEL_PRESETS["kinetics"])
    with torch.no_grad():
        maps = network.feature_map(x)
    run = drawn_run(pool=planted_clips(20, snippets=2, dim=1024))
    clip = one_clip(snippets=2, dim=1024)
    object.__setattr__(clip, "features", features_of(maps)[None])
    ours = last_map_cam(maps.numpy(), score_gradient(run, clip, ROWS))
    theirs = layer_cam(network, lambda s: x[s : s + 1], run, clip, ROWS, layer="mixed_5c")
    assert ours.shape == (2, 2, 2, 2)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6 * np.abs(ours).max())
    # In points: over all positions, the gradient times the features.
    gradient = score_gradient(run, clip, ROWS)
    assert ours.sum() == pytest.approx((gradient * clip.features[0]).sum(), rel=1e-4)


def test_an_earlier_layer_has_a_finer_map(network: I3D, frames: np.ndarray) -> None:
    pytest.importorskip("captum")
    x = normalise(torch.from_numpy(frames), PIXEL_PRESETS["kinetics"])
    run = drawn_run(pool=planted_clips(20, snippets=2, dim=1024))
    clip = one_clip(snippets=2, dim=1024)
    finer = layer_cam(network, lambda s: x[s : s + 1], run, clip, ROWS, layer="mixed_4f")
    assert finer.shape == (2, 3, 4, 4)
    assert np.isfinite(finer).all()
    assert np.abs(finer).max() > 0
    with pytest.raises(UsageError, match="no layer 'mixed_9z'; worth looking at are mixed_5c"):
        layer_cam(network, lambda s: x[s : s + 1], run, clip, ROWS, layer="mixed_9z")


def test_features_from_maps_are_the_backbones_own_to_the_bit(network: I3D) -> None:
    fast = fast_form(network)
    protocol = Protocol(
        name="x", window_frames=12, snippet_frames=9, snippet_starts=(0, 3), pixels="demo"
    )
    clip = np.random.default_rng(1).integers(0, 256, (12, 112, 112, 3), dtype=np.uint8)
    encoder = Encoder.of(fast, protocol, torch.device("cpu"))
    x = encoder.snippets(clip)
    parts = torch.split(x, snippets_at_once(9, 112, 112))  # as extraction calls it
    expected = fast.features_of_parts(parts).numpy()
    np.testing.assert_array_equal(encoder(clip), expected)
