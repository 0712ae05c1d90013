from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aqa_pipeline.atomic import host_name, stale_temporaries
from aqa_pipeline.cache.compact import collect_garbage, compact
from aqa_pipeline.cache.failures import Failure, FailureLog
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.cache.verify import cache_info, quarantine, verify
from aqa_pipeline.errors import CacheError
from tests.support.cache_data import FINGERPRINT, damage, make_clip, write


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


def test_verify_tells_how_far_it_is(tmp_path: Path) -> None:
    write(tmp_path, [make_clip(n) for n in "abcde"], flush_clips=2)
    told: list[tuple[int, int]] = []
    verify(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 5), (2, 5), (4, 5), (5, 5)]


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
