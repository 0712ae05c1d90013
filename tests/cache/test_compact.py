from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from aqa_pipeline.cache import compact as compaction
from aqa_pipeline.cache.compact import collect_garbage, compact
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.cache.segment_file import read_features
from aqa_pipeline.cache.verify import verify
from aqa_pipeline.errors import SetupError
from tests.support.cache_data import Clock, damage, make_clip, want, write


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_compact_merges_each_set_of_views_and_drops_copies(tmp_path: Path) -> None:
    clock = Clock()
    clips = [make_clip(f"c{i}") for i in range(7)]
    write(tmp_path, clips, clock=clock, flush_clips=2)
    write(tmp_path, clips[:3], clock=clock)
    flipped = [make_clip(f"c{i}", view_names=("flip",)) for i in range(4)]
    write(tmp_path, flipped, clock=clock, flush_clips=2)
    changed = make_clip("c0", source_id="new video")
    write(tmp_path, [changed], clock=clock)
    before = names(tmp_path)
    planned = compact(tmp_path, dry_run=True)
    assert names(tmp_path) == before
    assert planned.written == []
    done = compact(tmp_path)
    assert done.merged == planned.merged
    assert done.num_clips == planned.num_clips == 12
    assert len(done.written) == 2
    assert names(tmp_path) == {"fingerprint.json", *(path.name for path in done.written)}
    assert verify(tmp_path).damaged == []
    cache = FeatureCache.open(tmp_path)
    np.testing.assert_array_equal(cache.load(want(clips)).values, [c.features for c in clips])
    np.testing.assert_array_equal(
        cache.load(want(flipped), view_names=("flip",)).values, [c.features for c in flipped]
    )
    assert cache.cached(want([changed])).all()
    assert compact(tmp_path).merged == []


def test_compact_leaves_a_damaged_segment_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, *_ = write(tmp_path, [make_clip(n) for n in "abc"], flush_clips=1)
    damage(first, "a")
    done = compact(tmp_path)
    assert first not in done.merged
    assert first.exists()
    assert done.num_clips == 2
    assert "damaged" in caplog.text


def test_garbage_is_what_newer_segments_hold(tmp_path: Path) -> None:
    clock = Clock()
    (old,) = write(tmp_path, [make_clip("a"), make_clip("b")], clock=clock)
    (both,) = write(tmp_path, [make_clip("a", view_names=("plain", "flip"))], clock=clock)
    assert collect_garbage(tmp_path).segments == []  # b is only in the old one
    (new,) = write(tmp_path, [make_clip("b")], clock=clock)
    planned = collect_garbage(tmp_path, dry_run=True)
    assert planned.segments == [old]
    assert planned.num_bytes == old.stat().st_size
    assert old.exists()
    damage(new, "b")  # now the old copy of b is the only sound one
    assert collect_garbage(tmp_path).segments == []
    new.unlink()
    write(tmp_path, [make_clip("b")], clock=clock)
    assert collect_garbage(tmp_path).segments == [old]
    assert not old.exists()
    assert both.exists()


def test_garbage_with_a_manifest_is_what_it_does_not_want(tmp_path: Path) -> None:
    clips = [make_clip("a"), make_clip("b", first_frame=3)]
    kept, gone = write(tmp_path, clips, flush_clips=1)
    garbage = collect_garbage(tmp_path, wanted=want([make_clip("a"), make_clip("b")]))
    assert garbage.segments == [gone]
    assert kept.exists()
    assert not gone.exists()


def test_compact_reads_every_segment_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write(tmp_path, [make_clip(f"c{i}") for i in range(6)], flush_clips=2)
    read: list[Path] = []
    real = read_features

    def counted(segment, **range_):  # type: ignore[no-untyped-def]
        read.append(segment.path)
        return real(segment, **range_)

    monkeypatch.setattr(compaction, "read_features", counted)
    monkeypatch.setattr(compaction, "damaged_clips", lambda segment: pytest.fail("hashed twice"))
    assert compact(tmp_path).merged == paths == read


def test_compact_without_space_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [make_clip(n) for n in "abc"], flush_clips=1)
    before = names(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 1000))
    with pytest.raises(SetupError, match=r"merging needs 0 MB .* 0 MB are free; nothing was"):
        compact(tmp_path)
    assert names(tmp_path) == before
