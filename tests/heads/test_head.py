from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from aqa_pipeline.config import HeadConfig
from aqa_pipeline.heads.aggregations import MeanSnippets, OrderedSnippets
from aqa_pipeline.heads.head import Head
from aqa_pipeline.heads.outputs import fit_output_layer

S, D = 3, 4


def small_head(*seeds: int, **config: Any) -> Head:
    return head_of(
        HeadConfig(**{"num_groups": 4, "hidden": 6, "reduced_dim": 2, **config}), S, D, *seeds
    )


def head_of(config: HeadConfig, snippets: int, dim: int, *seeds: int) -> Head:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return Head(
        config,
        num_snippets=snippets,
        feature_dim=dim,
        output=fit_output_layer(
            config, [np.arange(40) / 4.0] * len(seeds), score_range=30.0, generators=generators
        ),
        epsilon=30.0,
        generators=generators,
    )


def some_features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, S, D, generator=torch.Generator().manual_seed(seed))


def test_the_published_head_has_2510382_parameters() -> None:
    head = head_of(HeadConfig(num_groups=16, hidden=256, aggregation="mean"), 10, 1024, 0)
    assert sum(p.numel() for p in head.parameters()) == 2_510_382


@pytest.mark.parametrize("aggregation", ["mean", "ordered"])
@torch.no_grad()
def test_eq4_the_halves_add_up_to_one_layer_on_the_concatenation(aggregation: str) -> None:
    head = small_head(1, 2, aggregation=aggregation)
    queries, exemplars = some_features(5, seed=1), some_features(5, seed=2)
    label = torch.linspace(10, 25, 10, dtype=torch.float64).view(2, 5)
    root = head.root(head.halves(queries).query, head.halves(exemplars).exemplar, label)
    assert root.shape == (2, 5, 6)
    query_vector, exemplar_vector = (
        head.aggregate(head.standardise(x)) for x in (queries, exemplars)
    )
    for k in range(2):
        joint = torch.cat(
            [exemplar_vector[k], query_vector[k], label[k, :, None].float() / 30], dim=1
        )
        weight = torch.cat(
            [head.exemplar_weight[k], head.query_weight[k], head.label_weight[k]], dim=1
        )
        torch.testing.assert_close(root[k], (joint @ weight.T + head.bias[k].T).relu())


@torch.no_grad()
@pytest.mark.parametrize(("mode", "fan_in"), [("contrastive", 2 * 64 + 1), ("direct", 64)])
def test_the_root_layer_is_drawn_like_one_linear_layer_on_the_concatenation(
    mode: Any, fan_in: int
) -> None:
    config = HeadConfig(num_groups=4, hidden=128, aggregation="mean", mode=mode)
    head = head_of(config, S, 64, 1)
    names = ["query_weight", "exemplar_weight"] if head.is_contrastive else ["query_weight"]
    for name in names:
        # 8192 draws of a uniform distribution come within one in a hundred of its bound.
        assert 0.99 < float(getattr(head, name).abs().max()) * fan_in**0.5 <= 1
    assert float(head.bias.abs().max()) * fan_in**0.5 <= 1


@torch.no_grad()
def test_the_ordered_aggregation_equals_a_loop_over_snippets() -> None:
    aggregate = small_head(1, 2).aggregate
    assert isinstance(aggregate, OrderedSnippets)
    features = some_features(2, 5)
    vector = aggregate(features)
    assert vector.shape == (2, 5, S * 2)
    for k in range(2):
        for clip in range(5):
            parts = [
                (features[k, clip, s] @ aggregate.weight[k] + aggregate.bias[k, 0]).relu()
                for s in range(S)
            ]
            torch.testing.assert_close(vector[k, clip], torch.cat(parts))


@torch.no_grad()
def test_only_the_ordered_aggregation_knows_the_order_of_snippets() -> None:
    features = some_features(1, 5)
    mean, ordered = MeanSnippets(feature_dim=D), small_head(0).aggregate
    torch.testing.assert_close(mean(features)[0], features[0].mean(dim=1))
    torch.testing.assert_close(mean(features.flip(2)), mean(features))
    assert not torch.allclose(ordered(features.flip(2)), ordered(features))


@torch.no_grad()
def test_clips_of_ones_own_equal_shared_clips() -> None:
    head = small_head(1, 2)
    shared = some_features(5)
    own = torch.stack([shared, shared])
    for a, b in zip(head.halves(shared), head.halves(own), strict=True):
        torch.testing.assert_close(a, b)


def test_standardisation_takes_the_training_rows_only_and_spares_constants() -> None:
    head = small_head(1, 2)
    features = 5 + 3 * some_features(20)
    features[..., 2] = 4.0
    rows = torch.stack([torch.arange(0, 10), torch.arange(5, 15)])
    head.fit_standardisation(features, rows)
    for k in range(2):
        own = head.standardise(features)[k, rows[k]].reshape(-1, D)
        torch.testing.assert_close(own.mean(dim=0), torch.zeros(D), atol=1e-5, rtol=0)
        spread = torch.tensor([1.0, 1.0, 0.0, 1.0])
        torch.testing.assert_close(own.std(dim=0, correction=0), spread, atol=1e-5, rtol=0)


def test_standardisation_can_be_left_out() -> None:
    head = small_head(1, standardise=False)
    features = 5 + some_features(6)
    head.fit_standardisation(features, torch.arange(6).view(1, 6))
    assert torch.equal(head.standardise(features)[0], features)


def test_standardisation_is_saved_with_the_head_but_not_trained() -> None:
    head = small_head(1)
    trained = {name for name, _ in head.named_parameters()}
    assert {"standardise.mean", "standardise.std", "output.groups.edges"} <= set(
        head.state_dict()
    ) - trained


@pytest.mark.parametrize("aggregation", ["mean", "ordered"])
def test_everything_saved_has_the_stack_as_its_first_dimension(aggregation: str) -> None:
    for name, value in small_head(1, 2, 3, aggregation=aggregation).state_dict().items():
        assert value.shape[0] == 3, name


def test_a_stack_starts_from_the_numbers_its_models_would_start_from_alone() -> None:
    stack, alone = small_head(7, 8, 9).state_dict(), small_head(8).state_dict()
    for name, value in stack.items():
        assert torch.equal(value[1], alone[name][0]), name
