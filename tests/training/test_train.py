from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.groups import Groups
from aqa_pipeline.core.metrics import spearman
from aqa_pipeline.core.pairs import ExemplarKeys, vote_exemplars
from aqa_pipeline.errors import DataError
from aqa_pipeline.heads.batch_voting import vote
from aqa_pipeline.heads.head import Head
from aqa_pipeline.heads.outputs import TreeOutput
from aqa_pipeline.training import selection
from aqa_pipeline.training.loop import TrainingLoop
from aqa_pipeline.training.train import HISTORY_COLUMNS, TrainedHeads, train_heads
from aqa_pipeline.training.validation import validation_rows
from tests.support.planted import planted_clips

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SMALL = HeadConfig(num_groups=4, hidden=16, reduced_dim=4)


def trained(clips: FeatureSet, head: HeadConfig = SMALL, **config: Any) -> TrainedHeads[Head]:
    config = {"epochs": 4, "batch_size": 16, **config}
    return train_heads(
        clips,
        head_config=head,
        config=FitConfig(**config),
        score_range=None,
        epsilon=30.0,
        device=CPU,
    )


def weights(outcome: TrainedHeads[Head]) -> dict[str, Tensor]:
    return dict(outcome.head.state_dict())


# --- whole runs ----------------------------------------------------------------------


def test_each_model_holds_out_a_part_of_its_own() -> None:
    clips = planted_clips(40)
    held_out = trained(clips, epochs=1, num_seeds=3, seed=5).validation_rows
    assert held_out.shape == (3, 8)
    for k in range(3):
        expected = validation_rows(clips.score, fraction=0.2, seed=5 + k)
        np.testing.assert_array_equal(held_out[k], expected)


# --- one epoch -----------------------------------------------------------------------


