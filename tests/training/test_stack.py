"""Stacks whose models differ, against their models trained alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from aqa_pipeline.config import FitConfig, HeadConfig, ModelSettings
from aqa_pipeline.device import free_bytes
from aqa_pipeline.training.memory import MOST_MODELS, bytes_a_model, largest_stack
from aqa_pipeline.training.stack import Stack
from tests.support.planted import planted_clips

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = HeadConfig(num_groups=4, hidden=16, reduced_dim=4)
CLIPS = planted_clips(60)
MEMBERS = [
    ModelSettings(1e-3, 0.0, 0.0),
    ModelSettings(1e-2, 0.1, 0.0),
    ModelSettings(3e-3, 0.0, 0.4),
]


def stack(members: list[ModelSettings], head: HeadConfig = SMALL, **given: Any) -> Stack:
    config = FitConfig(**{"batch_size": 8, "num_seeds": 2, "seed": 5, **given.pop("config", {})})
    return Stack(
        CLIPS, members, head_config=head, config=config, score_range=None, epsilon=30.0,
        device=torch.device("cpu"), **given,
    )  # fmt: skip


def run(own: Stack, epochs: int) -> list[tuple[np.ndarray, list[float]]]:
    return [own.run_epoch() for _ in range(epochs)]


@pytest.mark.parametrize("aggregation", ["mean", "ordered"])
@pytest.mark.parametrize("kind", ["gart", "mlp"])
@pytest.mark.parametrize("mode", ["contrastive", "direct"])
def test_a_stack_of_different_members_equals_each_of_them_alone(
    aggregation: Any, kind: Any, mode: Any
) -> None:
    head = dataclasses.replace(SMALL, aggregation=aggregation, kind=kind, mode=mode)
    together = run(stack(MEMBERS, head), 4)  # 24 steps
    for m, member in enumerate(MEMBERS):
        rows = slice(2 * m, 2 * m + 2)
        for (losses, rho), (own_losses, own_rho) in zip(
            together, run(stack([member], head), 4), strict=True
        ):
            np.testing.assert_allclose(losses[:, rows], own_losses, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(rho[rows], own_rho, atol=0.05)
    last = together[-1][0].sum(axis=0)
    assert len(set(last.round(4).tolist())) == 6, "settings and seeds are felt"


def test_dropout_is_felt_and_its_share_is_right() -> None:
    member = ModelSettings(0.0, 0.0, 0.25)
    loop = stack([ModelSettings(0.0, 0.0, 0.0), member])._loop
    keep = loop._draw_dropout()
    assert keep[:2].all()
    assert keep[2:].float().mean().item() == pytest.approx(0.75, abs=0.02)
    root = loop._dropped(torch.ones(4, 96, 16), keep.transpose(1, 2).flatten(1, 2))
    assert root[2:].mean().item() == pytest.approx(1.0, abs=0.03), "the mean stays"
    assert stack([ModelSettings(0.0, 0.0, 0.0)])._loop._draw_dropout().numel() == 0


def test_models_that_are_kept_go_on_as_if_the_others_had_never_been() -> None:
    whole, cut = stack(MEMBERS), stack(MEMBERS)
    run(whole, 2)
    run(cut, 2)
    cut.keep([0, 4, 5])
    assert cut.seeds == [5, 5, 6]
    for (losses, rho), (own_losses, own_rho) in zip(run(whole, 2), run(cut, 2), strict=True):
        np.testing.assert_allclose(losses[:, [0, 4, 5]], own_losses, rtol=1e-4)
        np.testing.assert_allclose([rho[i] for i in (0, 4, 5)], own_rho, atol=0.02)
    expected = [whole.selection.best_epoch[i] for i in (0, 4, 5)]
    assert cut.selection.best_epoch == expected
    whole.selection.restore()
    cut.selection.restore()
    for name, value in cut.head.state_dict().items():
        torch.testing.assert_close(whole.head.state_dict()[name][[0, 4, 5]], value)


def test_several_m_from_one_training_equal_a_training_each() -> None:
    counts: list[list[int | None]] = [[1, 3, None], [2]]
    together = stack(MEMBERS[:2], num_exemplars=counts, keep_states=False)
    run(together, 3)
    expected = []
    for member, own in zip(MEMBERS, counts, strict=False):
        alone = [stack([member], num_exemplars=[[m]]) for m in own]
        for one in alone:
            run(one, 3)
        expected += [one.selection.best_rho[s] for s in range(2) for one in alone]
    np.testing.assert_allclose(together.selection.best_rho, expected, atol=0.02)
    assert len(set(together.selection.best_rho[:3])) > 1, "M is felt"


def test_every_view_of_a_clip_is_seen_and_only_its_own() -> None:
    count = len(CLIPS)
    # Number 100 n + v stands for clip n in view v.
    numbers = 100 * np.arange(count)[:, None] + np.arange(3)
    views = np.broadcast_to(numbers[:, :, None, None], (count, 3, 3, 6)).astype(np.float32)
    loop = stack(MEMBERS[:1], views=views)._loop
    order, _ = loop._draw_epoch()
    query = loop._fit.gather(1, order)
    drawn = loop._draw_views()
    assert drawn.shape == (2, *query.shape)
    assert set(torch.unique(drawn).tolist()) == {0, 1, 2}
    seen = loop._seen(query, drawn[0])[:, :, 0, 0].long()
    assert torch.equal(seen, 100 * query + drawn[0])


def test_one_view_is_the_same_as_none() -> None:
    plain, viewed = stack(MEMBERS[:1]), stack(MEMBERS[:1], views=CLIPS.features[:, None])
    for (a, _), (b, _) in zip(run(plain, 2), run(viewed, 2), strict=True):
        np.testing.assert_array_equal(a, b)


def test_averaged_views_serve_the_mean_alike() -> None:
    head = dataclasses.replace(SMALL, aggregation="mean")
    both = np.stack([CLIPS.features, CLIPS.features[::-1]], axis=1)
    whole = stack(MEMBERS[:1], head, views=both)
    short = stack(MEMBERS[:1], head, views=both.mean(axis=2, keepdims=True))
    for (a, _), (b, _) in zip(run(whole, 2), run(short, 2), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_a_stack_is_as_large_as_memory_allows() -> None:
    model = bytes_a_model(CLIPS, HeadConfig(), FitConfig())
    # Root layer of 2 x 3 x 64 inputs, tree of 16 leaves: four copies of the weights at least.
    assert model > 4 * 4 * (2 * 3 * 64 * 256 + 15 * 514 * 257)
    assert largest_stack(model, free=10 * model) == 6
    assert largest_stack(model, free=10 * model, sharers=2) == 3
    assert largest_stack(model, free=model // 2) == 1
    assert largest_stack(model, free=10**6 * model) == MOST_MODELS
    assert 2**20 < free_bytes(torch.device("cpu")) < 2**45
    wide = bytes_a_model(CLIPS, dataclasses.replace(HeadConfig(), hidden=512), FitConfig())
    assert wide > 3 * model


def test_a_gpu_is_asked_for_whole_trees_and_the_copies_of_a_trial() -> None:
    gpu, head = torch.device("cuda"), HeadConfig(hidden=256)
    small = bytes_a_model(CLIPS, head, FitConfig(batch_size=1), device=gpu)
    weights = 4 * (2 * 3 * 64 * 256 + 15 * 514 * 257)
    assert small > 11 * weights
    pairs = 63  # more, in both orders, each through 15 nodes of 256 and more
    large = bytes_a_model(CLIPS, head, FitConfig(batch_size=64), device=gpu)
    assert large - small > 2 * pairs * 15 * 4 * 12 * 256
    assert small > 2 * bytes_a_model(CLIPS, head, FitConfig(batch_size=1))
