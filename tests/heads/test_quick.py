"""The quick forms of a head compute what its readable form does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from aqa_pipeline.config import FitConfig, HeadConfig, Recipe
from aqa_pipeline.heads.head import Head
from aqa_pipeline.heads.leaf_paths import LeafPaths
from aqa_pipeline.heads.outputs import LeafLabels, fit_output_layer
from aqa_pipeline.heads.quick import quick_form, readable_form
from aqa_pipeline.training.train import train_heads
from tests.support.planted import planted_clips

CLIPS = planted_clips(12, snippets=2, dim=6)
HEADS = [
    HeadConfig(num_groups=8, hidden=6, reduced_dim=4),
    HeadConfig(num_groups=8, hidden=6, aggregation="mean", recipe="official"),
    HeadConfig(num_groups=4, hidden=6, aggregation="attention", recipe="paper"),
    HeadConfig(num_groups=4, hidden=6, mode="direct", aggregation="lstm"),
    HeadConfig(kind="mlp", hidden=6),
    HeadConfig(kind="usdl", hidden=6, mode="direct", score_bins=5),
]


def a_head(config: HeadConfig) -> Head:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    label = CLIPS.label
    targets = label if config.mode == "direct" else (label[:, None] - label).ravel()
    return Head(
        config,
        num_snippets=2,
        feature_dim=6,
        output=fit_output_layer(config, [targets] * 2, score_range=30.0, generators=generators),
        epsilon=30.0,
        generators=generators,
    ).double()


def root_and_target(head: Head) -> tuple[Tensor, Tensor]:
    """Of 6 pairs in both orders, or of 12 clips."""
    features = head.standardise(torch.from_numpy(CLIPS.features).double())
    label = torch.from_numpy(CLIPS.label).expand(2, -1)
    if not head.is_contrastive:
        return head.roots_of_clips(features), label
    other = label.roll(6, 1)
    return head.roots_of_pairs(features, other), label - other


def everything(head: Head) -> dict[str, Any]:
    """Losses of a step, their gradients and the prediction."""
    head.zero_grad()
    root, target = root_and_target(head)
    (labels,) = head.output.labels(target.unsqueeze(0))
    losses = head.output.losses(root, labels)
    # Weights that differ, so that no model's gradient can pass for another's.
    (losses * torch.tensor([1.0, -2.0])).sum().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        value = head.output.value(root)
    gradients = {name: p.grad for name, p in head.named_parameters()}
    return {"root": root.detach(), "losses": losses.detach(), "value": value.target, **gradients}


@pytest.mark.parametrize("config", HEADS, ids=lambda h: f"{h.name} {h.recipe} {h.aggregation}")
def test_both_forms_of_a_head_learn_and_say_the_same(config: HeadConfig) -> None:
    head = a_head(config)
    quick = everything(head)
    with readable_form():
        readable = everything(head)
    torch.testing.assert_close(quick, readable, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("recipe", ["default", "official", "paper"])
def test_a_head_trained_in_either_form_is_the_same(recipe: Recipe) -> None:
    def trained() -> dict[str, Tensor]:
        outcome = train_heads(
            planted_clips(24),
            head_config=HeadConfig(num_groups=4, hidden=8, reduced_dim=4, recipe=recipe),
            config=FitConfig(epochs=3, batch_size=8),
            score_range=None,
            epsilon=30.0,
            device=torch.device("cpu"),
        )
        return dict(outcome.head.state_dict())

    quick = trained()
    with readable_form():
        readable = trained()
    torch.testing.assert_close(quick, readable, rtol=1e-4, atol=1e-5)


def test_the_switch_chooses_the_form() -> None:
    head = a_head(HEADS[0])
    target = torch.zeros(1, 2, 3, dtype=torch.float64)
    assert isinstance(head.output.labels(target)[0], LeafPaths)
    with readable_form():
        assert isinstance(head.output.labels(target)[0], LeafLabels)
    assert isinstance(head.output.labels(target)[0], LeafPaths)


def test_a_quick_form_of_no_use_leaves_it_to_the_readable_one() -> None:
    @quick_form(lambda x: -x if x > 0 else NotImplemented)
    def readable(x: int) -> int:
        return x

    assert (readable(2), readable(-2)) == (-2, -2)
    with readable_form():
        assert readable(2) == 2
