from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from aqa_pipeline.config import FitConfig, HeadConfig, Protocol
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.labels import LabelScale
from aqa_pipeline.core.pairs import ExemplarKeys, vote_exemplars
from aqa_pipeline.errors import CacheError
from aqa_pipeline.heads.batch_voting import vote
from aqa_pipeline.heads.voting import ClipPrediction, Votes
from aqa_pipeline.runs.evaluate import predict_clips
from aqa_pipeline.runs.folder import Run
from aqa_pipeline.training.train import train_heads
from tests.support.planted import planted_clips

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
# Rows enough for the kernels that a matrix product of one column does not use.
TRAIN = planted_clips(150, snippets=4, dim=32, seed=0)
NEW = planted_clips(70, snippets=4, dim=32, seed=1)


def make_run(*, num_exemplars: int | None, num_seeds: int = 9, mode: str = "contrastive") -> Run:
    config = FitConfig(
        epochs=1, num_seeds=num_seeds, batch_size=16, num_exemplars=num_exemplars, seed=3
    )
    trained = train_heads(
        TRAIN,
        head_config=HeadConfig(hidden=64, reduced_dim=16, mode=mode),  # type: ignore[arg-type]
        config=config,
        score_range=30.0,
        epsilon=30.0,
        device=CPU,
    )
    return Run(
        folder=Path("r"),
        head=trained.head,
        exemplars=TRAIN,
        protocol=Protocol(name="planted", exemplar_key=("difficulty",)),
        labels=LabelScale("raw"),
        fit_config=config,
    )


@pytest.mark.parametrize("num_exemplars", [10, None])
@pytest.mark.parametrize("mode", ["contrastive", "direct"])
def test_a_prediction_is_the_same_to_the_bit_whoever_else_is_asked(
    num_exemplars: int | None, mode: str
) -> None:
    run = make_run(num_exemplars=num_exemplars, mode=mode)
    together = predict_clips(run, NEW)
    for rows in ([0], [5], [69], [3, 1], list(range(40, 69))):
        some = predict_clips(run, NEW.take(rows))
        np.testing.assert_array_equal(some.per_head, together.per_head[:, rows])
        np.testing.assert_array_equal(some.score, together.score[rows])


def test_the_number_of_threads_does_not_matter() -> None:
    run = make_run(num_exemplars=None, num_seeds=2)
    alone = predict_clips(run, NEW)
    torch.set_num_threads(2)  # the fixture puts it back
    np.testing.assert_array_equal(predict_clips(run, NEW).per_head, alone.per_head)
    assert torch.get_num_threads() == 2


def test_one_clip_after_the_other_says_what_all_at_once_say() -> None:
    run = make_run(num_exemplars=10)
    alone = predict_clips(run, NEW)
    at_once = vote(
        run.head,
        queries=torch.from_numpy(NEW.features),
        pool=torch.from_numpy(TRAIN.features),
        pool_label=torch.from_numpy(TRAIN.label),
        exemplars=torch.from_numpy(alone.exemplars),
    )
    # Another batch size is another order of additions: a pair between two leaves may take the
    # other one, all others agree to single precision.
    close = np.isclose(alone.votes.label, at_once.label, rtol=1e-5)
    assert close.mean() > 0.999


def test_many_exemplars_go_through_the_tree_in_several_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run(num_exemplars=None, num_seeds=1)
    whole = predict_clips(run, NEW.take([2]))
    monkeypatch.setattr("aqa_pipeline.heads.voting._PAIRS_PER_PASS", 7)
    parts = predict_clips(run, NEW.take([2]))
    assert whole.votes.label.shape == parts.votes.label.shape
    np.testing.assert_allclose(parts.votes.label, whole.votes.label, rtol=1e-5)


def test_a_clip_is_better_than_another_as_one_pair_says() -> None:
    run = make_run(num_exemplars=None, num_seeds=2)
    voter = run.voter()
    query, exemplar = NEW.features[0], TRAIN.features[4]
    delta = voter.delta(query, exemplar, exemplar_label=float(TRAIN.label[4]))
    prediction = voter.predict(query, TRAIN.key[4])
    position = prediction.exemplars.tolist().index(4)
    np.testing.assert_allclose(prediction.label[:, position], TRAIN.label[4] + delta, rtol=1e-5)


def test_eq9_a_heads_prediction_is_the_mean_of_its_votes() -> None:
    label = np.array([[1.0, 2.0, 6.0], [0.0, 4.0, 6.5]])
    clip = ClipPrediction(np.arange(3), False, label, np.full((2, 3), -1))
    assert clip.mean().tolist() == [3.0, 3.5]
    assert Votes(label[:, None], np.full((2, 1, 3), -1)).mean().tolist() == [[3.0], [3.5]]


def test_exemplars_are_drawn_by_the_seed_of_the_run() -> None:
    run = make_run(num_exemplars=10, num_seeds=1)
    assert run.fit_config.seed == 3
    groups, _ = ExemplarKeys.of(TRAIN.key).match(TRAIN.key)
    drawn = {
        seed: vote_exemplars(groups[:1], groups, num_exemplars=10, seed=seed)[0].tolist()
        for seed in (0, 3)
    }
    rows, _ = run.voter().exemplars_of(TRAIN.key[0])
    assert rows.tolist() == drawn[3] != drawn[0]


def test_a_key_of_nobody_takes_the_nearest() -> None:
    voter = make_run(num_exemplars=10, num_seeds=1).voter()
    rows, fallback = voter.exemplars_of((2.9,))
    assert fallback
    assert {TRAIN.key[row] for row in rows} == {(3.0,)}


def test_other_features_are_refused() -> None:
    run = make_run(num_exemplars=10, num_seeds=1)
    other: FeatureSet = dataclasses.replace(NEW, features=NEW.features[:, :3])
    with pytest.raises(CacheError, match=r"trained on 4 x 32 features a clip, these .* 3 x 32"):
        predict_clips(run, other)
