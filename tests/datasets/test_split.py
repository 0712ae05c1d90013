from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aqa_pipeline.datasets.manifest import read_manifest
from aqa_pipeline.datasets.split import draw_groups, fold_numbers, split_clips, split_manifest
from aqa_pipeline.errors import DataError, UsageError
from tests.support.annotations import real_annotations


def table(count: int, *, seed: int = 0, videos: int = 5) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "clip_id": [f"c{i:04d}" for i in range(count)],
            "video": [f"v{i % videos}" for i in range(count)],
            "score": random.normal(60, 15, count).round(1),
            "category": "",
        }
    )


@settings(deadline=None, max_examples=50)
@given(count=st.integers(2, 60), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_the_fraction_is_kept_and_both_sides_have_a_clip(
    count: int, fraction: float, seed: int
) -> None:
    num_test = split_clips(table(count), test_fraction=fraction, seed=seed).count("test")
    assert num_test == min(max(round(count * fraction), 1), count - 1)


def test_the_order_of_the_rows_does_not_matter_but_the_seed_does() -> None:
    clips = table(40)
    sides = dict(zip(clips["clip_id"], split_clips(clips, seed=1), strict=True))
    shuffled = clips.sample(frac=1, random_state=3)
    assert dict(zip(shuffled["clip_id"], split_clips(shuffled, seed=1), strict=True)) == sides
    assert split_clips(clips, seed=1) != split_clips(clips, seed=2)


def test_one_test_clip_comes_from_each_run_of_scores() -> None:
    clips = table(40).sort_values("score")
    is_test = np.array(split_clips(clips, test_fraction=0.25, seed=5)) == "test"
    assert is_test.reshape(10, 4).sum(axis=1).tolist() == [1] * 10


def test_groups_stay_together() -> None:
    clips = table(50, videos=7)
    clips["side"] = split_clips(clips, test_fraction=0.3, seed=0, group_by="video")
    assert (clips.groupby("video")["side"].nunique() == 1).all()
    assert (clips["side"] == "test").sum() == pytest.approx(15, abs=7)


def test_errors_of_a_split() -> None:
    clips = table(10)
    with pytest.raises(UsageError, match="test_fraction is 1; it must lie between 0 and 1"):
        split_clips(clips, test_fraction=1)
    with pytest.raises(DataError, match="at least 2 clips"):
        split_clips(clips[:1])
    with pytest.raises(UsageError, match="no column 'city' to group by; there are clip_id"):
        split_clips(clips, group_by="city")
    with pytest.raises(DataError, match=r"all 10 clips have the video 'v'; .* needs two or more"):
        split_clips(clips.assign(video="v"), group_by="video")
    with pytest.raises(DataError, match="1 of 10 clips have no video"):
        split_clips(clips.assign(video=["", *"abcdefghi"]), group_by="video")


def test_folds_are_equally_large_and_spread() -> None:
    clips = table(39)
    fold = fold_numbers(clips, num_folds=4, seed=0)
    assert sorted(np.bincount(fold)) == [9, 10, 10, 10]
    in_order = fold[np.argsort(clips["score"], kind="stable")]
    assert all(set(in_order[i : i + 4]) == {0, 1, 2, 3} for i in range(0, 36, 4))
    assert fold.tolist() == fold_numbers(clips, num_folds=4, seed=0).tolist()
    assert fold.tolist() != fold_numbers(clips, num_folds=4, seed=1).tolist()
    with pytest.raises(DataError, match="3 clips cannot be divided into 4 folds"):
        fold_numbers(clips[:3], num_folds=4, seed=0)


def test_a_split_is_written_beside_the_official_one(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    rows = [f"c{i},v{i % 4},{i},{'test' if i % 3 else 'train'}\n" for i in range(12)]
    path.write_text("clip_id,video,score,split\n" + "".join(rows))
    before = read_manifest(path).clips
    written = split_manifest(read_manifest(path), group_by="video", seed=2)
    after = read_manifest(path).clips
    assert written.column == "split_by_video"
    assert written.counts == {"train": 9, "test": 3}
    pd.testing.assert_frame_equal(after[before.columns.tolist()], before)
    assert after["split_by_video"].value_counts().to_dict() == written.counts
    with pytest.raises(UsageError, match="'split_by_video' already; --column split_by_video repl"):
        split_manifest(read_manifest(path), group_by="video")
    with pytest.raises(UsageError, match="column 'score' has a meaning of its own"):
        split_manifest(read_manifest(path), column="score")
    assert split_manifest(read_manifest(path), column="split").column == "split"


def test_without_a_split_it_goes_into_the_column_split(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("clip_id,video,score\n" + "".join(f"c{i},v,{i}\n" for i in range(8)))
    assert split_manifest(read_manifest(path)).column == "split"
    assert read_manifest(path).clips["split"].value_counts().to_dict() == {"train": 6, "test": 2}


def test_real_mtl_aqa_by_broadcast() -> None:
    from aqa_pipeline.datasets.mtl_aqa import import_mtl_aqa

    clips = import_mtl_aqa(real_annotations("mtl_aqa")).clips
    assert clips.groupby("video")["split"].nunique().tolist() == [2] * 15
    sides = pd.Series(split_clips(clips, group_by="video"))
    assert sides.groupby(clips["video"].to_numpy()).nunique().tolist() == [1] * 15
    assert (sides == "test").sum() == pytest.approx(353, abs=40)


@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=8),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 5),
)
def test_groups_go_whole_and_neither_side_is_empty(
    sizes: list[int], fraction: float, seed: int
) -> None:
    group = np.repeat(np.arange(len(sizes)), sizes)
    scores = np.random.default_rng(seed).normal(size=len(group))
    drawn = draw_groups(group, scores, fraction=fraction, random=np.random.default_rng(seed))
    assert 0 < drawn.sum() < len(group)
    assert all(len(set(drawn[group == g])) == 1 for g in range(len(sizes)))


def test_of_groups_of_one_size_those_with_ordinary_scores_are_drawn() -> None:
    # Two of four groups; only 0 with 3, or 1 with 2, has the mean of all.
    group = np.repeat(np.arange(4), 5)
    scores = np.repeat([10.0, 20.0, 30.0, 40.0], 5)
    drawn = draw_groups(group, scores, fraction=0.5, random=np.random.default_rng(1))
    assert drawn.sum() == 10
    assert scores[drawn].mean() == pytest.approx(25)


def test_equal_scores_are_no_division_by_zero() -> None:
    group = np.repeat(np.arange(5), 2)
    drawn = draw_groups(group, np.ones(10), fraction=0.4, random=np.random.default_rng(0))
    assert drawn.sum() == 4
