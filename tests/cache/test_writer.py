from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.cache.writer import SegmentWriter
from aqa_pipeline.config import ExtractConfig
from aqa_pipeline.errors import CacheError, ClipError, DataError, SetupError
from tests.support.cache_data import DIM, FINGERPRINT, Clock, make_clip, want


def writer(folder: Path, clock: Clock, *, clips: int = 3, seconds: float = 60.0) -> SegmentWriter:
    return SegmentWriter(
        folder,
        FINGERPRINT,
        config=ExtractConfig(flush_clips=clips, flush_seconds=seconds),
        machine={"cpu": "test"},
        monotonic=clock.monotonic,
        utc_now=clock.utc_now,
    )


def test_a_segment_after_so_many_clips(tmp_path: Path) -> None:
    with writer(tmp_path, Clock()) as out:
        assert out.add(make_clip("a")) == []
        assert out.add(make_clip("b")) == []
        (path,) = out.add(make_clip("c"))
        assert path.exists()
        assert out.num_pending == 0
        out.add(make_clip("d"))
    assert len(out.written) == 2
    assert FeatureCache.open(tmp_path).clip_ids() == set("abcd")


def test_a_segment_after_so_many_seconds(tmp_path: Path) -> None:
    clock = Clock()
    out = writer(tmp_path, clock, seconds=10)
    clock.seconds = 100.0  # idle before the first clip does not count
    assert out.add(make_clip("a")) == []
    clock.seconds = 109.0
    assert out.flush_if_due() == []
    clock.seconds = 110.0
    assert len(out.flush_if_due()) == 1
    assert out.flush_if_due() == []


def test_ctrl_c_writes_what_is_done(tmp_path: Path) -> None:
    def interrupted() -> None:
        with writer(tmp_path, Clock()) as out:
            out.add(make_clip("a"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert FeatureCache.open(tmp_path).clip_ids() == {"a"}


def test_the_buffer_of_the_caller_may_be_used_again(tmp_path: Path) -> None:
    clip = make_clip("a")
    expected = clip.features.copy()
    with writer(tmp_path, Clock()) as out:
        out.add(clip)
        clip.features[:] = 0
        clip.frame_index[:] = 0
    values = FeatureCache.open(tmp_path).load(want([make_clip("a")]), verify=True).values
    np.testing.assert_array_equal(values[0], expected)


def test_after_a_full_disk_the_same_clips_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = writer(tmp_path, Clock())
    out.add(make_clip("a"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SetupError, match="no space left to write segment-") as caught:
            out.flush()
    assert caught.value.exit_code == 6
    assert [path.name for path in tmp_path.iterdir()] == ["fingerprint.json"]
    out.flush()
    assert FeatureCache.open(tmp_path).clip_ids() == {"a"}


def test_a_folder_of_another_fingerprint_is_refused(tmp_path: Path) -> None:
    writer(tmp_path, Clock())
    with pytest.raises(CacheError, match="window_rule: first here, last there"):
        SegmentWriter(tmp_path, replace(FINGERPRINT, window_rule="first"))


def test_clips_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    out = writer(tmp_path, Clock())
    good = make_clip("a")
    infinite = good.features.copy()
    infinite[0, 0, 0] = np.inf
    with pytest.raises(ClipError, match=r"clip 'a': .* not finite") as caught:
        out.add(replace(good, features=infinite))
    assert caught.value.stage == "network"
    with pytest.raises(DataError, match=r"features of shape \(1, 1, 5\), expected \(1 views, 2"):
        out.add(replace(good, features=good.features[:, :1]))
    with pytest.raises(DataError, match="positions"):
        out.add(replace(good, frame_index=good.frame_index[1:]))
    with pytest.raises(DataError, match="one name each"):
        out.add(make_clip("a", view_names=("flip", "flip")))
    out.add(good)
    with pytest.raises(DataError, match=f"features of {DIM - 1} numbers, expected {DIM}"):
        out.add(replace(good, features=good.features[..., 1:]))
    assert out.num_pending == 1
