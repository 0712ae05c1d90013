from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from aqa_pipeline.core.pairs import vote_exemplars
from aqa_pipeline.heads import batch_voting as module
from aqa_pipeline.heads.batch_voting import vote
from aqa_pipeline.heads.head import Head
from aqa_pipeline.heads.outputs import TreeOutput
from aqa_pipeline.heads.voting import Votes
from tests.heads.test_head import D, S, small_head, some_features

#: Another batch size is another order of additions inside the matrix product, so numbers
#: that should be equal are so to single precision, not to the bit.
CLOSE = 1e-5


@pytest.fixture
def head() -> Head:
    """Two heads that do not all say the same: weights larger than those they start with."""
    head = small_head(1, 2)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(3)
    return head


QUERIES, POOL = some_features(5, seed=1), some_features(8, seed=2)
POOL_LABEL = torch.linspace(12, 27, 8, dtype=torch.float64)
EXEMPLARS = torch.tensor([[0, 3, 5], [1, -1, -1], [7, 2, -1], [4, 4, 4], [6, 0, 1]])


def ask(head: Head, queries: Tensor = QUERIES, exemplars: Tensor = EXEMPLARS) -> Votes:
    return vote(head, queries=queries, pool=POOL, pool_label=POOL_LABEL, exemplars=exemplars)


@torch.no_grad()
def one_vote(head: Head, model: int, query: Tensor, exemplar: int) -> tuple[float, int]:
    """Eq. 3, 4 and 7 for one pair and one head of the stack."""
    assert isinstance(head.output, TreeOutput)
    label = POOL_LABEL[exemplar].expand(head.num_models, 1)
    query_half = head.halves(query[None]).query
    root = head.root(query_half, head.halves(POOL[exemplar][None]).exemplar, label)
    log_prob, place = head.output.tree(root)
    leaf = int(log_prob[model, :, 0].argmax())
    edges = head.output.groups.edges[model]
    delta = edges[leaf] + float(place[model, leaf, 0]) * (edges[leaf + 1] - edges[leaf])
    return float(POOL_LABEL[exemplar] + delta), leaf


def test_eq8_eq9_votes_equal_a_loop_over_pairs(head: Head) -> None:
    votes = ask(head)
    assert votes.label.shape == votes.leaf.shape == (2, 5, 3)
    for k in range(2):
        for q, row in enumerate(EXEMPLARS.tolist()):
            said = [one_vote(head, k, QUERIES[q], e) for e in row if e >= 0]
            labels, leaves = zip(*said, strict=True)
            assert votes.leaf[k, q, : len(said)].tolist() == list(leaves)
            assert votes.label[k, q, : len(said)].tolist() == pytest.approx(labels, abs=CLOSE)
            assert votes.mean()[k, q] == pytest.approx(np.mean(labels), abs=CLOSE)
    assert len(set(votes.leaf.ravel().tolist())) > 2, "the heads say different things"


def test_eq9_a_shorter_vote_is_the_mean_of_those_present(head: Head) -> None:
    votes = ask(head)
    absent = (EXEMPLARS < 0).numpy()
    assert (np.isnan(votes.label) == absent).all()
    assert ((votes.leaf < 0) == absent).all()
    np.testing.assert_allclose(votes.mean()[:, 1], votes.label[:, 1, 0])
    np.testing.assert_allclose(votes.mean()[:, 2], votes.label[:, 2, :2].mean(axis=1))


def test_eq9_by_hand() -> None:
    votes = Votes(np.array([[[20.0, 26.0], [30.0, math.nan]]]), np.array([[[0, 3], [1, -1]]]))
    assert votes.mean().tolist() == [[23.0, 30.0]]


def test_every_exemplar_of_the_group_may_vote(head: Head) -> None:
    groups = [0, 1, 0, 0, 1, 0, 0, 0]
    chosen = vote_exemplars([0, 1, 0, 0, 1], groups, num_exemplars=None, seed=0)
    votes = ask(head, exemplars=torch.from_numpy(chosen))
    assert (votes.leaf >= 0).sum(axis=2).tolist() == [[6, 2, 6, 6, 2]] * 2
    expected = [one_vote(head, 1, QUERIES[4], e)[0] for e in (1, 4)]
    assert votes.mean()[1, 4] == pytest.approx(np.mean(expected), abs=CLOSE)


@pytest.mark.parametrize("pairs", [1, 3, 7])
def test_many_votes_are_counted_in_several_passes(
    head: Head, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ask(head)
    monkeypatch.setattr(module, "_PAIRS_PER_PASS", pairs)
    parts = ask(head)
    np.testing.assert_array_equal(parts.leaf, whole.leaf)
    np.testing.assert_allclose(parts.label, whole.label, atol=CLOSE, rtol=0)


def test_a_clip_scored_alone_gets_the_prediction_it_got_inside_a_set(head: Head) -> None:
    together = ask(head).mean()
    for q in range(5):
        alone = ask(head, QUERIES[q : q + 1], EXEMPLARS[q : q + 1]).mean()
        np.testing.assert_allclose(alone[:, 0], together[:, q], atol=CLOSE, rtol=0)


def test_each_head_may_have_exemplars_and_queries_of_its_own(head: Head) -> None:
    own = torch.stack([EXEMPLARS, EXEMPLARS.flip(0)])
    votes = ask(head, torch.stack([QUERIES, QUERIES.flip(0)]), own)
    expected = ask(head).mean()
    np.testing.assert_allclose(votes.mean()[0], expected[0], atol=CLOSE, rtol=0)
    np.testing.assert_allclose(votes.mean()[1], expected[1, ::-1], atol=CLOSE, rtol=0)


def test_no_query_is_an_empty_vote(head: Head) -> None:
    empty = ask(head, torch.empty(0, S, D), torch.empty(0, 0, dtype=torch.int64))
    assert empty.label.shape == (2, 0, 0)
    assert empty.mean().shape == (2, 0)


@pytest.mark.parametrize("pairs", [1, 7, 4096])
def test_votes_on_the_device_are_those_of_the_host(
    head: Head, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first vote of the first query is missing, and the heads' lists differ in length.
    holes = EXEMPLARS.clone()
    holes[0, 0] = -1
    own = torch.stack([EXEMPLARS, holes])
    host = ask(head, torch.stack([QUERIES, QUERIES.flip(0)]), own)
    monkeypatch.setattr(module, "votes_on_host", lambda device: False)
    monkeypatch.setattr(module, "_PAIRS_PER_PASS", pairs)
    there = ask(head, torch.stack([QUERIES, QUERIES.flip(0)]), own)
    np.testing.assert_array_equal(there.leaf, host.leaf)
    np.testing.assert_allclose(there.label, host.label, atol=CLOSE, rtol=0)
    assert ask(head, torch.empty(0, S, D), torch.empty(0, 0, dtype=torch.int64)).mean().size == 0


def test_eq9_means_on_the_device_leave_out_what_is_missing_or_of_another_block() -> None:
    label = torch.tensor([[[20.0, 26.0, math.inf], [30.0, math.nan, 1.0]]], dtype=torch.float64)
    blocks = torch.tensor([[[True, True, False]], [[False, True, False]]])
    found = module.mean_votes(label, blocks)
    np.testing.assert_equal(found.numpy(), [[[23.0, 30.0]], [[26.0, math.nan]]])
