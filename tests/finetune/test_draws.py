"""Draws of an epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqa_pipeline.finetune.draws import (
    PLAIN_VIEW,
    Augmentation,
    StepDraw,
    chunks,
    draw_epoch,
    in_several,
    num_steps,
    share,
)

GROUPS = np.array([0, 1, 0, 0, 2, 1, 0, 1, 1])
FIT = np.array([0, 1, 2, 4, 5, 6, 7, 8])  # 4 is alone in group 2
MOVES = Augmentation(shift_frames=3, flip=True, jitter=16)


def drawn(*, seed: int = 0, epoch: int = 1, batch_size: int = 3) -> list[StepDraw]:
    return draw_epoch(
        FIT, GROUPS, batch_size=batch_size, augmentation=MOVES, seed=seed, epoch=epoch
    )


@given(seed=st.integers(0, 200), epoch=st.integers(1, 50), batch_size=st.integers(1, 10))
def test_each_clip_is_a_query_once_and_meets_another_of_its_group(
    seed: int, epoch: int, batch_size: int
) -> None:
    steps = drawn(seed=seed, epoch=epoch, batch_size=batch_size)
    assert len(steps) == num_steps(len(FIT), batch_size)
    assert all(len(step.pairs) == batch_size for step in steps[:-1])
    pairs = np.concatenate([step.pairs for step in steps])
    assert sorted(pairs[:, 0].tolist()) == FIT.tolist()
    assert (GROUPS[pairs[:, 0]] == GROUPS[pairs[:, 1]]).all()
    assert set(pairs[:, 1].tolist()) <= set(FIT.tolist())
    alone = pairs[:, 0] == pairs[:, 1]
    assert pairs[alone, 0].tolist() == [4], "only a clip alone in its group is paired with itself"
    for step in steps:
        assert step.views.keys() == set(step.pairs.ravel().tolist())
        for view in step.views.values():
            assert abs(view.shift) <= 3
            assert abs(view.down) <= 16
            assert abs(view.right) <= 16


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    def told(steps: list[StepDraw]) -> object:
        return [(step.pairs.tolist(), step.views) for step in steps]

    assert told(drawn()) == told(drawn())
    assert told(drawn()) != told(drawn(epoch=2))
    assert told(drawn()) != told(drawn(seed=1))


def test_every_exemplar_of_a_group_comes_up_equally_often() -> None:
    partners = [
        step.pairs[step.pairs[:, 0] == 1, 1].tolist()
        for epoch in range(1, 601)
        for step in drawn(epoch=epoch)
    ]
    count = np.bincount([row for found in partners for row in found], minlength=9)
    assert count[[5, 7, 8]].sum() == 600
    assert count[[5, 7, 8]].min() > 150, "three others, 200 times each on average"


def test_half_of_the_clips_are_mirrored_and_all_shifts_come_up() -> None:
    views = MOVES.draw(np.random.default_rng(0), 2000)
    assert 900 < sum(view.flip for view in views) < 1100
    assert {view.shift for view in views} == set(range(-3, 4))
    assert {view.down for view in views} == set(range(-16, 17))
    assert Augmentation().draw(np.random.default_rng(0), 5) == [PLAIN_VIEW] * 5


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_the_processes_shares_are_the_step(world: int) -> None:
    pairs = np.arange(10).reshape(5, 2)
    shares = [share(pairs, rank=rank, world=world) for rank in range(world)]
    assert np.concatenate(shares).tolist() == pairs.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_chunks_and_the_clips_they_share() -> None:
    pairs = np.array([[0, 1], [1, 2], [2, 2], [3, 0], [4, 5]])
    parts = chunks(pairs, 2)
    assert [part.tolist() for part in parts] == [[[0, 1], [1, 2]], [[2, 2], [3, 0]], [[4, 5]]]
    assert in_several(parts) == [0, 2]
    assert [len(part) for part in chunks(pairs[:0], 2)] == [0]
