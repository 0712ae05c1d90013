"""Shards: disjoint, complete, balanced, the same everywhere; and those of a job array."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqa_pipeline.errors import UsageError
from aqa_pipeline.extraction.shards import Shard, parse_shard


def array(task: int, first: int, last: int, count: int, step: int = 1) -> dict[str, str]:
    numbers = {"ID": task, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in numbers.items()}


def test_a_long_video_is_cut_into_runs_of_neighbours() -> None:
    videos = ["b"] * 4 + ["a"] * 2
    frames = [30, 10, 20, 0, 7, 3]
    shards = [Shard(i, 3).rows(videos, frames) for i in (1, 2, 3)]
    # In order: a3 a7 | b0 b10 | b20 b30.
    assert shards == [[4, 5], [1, 3], [0, 2]]


@given(
    clips=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=40),
    count=st.integers(1, 9),
)
def test_shards_are_disjoint_complete_and_of_equal_length(
    clips: list[tuple[str, int]], count: int
) -> None:
    videos, frames = [video for video, _ in clips], [frame for _, frame in clips]
    shards = [Shard(i + 1, count).rows(videos, frames) for i in range(count)]
    assert sorted(row for rows in shards for row in rows) == list(range(len(clips)))
    lengths = [len(rows) for rows in shards]
    assert max(lengths) - min(lengths) <= 1


def test_shards_are_typed_as_part_of_all() -> None:
    assert parse_shard("2/8", {}) == Shard(2, 8)
    assert str(Shard(2, 8)) == "2/8"


@pytest.mark.parametrize("text", ["3", "a/b", "-1/2", "1/", "1.5/2", ""])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected I/N, such as 2/8, or slurm"):
        parse_shard(text, {})


@pytest.mark.parametrize("text", ["0/4", "5/4", "0/0"])
def test_shards_count_from_one(text: str) -> None:
    with pytest.raises(UsageError, match=r"shards of \d are 1/\d to \d/\d"):
        parse_shard(text, {})


def test_a_job_array_may_begin_anywhere() -> None:
    assert parse_shard("slurm", array(0, 0, 7, 8)) == Shard(1, 8)
    assert parse_shard("slurm", array(12, 5, 12, 8)) == Shard(8, 8)


def test_a_job_array_with_gaps_or_steps_is_refused() -> None:
    with pytest.raises(UsageError, match=r"some numbers are missing.*submit with --array=0-2"):
        parse_shard("slurm", array(1, 1, 7, 3))
    with pytest.raises(UsageError, match="counts in steps of 2; submit with --array=0-3"):
        parse_shard("slurm", array(2, 0, 6, 4, step=2))


def test_outside_a_job_array_the_sentence_says_so() -> None:
    with pytest.raises(UsageError, match="SLURM_ARRAY_TASK_ID is not set; is this a task"):
        parse_shard("slurm", {})
    with pytest.raises(UsageError, match="SLURM_ARRAY_TASK_MAX is 'x'"):
        parse_shard("slurm", {**array(0, 0, 0, 1), "SLURM_ARRAY_TASK_MAX": "x"})
