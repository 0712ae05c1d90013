from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import scipy.fft
import torch

from aqa_pipeline.config import FitConfig, HeadConfig, SvrGrid
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.metrics import spearman
from aqa_pipeline.errors import DataError, SetupError
from aqa_pipeline.heads.svr import SvrHead, low_frequencies
from aqa_pipeline.training.svr import GRID_COLUMNS, train_svrs
from aqa_pipeline.training.train import TrainedHeads
from aqa_pipeline.training.validation import validation_rows
from tests.support.planted import planted_clips

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(
    clips: FeatureSet, kind: str = "svr", *, test: FeatureSet | None = None, **config: int
) -> TrainedHeads[SvrHead]:
    pytest.importorskip("sklearn")
    return train_svrs(
        clips,
        head_config=HeadConfig(kind=kind, mode="direct", dct_coefficients=3),  # type: ignore[arg-type]
        config=FitConfig(**config),  # type: ignore[arg-type]
        device=torch.device("cpu"),
        test=test,
    )


def waving_clips(count: int, *, frames: int, dim: int) -> FeatureSet:
    """The label is the size of a slow swing in time, whose mean over time is 0."""
    clips = planted_clips(count, snippets=frames, dim=dim, difficulties=[1.0])
    size = np.random.default_rng(3).uniform(1, 9, count)
    swing = np.cos(np.pi * (np.arange(frames) + 0.5) / frames)
    features = 0.2 * clips.features
    features[:, :, 0] += size[:, None] * swing
    return dataclasses.replace(clips, features=features.astype(np.float32), score=size)


def test_low_frequencies_are_scipys_dct() -> None:
    x = np.random.default_rng(0).normal(size=(37, 5))
    expected = scipy.fft.dct(x, axis=0, norm="ortho")
    np.testing.assert_allclose(low_frequencies(37, count=8) @ x, expected[:8], atol=1e-12)
    np.testing.assert_allclose(low_frequencies(1, count=8), [[1.0]])


def test_predictions_equal_those_of_scikit_learn() -> None:
    from sklearn.svm import SVR

    clips = planted_clips(60)
    outcome = trained(clips, num_seeds=2)
    features = torch.from_numpy(clips.features)
    found = outcome.head.direct_value(features).target.numpy()
    for k in range(2):
        fit = np.setdiff1d(np.arange(60), outcome.validation_rows[k])
        best = next(
            dict(zip(GRID_COLUMNS, row, strict=True))
            for row in outcome.history
            if row[:2] == (k, outcome.best_epoch[k])
        )
        mean = clips.features.mean(axis=1, dtype=np.float64)
        x = ((mean - mean[fit].mean(axis=0)) / mean[fit].std(axis=0)).astype(np.float32)
        centre, spread = clips.label[fit].mean(), clips.label[fit].std()
        factor = best["gamma"] * x[fit].shape[1] * x[fit].var(dtype=np.float64)
        assert min(abs(factor - g) for g in SvrGrid().gamma) < 1e-4
        machine = SVR(C=best["cost"], epsilon=best["epsilon"], gamma=best["gamma"])
        machine.fit(x[fit].astype(np.float64), (clips.label[fit] - centre) / spread)
        expected = centre + spread * machine.predict(x.astype(np.float64))
        np.testing.assert_allclose(found[k], expected, rtol=1e-4)


def test_a_swing_is_seen_by_the_dct_but_not_by_the_mean() -> None:
    clips = waving_clips(150, frames=20, dim=3)
    train, test = clips.take(range(100)), clips.take(range(100, 150))
    rho = {}
    for kind in ("svr", "dct-svr"):
        head = trained(train, kind).head
        label = head.direct_value(torch.from_numpy(test.features)).target[0].numpy()
        rho[kind] = spearman(test.score, test.to_score(label))
    assert rho["dct-svr"] > 0.9 > 0.5 > rho["svr"]


@pytest.mark.parametrize("kind", ["svr", "dct-svr"])
@pytest.mark.parametrize("snippets", [1, 10])
def test_a_stack_equals_its_models_alone(kind: str, snippets: int) -> None:
    clips = planted_clips(60, snippets=snippets)
    stack = trained(clips, kind, num_seeds=2, seed=4)
    assert not torch.equal(stack.head.mean[0], stack.head.mean[1]), "each its validation part"
    features = torch.from_numpy(clips.features)
    for k in range(2):
        alone = trained(clips, kind, seed=4 + k)
        assert (stack.best_epoch[k], stack.selection_rho[k]) == (
            alone.best_epoch[0], alone.selection_rho[0],
        )  # fmt: skip
        torch.testing.assert_close(
            stack.head.direct_value(features).target[k], alone.head.direct_value(features).target[0]
        )


def test_the_best_grid_point_of_the_validation_part_is_kept() -> None:
    clips = planted_clips(60, noise=6.0)
    outcome = trained(clips, num_seeds=2, seed=1)
    assert len(outcome.history) == 2 * len(SvrGrid())
    for k in range(2):
        held_out = validation_rows(clips.score, fraction=0.2, seed=1 + k)
        np.testing.assert_array_equal(outcome.validation_rows[k], held_out)
        rhos = [row[-1] for row in outcome.history if row[0] == 1 + k]
        assert outcome.selection_rho[k] == max(rhos) > min(rhos)
        assert outcome.best_epoch[k] == 1 + int(np.argmax(rhos))
        judged = clips.take(held_out)
        label = outcome.head.direct_value(torch.from_numpy(judged.features)).target[k].numpy()
        assert spearman(judged.score, judged.to_score(label)) == pytest.approx(max(rhos))


def test_in_test_set_model_selection_the_test_split_chooses() -> None:
    clips = planted_clips(60, noise=6.0)
    test = clips.take(range(40, 60))
    outcome = trained(clips.take(range(40)), test=test)
    assert outcome.validation_rows.shape == (1, 0)
    label = outcome.head.direct_value(torch.from_numpy(test.features)).target[0].numpy()
    rho = spearman(test.score, test.to_score(label))
    assert outcome.selection_rho[0] == pytest.approx(rho)


def test_a_constant_feature_does_no_harm() -> None:
    clips = planted_clips(40)
    features = clips.features.copy()
    features[:, :, 2] = 4.0
    outcome = trained(dataclasses.replace(clips, features=features))
    assert outcome.head.std[0, 2] == 1
    assert torch.isfinite(outcome.head.direct_value(torch.from_numpy(features)).target).all()


def test_what_cannot_be_learned_from() -> None:
    clips = planted_clips(20)
    with pytest.raises(DataError, match="all 20 training clips have the same label"):
        trained(dataclasses.replace(clips, score=25 * clips.difficulty))
    with pytest.raises(DataError, match="at least 2 are needed on each side"):
        trained(planted_clips(5))


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    clips = planted_clips(20)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(SetupError, match=r"pip install 'aqa-pipeline\[svr\]'"):
        train_svrs(
            clips,
            head_config=HeadConfig(kind="svr", mode="direct"),
            config=FitConfig(),
            device=torch.device("cpu"),
        )
