"""Backbone passes of a validation, and that fewer of them change no prediction."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from aqa_pipeline.core.featureset import Key
from aqa_pipeline.datasets.manifest import exemplar_keys
from aqa_pipeline.datasets.mtl_aqa import PROTOCOL, import_mtl_aqa
from aqa_pipeline.finetune.start import fresh_head
from aqa_pipeline.finetune.validation import ValidationPlan
from aqa_pipeline.heads.batch_voting import vote
from tests.support.planted import planted_clips
from tests.support.tuning_data import SMALL_HEAD

pytestmark = pytest.mark.usefixtures("one_thread")


def plan_of(
    keys: Sequence[Key], num_train: int, *, num_exemplars: int | None = 10
) -> ValidationPlan:
    return ValidationPlan.of(
        keys,
        judged=np.arange(num_train, len(keys)),
        pool=np.arange(num_train),
        num_exemplars=num_exemplars,
        seed=0,
    )


def test_passes_of_a_hand_made_validation() -> None:
    # Group 2.0: 12 in the pool, 3 judged; group 3.0: 4 in the pool, 2 judged.
    keys = [(2.0,)] * 12 + [(3.0,)] * 4 + [(2.0,)] * 3 + [(3.0,)] * 2
    assert plan_of(keys, 16).passes() == {
        "drawn_exemplars": 10 + 4 + 5,
        "whole_bank": 16 + 5,
        "published_way": 2 * (3 * 10 + 2 * 4),
    }


def test_the_exemplars_drawn_give_the_predictions_of_the_whole_bank() -> None:
    clips = planted_clips(80, difficulties=(2.0, 2.5, 3.0))
    head = fresh_head(
        SMALL_HEAD,
        clips,
        np.arange(60),
        clips.features[:60],
        score_range=None,
        epsilon=None,
        seed=0,
    )
    plan = plan_of(clips.key, 60, num_exemplars=5)
    assert len(plan.needed) < 60
    found = plan.predict(head, clips.features[plan.needed], clips)
    label = vote(
        head,
        queries=torch.from_numpy(clips.features[60:]),
        pool=torch.from_numpy(clips.features[:60]),
        pool_label=torch.from_numpy(clips.label[:60]),
        exemplars=torch.from_numpy(plan.exemplars),
    ).mean()[0]
    np.testing.assert_allclose(found, clips.take(plan.judged).to_score(label), rtol=1e-5)


@pytest.mark.parametrize("source", ["like", "real"])
def test_mtl_aqa_needs_13_times_fewer_passes_than_the_published_way(source: str) -> None:
    """1059 training and 353 test clips of 23 difficulties; published: 20 passes a test clip."""
    if source == "real":
        folder = os.environ.get("AQA_TEST_MTL_AQA")
        if not folder:
            pytest.skip("needs the official annotations; AQA_TEST_MTL_AQA names their folder")
        clips = import_mtl_aqa(Path(folder)).clips
        train, test = clips[clips["split"] == "train"], clips[clips["split"] == "test"]
        keys = exemplar_keys(train, PROTOCOL.exemplar_key)
        num_train = len(keys)
        keys += exemplar_keys(test, PROTOCOL.exemplar_key)
    else:  # as many clips and difficulties; a few of them rare
        rng = np.random.default_rng(0)
        share = np.array([*np.linspace(0.5, 10, 20), 0.1, 0.1, 0.1])
        num_train = 1059
        of_train = np.concatenate([np.arange(23), rng.choice(23, 1036, p=share / share.sum())])
        of_test = rng.choice(23, 353, p=share / share.sum())
        keys = [(float(d),) for d in [*of_train, *of_test]]
    passes = plan_of(keys, num_train).passes()
    assert (num_train, len(keys) - num_train) == (1059, 353)
    assert len(set(keys[:num_train])) == 23
    assert passes["whole_bank"] == 1412
    published = 20 * 353
    assert published == 7060
    assert published / passes["whole_bank"] >= 4.5
    assert published / passes["drawn_exemplars"] >= 10
    if source == "real":
        assert passes == {"drawn_exemplars": 521, "whole_bank": 1412, "published_way": 6908}