def loop_over(clips: FeatureSet, fit: list[list[int]], **config: Any) -> TrainingLoop:
    """The training loop of one model for each row of ``fit``."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(fit))]
    groups = [Groups(np.array([-9.0, -2.0, 0.0, 2.0, 9.0]))] * len(fit)
    head = Head(
        SMALL,
        num_snippets=clips.features.shape[1],
        feature_dim=clips.features.shape[2],
        output=TreeOutput(SMALL, groups, generators),
        epsilon=30.0,
        generators=generators,
    )
    own_groups, _ = ExemplarKeys.of(clips.key).match(clips.key)
    return TrainingLoop(
        head,
        torch.from_numpy(clips.features),
        clips,
        own_groups,
        np.array(fit),
        FitConfig(**config),
        generators,
    )


def test_an_epoch_asks_every_query_once_against_another_clip_of_its_group() -> None:
    # Difficulties 2 and 3 are shared, 9.5 is one clip's own.
    clips = planted_clips(13)
    clips = dataclasses.replace(clips, key=(*clips.key[:-1], (9.5,)))
    fit = [[0, 1, 2, 3, 4, 5, 6, 7, 12], [12, 11, 10, 9, 8, 7, 6, 5, 4]]
    loop = loop_over(clips, fit)
    seen: list[set[tuple[int, int]]] = [set(), set()]
    for _ in range(150):
        order, partner = loop._draw_epoch()
        for k, rows in enumerate(fit):
            assert sorted(order[k].tolist()) == list(range(9))
            pairs = [(rows[q], rows[e]) for q, e in zip(order[k], partner[k], strict=True)]
            assert all(clips.key[q] == clips.key[e] for q, e in pairs)
            seen[k].update(pairs)
    for k, rows in enumerate(fit):
        same = {(q, e) for q in rows for e in rows if q != e and clips.key[q] == clips.key[e]}
        assert seen[k] == same | {(12, 12)}, "all pairs come; only who is alone meets itself"


def test_exemplars_are_drawn_evenly() -> None:
    loop = loop_over(planted_clips(6, difficulties=[2.0]), [list(range(6))])
    counts = np.zeros((6, 6), dtype=int)
    for _ in range(600):
        order, partner = loop._draw_epoch()
        np.add.at(counts, (order[0].numpy(), partner[0].numpy()), 1)
    others = counts[~np.eye(6, dtype=bool)]
    assert others.sum() == 3600
    assert 75 < others.min() <= others.max() < 170, "120 expected, standard deviation 9.8"


def test_both_orders_of_a_pair_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    deltas: list[Tensor] = []
    labels = TreeOutput.labels

    def listen(self: TreeOutput, target: Tensor) -> Any:
        deltas.extend(target)
        return labels(self, target)

    monkeypatch.setattr(TreeOutput, "labels", listen)
    loop_over(planted_clips(20), [list(range(20))], batch_size=8).epoch()
    assert [delta.shape[1] for delta in deltas] == [16, 16, 8], "the last batch is smaller"
    for delta in deltas:
        one, other = delta.chunk(2, dim=1)
        assert one.any()
        torch.testing.assert_close(other, -one)


@pytest.mark.parametrize("batch_size", [7, 64])
def test_the_loss_of_an_epoch_is_the_mean_over_its_pairs(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = planted_clips(20)
    fit = [list(range(18)), list(range(2, 20))]
    loop = loop_over(clips, fit, batch_size=batch_size, learning_rate=0.0)
    draw = loop._draw_epoch()
    monkeypatch.setattr(loop, "_draw_epoch", lambda: draw)
    found = loop.epoch()
    features, label = torch.from_numpy(clips.features), torch.from_numpy(clips.label)
    expected = np.zeros((2, 2))
    head = loop._head
    for k, rows in enumerate(fit):
        for a, b in zip(*(part[k].tolist() for part in draw), strict=True):
            for query, exemplar in ((rows[a], rows[b]), (rows[b], rows[a])):
                with torch.no_grad():
                    root = head.root(
                        head.halves(features[[query]]).query,
                        head.halves(features[[exemplar]]).exemplar,
                        label[[exemplar]].expand(2, 1),
                    )
                    delta = (label[query] - label[exemplar]).expand(2, 1)
                    (labels,) = head.output.labels(delta.unsqueeze(0))
                    losses = head.output.losses(root, labels)
                expected[:, k] += [float(loss[k]) / (2 * len(rows)) for loss in losses]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


# --- training ------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["mean", "ordered"])
def test_a_planted_signal_is_learned(aggregation: Any) -> None:
    head = dataclasses.replace(SMALL, aggregation=aggregation, hidden=32)
    outcome = trained(planted_clips(100), head, epochs=40, num_seeds=2, learning_rate=3e-3)
    assert min(outcome.selection_rho) > 0.9
    first, last = outcome.history[0], outcome.history[-2]
    assert last[2] < 0.6 * first[2], "the loss falls"


def test_the_best_heads_score_clips_they_have_never_seen() -> None:
    clips = planted_clips(200)
    train, test = clips.take(range(120)), clips.take(range(120, 200))
    head = trained(train, epochs=30, learning_rate=3e-3).head
    exemplars = np.stack([[i for i in range(120) if train.key[i] == key][:10] for key in test.key])
    votes = vote(
        head,
        queries=torch.from_numpy(test.features),
        pool=torch.from_numpy(train.features),
        pool_label=torch.from_numpy(train.label),
        exemplars=torch.from_numpy(exemplars),
    )
    assert spearman(test.score, test.to_score(votes.mean()[0])) > 0.9


def test_noise_is_not_learned() -> None:
    clips = planted_clips(100, difficulties=[2.0])
    shuffled = np.random.default_rng(0).permutation(clips.score)
    clips = dataclasses.replace(clips, score=shuffled)
    history = trained(clips, epochs=20, num_seeds=3, learning_rate=3e-3).history
    assert abs(np.mean([row[5] for row in history])) < 0.4


def test_two_equal_runs_are_equal_to_the_bit() -> None:
    clips = planted_clips(40)
    runs = [trained(clips, num_seeds=2) for _ in range(2)]
    assert runs[0].history == runs[1].history
    for name, value in weights(runs[0]).items():
        assert torch.equal(value, weights(runs[1])[name]), name


def test_another_seed_is_another_head() -> None:
    clips = planted_clips(40)
    one, other = (weights(trained(clips, seed=seed)) for seed in (0, 1))
    assert not torch.equal(one["output.tree.leaf_weight"], other["output.tree.leaf_weight"])


def test_the_global_generators_stay_untouched() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state()
    trained(planted_clips(40), epochs=1)
    assert torch.equal(before, torch.get_rng_state())
    assert np.random.random() == np.random.RandomState(3).random_sample()


@pytest.mark.parametrize("aggregation", ["mean", "ordered"])
def test_a_stack_of_models_equals_its_models_trained_alone(aggregation: Any) -> None:
    # Tied difficulties of uneven size, so that the models' tables differ in width.
    clips = planted_clips(41, difficulties=[1.5, 2.0, 2.0, 2.0, 3.0])
    head = dataclasses.replace(SMALL, aggregation=aggregation)
    stack = trained(clips, head, num_seeds=3, seed=4)
    for k in range(3):
        alone = trained(clips, head, seed=4 + k)
        assert stack.best_epoch[k] == alone.best_epoch[0]
        assert stack.selection_rho[k] == pytest.approx(alone.selection_rho[0])
        for name, value in weights(alone).items():
            torch.testing.assert_close(weights(stack)[name][k], value[0], rtol=1e-4, atol=1e-5)
        own = [row for row in stack.history if row[0] == 4 + k]
        np.testing.assert_allclose(own, alone.history, rtol=1e-4)


def test_exemplars_and_statistics_come_from_the_fit_part() -> None:
    clips = planted_clips(40)
    outcome = trained(clips, epochs=1)
    fit = np.setdiff1d(np.arange(40), outcome.validation_rows[0])
    fitted = clips.features[fit]
    torch.testing.assert_close(
        outcome.head.standardise.mean[0], torch.from_numpy(fitted.mean(axis=(0, 1)))
    )
    # Nothing a held-out clip shows may change what is learned from the others.
    changed = clips.features.copy()
    changed[outcome.validation_rows[0]] *= -5
    other = trained(dataclasses.replace(clips, features=changed), epochs=1)
    for name, value in weights(outcome).items():
        assert torch.equal(value, weights(other)[name]), name


# --- choosing the epoch --------------------------------------------------------------


def test_history_has_a_row_for_each_model_and_epoch() -> None:
    told: list[tuple[int, int]] = []
    outcome = train_heads(
        planted_clips(40),
        head_config=SMALL,
        config=FitConfig(epochs=3, num_seeds=2, seed=8),
        score_range=30.0,
        epsilon=None,
        device=CPU,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    rows = [dict(zip(HISTORY_COLUMNS, row, strict=True)) for row in outcome.history]
    assert [(row["seed"], row["epoch"]) for row in rows] == [
        (seed, epoch) for epoch in (1, 2, 3) for seed in (8, 9)
    ]
    for row in rows:
        assert row["loss"] == pytest.approx(row["classification"] + row["regression"])
    assert isinstance(outcome.head.output, TreeOutput)
    assert outcome.head.output.groups.edges[:, [0, -1]].tolist() == [[-30, 30]] * 2
    assert outcome.head.epsilon == pytest.approx(planted_clips(40).label.max())


def test_each_model_is_kept_at_its_first_best_epoch() -> None:
    clips = planted_clips(40)
    outcome = trained(clips, epochs=8, num_seeds=3)
    for k in range(3):
        rhos = [row[5] for row in outcome.history if row[0] == k]
        assert outcome.selection_rho[k] == max(rhos)
        assert outcome.best_epoch[k] == 1 + int(np.argmax(rhos))
    assert max(outcome.best_epoch) > min(outcome.best_epoch), "the models differ"
    # Ending the training at a model's best epoch gives that very model.
    k = int(np.argmin(outcome.best_epoch))
    shorter = trained(clips, epochs=outcome.best_epoch[k], num_seeds=3)
    for name, value in weights(outcome).items():
        assert torch.equal(value[k], weights(shorter)[name][k]), name


@pytest.mark.parametrize(
    ("rhos", "best"),
    [
        ([0.1, 0.5, 0.5, 0.3], 2),
        ([math.nan, 0.2, math.nan, 0.1], 2),
        ([math.nan, -0.5, -0.7], 2),
        ([math.nan, math.nan, math.nan], 3),
    ],
)
def test_an_epoch_without_a_correlation_never_wins_over_one_with(
    rhos: list[float], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_rhos = iter(rhos)
    monkeypatch.setattr(selection, "spearman", lambda scores, predictions: math.nan)
    monkeypatch.setattr(
        selection, "spearman_rows", lambda scores, predictions: np.array([next(given_rhos)])
    )
    outcome = trained(planted_clips(40), epochs=len(rhos))
    assert outcome.best_epoch == (best,)
    np.testing.assert_equal(outcome.selection_rho, (rhos[best - 1],))


@pytest.mark.parametrize("num_exemplars", [3, None])
def test_the_correlation_that_chooses_is_that_of_votes_by_the_fit_part(
    num_exemplars: int | None,
) -> None:
    # Groups so small that one exemplar too many, or too few, is felt.
    clips = planted_clips(60, difficulties=[1 + i / 4 for i in range(16)])
    outcome = trained(clips, epochs=3, num_seeds=4, num_exemplars=num_exemplars)
    features, label = torch.from_numpy(clips.features), torch.from_numpy(clips.label)
    for k, rows in enumerate(outcome.validation_rows):
        fit = np.setdiff1d(np.arange(60), rows)
        keys = ExemplarKeys.of(clips.take(fit).key)
        places = vote_exemplars(
            keys.match(clips.take(rows).key)[0],
            keys.match(clips.take(fit).key)[0],
            num_exemplars=num_exemplars,
            seed=k,
        )
        votes = vote(
            outcome.head,
            queries=features[rows],
            pool=features[fit],
            pool_label=label[fit],
            exemplars=torch.from_numpy(places),
        )
        predicted = clips.take(rows).to_score(votes.mean()[k])
        rho = spearman(clips.score[rows], predicted)
        assert outcome.selection_rho[k] == pytest.approx(rho)


def test_a_validation_clip_without_its_like_is_compared_with_the_nearest() -> None:
    clips = planted_clips(40, difficulties=[2.0])
    held_out = validation_rows(clips.score, fraction=0.2, seed=0)
    alone = int(held_out[0])
    key = tuple((2.1,) if i == alone else (2.0,) for i in range(40))
    outcome = trained(dataclasses.replace(clips, key=key), epochs=2)
    assert all(math.isfinite(row[5]) for row in outcome.history)


# --- what cannot be learned from -----------------------------------------------------


def test_equal_labels_teach_nothing() -> None:
    clips = planted_clips(20)
    with pytest.raises(DataError, match="all 20 training clips have the same label"):
        trained(dataclasses.replace(clips, score=25 * clips.difficulty))
    with pytest.raises(DataError, match="all 0 training clips have the same label"):
        trained(clips.take([]))


def test_clips_that_are_all_alone_teach_nothing() -> None:
    clips = planted_clips(20)
    with pytest.raises(DataError, match="no two training clips share an exemplar group"):
        trained(dataclasses.replace(clips, key=tuple((float(i),) for i in range(20))))


def test_a_clip_without_a_label_is_said_to_lack_one() -> None:
    clips = planted_clips(20)
    score, scale = clips.score.copy(), clips.scale.copy()
    score[3], scale[4] = math.nan, math.nan
    with pytest.raises(DataError, match="2 of 20 training clips have no finite label"):
        trained(dataclasses.replace(clips, score=score, scale=scale))


def test_too_few_clips_to_choose_an_epoch() -> None:
    with pytest.raises(DataError, match="at least 2 are needed on each side"):
        trained(planted_clips(5))
