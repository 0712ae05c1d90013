from __future__ import annotations

import pytest
import torch

from aqa_pipeline.config import HeadConfig
from aqa_pipeline.heads.aggregations import AttentionSnippets, LstmSnippets, aggregation

K, B, S, D, P = 2, 5, 4, 3, 6


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def some_features() -> torch.Tensor:
    return torch.randn(K, B, S, D, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_lstm_equals_torchs_with_the_same_weights() -> None:
    stacked = LstmSnippets(feature_dim=D, out_dim=P, generators=generators(1, 2))
    features = some_features()
    found = stacked(features)
    for k in range(K):
        single = torch.nn.LSTM(D, P, batch_first=True)
        single.load_state_dict(
            {
                "weight_ih_l0": stacked.input_weight[k].T,
                "weight_hh_l0": stacked.state_weight[k].T,
                "bias_ih_l0": stacked.bias[k, 0],
                "bias_hh_l0": torch.zeros(4 * P),
            }
        )
        _, (last, _) = single(features[k])
        torch.testing.assert_close(found[k], last[0])


@torch.no_grad()
def test_attention_equals_a_loop_over_clips() -> None:
    attention = AttentionSnippets(
        feature_dim=D, num_snippets=S, out_dim=P, generators=generators(1, 2)
    )
    features = some_features()
    found = attention(features)
    for k in range(K):
        for b in range(B):
            values = (features[k, b] @ attention.weight[k] + attention.position[k]).relu()
            share = (values @ attention.score_weight[k, :, 0]).softmax(dim=0)
            torch.testing.assert_close(found[k, b], share @ values)


@pytest.mark.parametrize("name", ["attention", "lstm", "ordered"])
@torch.no_grad()
def test_the_order_of_the_snippets_is_felt(name: str) -> None:
    config = HeadConfig(aggregation=name, hidden=P, reduced_dim=2)  # type: ignore[arg-type]
    made = aggregation(config, num_snippets=S, feature_dim=D, generators=generators(1, 2))
    features = some_features()
    assert made(features).shape == (K, B, made.out_dim)
    assert not torch.allclose(made(features), made(features.flip(2)), atol=1e-3)


@pytest.mark.parametrize("name", ["mean", "ordered", "attention", "lstm"])
@torch.no_grad()
def test_a_stack_equals_its_models_alone_also_with_one_vector_a_clip(name: str) -> None:
    config = HeadConfig(aggregation=name, hidden=P, reduced_dim=2)  # type: ignore[arg-type]
    features = some_features()[:, :, :1]
    stack = aggregation(config, num_snippets=1, feature_dim=D, generators=generators(7, 8))
    for k in range(K):
        alone = aggregation(config, num_snippets=1, feature_dim=D, generators=generators(7 + k))
        torch.testing.assert_close(stack(features)[k], alone(features[[k]])[0])
