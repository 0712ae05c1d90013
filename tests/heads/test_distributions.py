"""Score distribution learning: the output layers of usdl and musdl."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.judges import label_of_marks
from aqa_pipeline.core.metrics import spearman
from aqa_pipeline.errors import DataError
from aqa_pipeline.heads.head import Head
from aqa_pipeline.heads.outputs import DistributionOutput, fit_output_layer, output_from_settings
from aqa_pipeline.training.train import TrainedHeads, train_heads
from tests.support.planted import planted_clips

pytestmark = pytest.mark.usefixtures("one_thread")

USDL = HeadConfig(kind="usdl", mode="direct", hidden=4, sigma=0.25, score_bins=3)
MUSDL = dataclasses.replace(USDL, kind="musdl")


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def judged_clips(count: int = 80, judges: int = 7) -> FeatureSet:
    """Marks planted in the features; the label is the sum of the middle three."""
    clips = planted_clips(count)
    own = (clips.label - 20) / 3 + 6
    noise = np.random.default_rng(1).normal(size=(count, judges))
    marks = np.clip(np.round(2 * (own[:, None] + 0.3 * noise)) / 2, 0, 10)
    label = label_of_marks(marks, rule="middle three")
    return dataclasses.replace(clips, judges=marks, score=label * clips.scale)


def trained(clips: FeatureSet, kind: str, seed: int = 0, num_seeds: int = 1) -> TrainedHeads[Head]:
    return train_heads(
        clips,
        head_config=HeadConfig(kind=kind, mode="direct", hidden=32, reduced_dim=4),  # type: ignore[arg-type]
        config=FitConfig(
            epochs=25, batch_size=16, learning_rate=5e-3, seed=seed, num_seeds=num_seeds
        ),
        score_range=None,
        epsilon=None,
        device=torch.device("cpu"),
    )


def test_the_divergence_by_hand() -> None:
    # Bins 0, 2, 4; sigma a quarter of the range, 1 point. A label of 2 wants
    # exp(-2), 1, exp(-2), normalised; a network of zeros says a third each.
    layer = DistributionOutput(USDL, [[0.0, 2.0, 4.0]], num_judges=1, rule="all",
                              generators=generators(0))  # fmt: skip
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    edge = math.exp(-2) / (1 + 2 * math.exp(-2))
    middle = 1 - 2 * edge
    divergence = 2 * edge * math.log(3 * edge) + middle * math.log(3 * middle)
    (labels,) = layer.labels(torch.tensor([[[2.0]]], dtype=torch.float64))
    losses = layer.losses(torch.zeros(1, 1, 4), labels)
    assert losses[0].item() == pytest.approx(divergence, rel=1e-5)
    assert losses[1].item() == 0
    assert layer.value(torch.zeros(1, 1, 4)).target.item() == pytest.approx(2.0)


def test_the_divergence_is_a_mean_over_judges_and_clips() -> None:
    layer = DistributionOutput(MUSDL, [[0.0, 0.5, 1.0]] * 2, num_judges=2, rule="all",
                              generators=generators(0, 1))  # fmt: skip
    root = torch.rand(2, 3, 4, generator=generators(5)[0])
    marks = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64).expand(2, 3, 2)
    log_q = layer(root)
    expected = torch.zeros(2)
    for k in range(2):
        for b in range(3):
            for j in range(2):
                p = (-0.5 * ((layer.bins[k] - marks[k, b, j]) / 0.25) ** 2).softmax(0)
                expected[k] += (p * (p.log() - log_q[k, j, :, b])).sum().float() / 6
    for labels in layer.labels(torch.stack([marks, marks])):  # of two steps
        torch.testing.assert_close(layer.losses(root, labels)[0], expected)


def test_a_sure_network_predicts_what_the_judges_gave_by_their_rule() -> None:
    layer = DistributionOutput(MUSDL, [np.arange(21) / 2], num_judges=7, rule="middle three",
                              generators=generators(0))  # fmt: skip
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    marks = [7.0, 6.5, 8.0, 7.5, 7.0, 9.0, 5.0]
    with torch.no_grad():
        for judge, mark in enumerate(marks):
            layer.out_bias[0, judge * 21 + int(2 * mark)] = 60.0
    assert layer.value(torch.zeros(1, 2, 4)).target.tolist() == [[pytest.approx(21.5)] * 2]


@pytest.mark.parametrize("kind", ["usdl", "musdl"])
def test_a_planted_signal_is_learned_and_a_stack_equals_its_models_alone(kind: str) -> None:
    clips = judged_clips()
    stack = trained(clips, kind, num_seeds=2)
    assert min(stack.selection_rho) > 0.8
    alone = trained(clips, kind, seed=1)
    assert stack.best_epoch[1] == alone.best_epoch[0]
    for name, value in alone.head.state_dict().items():
        torch.testing.assert_close(stack.head.state_dict()[name][1], value[0], rtol=1e-3, atol=1e-4)
    features = torch.from_numpy(clips.features)
    with torch.no_grad():
        label = stack.head.direct_value(features).target[0].numpy()
    assert spearman(clips.label, label) > 0.9
    assert np.abs(label - clips.label).mean() < 0.5 * clips.label.std(), "in label points"


@pytest.mark.parametrize("config", [USDL, MUSDL])
def test_an_output_layer_is_built_again_from_its_settings(config: HeadConfig) -> None:
    clips = judged_clips(20)
    first = fit_output_layer(
        config, [clips.label] * 2, score_range=30.0, train=clips, generators=generators(0, 1)
    )
    second = output_from_settings(config, first.settings(), generators(5, 6))
    second.load_state_dict(first.state_dict())
    root = torch.rand(2, 3, 4)
    assert torch.equal(first.value(root).target, second.value(root).target)


def test_musdl_says_what_it_lacks() -> None:
    clips = judged_clips(20)
    with pytest.raises(DataError, match="the columns judge_1, judge_2"):
        trained(dataclasses.replace(clips, judges=None), "musdl")
    with pytest.raises(DataError, match="the judges' marks do not make the labels"):
        trained(dataclasses.replace(clips, score=clips.score + 7), "musdl")
