from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from aqa_pipeline.atomic import host_name, stale_temporaries
from aqa_pipeline.cache_upkeep import cache_info, collect_garbage, compact, quarantine, verify
from aqa_pipeline.errors import CacheError
from aqa_pipeline.failures import Failure, FailureLog
from aqa_pipeline.feature_cache import FeatureCache
from tests.cache_data import FINGERPRINT, Clock, make_clip, want, write


def damage(path: Path, clip_id: str) -> None:
    data = bytearray(path.read_bytes())
    data[bytes(data).index(make_clip(clip_id).features.tobytes())] ^= 1
    path.write_bytes(data)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_info_counts(tmp_path: Path) -> None:
    paths = write(tmp_path, [make_clip("a"), make_clip("b", view_names=("plain", "flip"))])
    log = FailureLog(tmp_path)
    for name in ("a", "z"):
        log.append(Failure(name, "s", (0, 7), "decode", "bad packet"))
    info = cache_info(tmp_path)
    assert (info.num_segments, info.num_clips, info.num_failed) == (2, 2, 1)
    assert info.clips_of_view == {"plain": 2, "flip": 1}
    assert info.num_bytes == sum(path.stat().st_size for path in paths)
    assert info.machines == [{"cpu": "test"}]
    with pytest.raises(CacheError, match="no feature cache here"):
        cache_info(tmp_path / "none")


def test_verify_finds_and_quarantine_moves(tmp_path: Path) -> None:
    first, second, third = write(tmp_path, [make_clip(n) for n in "abcde"], flush_clips=2)
    damage(first, "b")
    second.write_bytes(b"nothing")
    found = verify(tmp_path)
    assert (found.num_segments, found.num_clips) == (2, 3)
    assert {item.path for item in found.damaged} == {first, second}
    assert "wrong hash in 1 of 2 clips ('b')" in {item.reason for item in found.damaged}
    before = names(tmp_path)
    quarantine(tmp_path, found.damaged, dry_run=True)
    assert names(tmp_path) == before
    moved = quarantine(tmp_path, found.damaged)
    assert {path.parent.name for path in moved} == {"quarantine"}
    assert all(path.exists() for path in moved)
    assert names(tmp_path) == {"fingerprint.json", third.name, "quarantine"}
    assert verify(tmp_path).damaged == []


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


def test_only_certainly_abandoned_temporaries_go(tmp_path: Path) -> None:
    write(tmp_path, [make_clip("a")])
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    old = time.time() - 7200

    def temporary(host: str, pid: int, *, age: bool = True) -> Path:
        path = tmp_path / f".tmp-{host}-{pid}-0123abcd--segment-{len(names(tmp_path))}.h5"
        path.write_bytes(b"x" * 10)
        if age:
            os.utime(path, (old, old))
        return path

    dead = temporary(host_name(), ended.pid)
    temporary(host_name(), ended.pid, age=False)
    temporary(host_name(), os.getpid())
    temporary("elsewhere", ended.pid)
    (tmp_path / ".tmp-mine").write_text("not ours")
    assert stale_temporaries(tmp_path) == [dead]
    assert len(cache_info(tmp_path).temporaries) == 4
    garbage = collect_garbage(tmp_path, dry_run=True)
    assert (garbage.temporaries, garbage.num_bytes) == ([dead], 10)
    collect_garbage(tmp_path)
    assert not dead.exists()
    assert len(cache_info(tmp_path).temporaries) == 3


def test_upkeep_of_an_empty_cache(tmp_path: Path) -> None:
    write(tmp_path, [])
    assert FeatureCache.open(tmp_path, fingerprint=FINGERPRINT).segments == []
    assert verify(tmp_path).damaged == []
    assert compact(tmp_path).written == []
    assert collect_garbage(tmp_path).segments == []
