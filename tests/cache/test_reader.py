from __future__ import annotations

import logging
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aqa_pipeline.cache import reader as feature_cache
from aqa_pipeline.cache.compact import compact
from aqa_pipeline.cache.fingerprint import ensure_cache
from aqa_pipeline.cache.reader import ClipQuery, FeatureCache
from aqa_pipeline.cache.segment import SegmentIndex, SegmentTable, segment_name
from aqa_pipeline.cache.segment_file import read_index, write_segment
from aqa_pipeline.errors import CacheError, DataError
from tests.support.cache_data import DIM, FINGERPRINT, SNIPPETS, Clock, make_clip, want, write


def test_an_empty_cache_has_nothing(tmp_path: Path) -> None:
    ensure_cache(tmp_path, FINGERPRINT)
    cache = FeatureCache.open(tmp_path, fingerprint=FINGERPRINT)
    assert cache.clip_ids() == set()
    assert cache.cached(want([make_clip("a")])).tolist() == [[False]]
    assert cache.load(want([])).values.shape[0] == 0


def test_features_come_in_the_order_asked_for(tmp_path: Path) -> None:
    clips = [make_clip(f"c{i}") for i in range(10)]
    paths = write(tmp_path, clips, flush_clips=3)
    assert len(paths) == 4
    cache = FeatureCache.open(tmp_path)
    asked = [clips[i] for i in (7, 0, 9, 3)]
    features = cache.load(want(asked), verify=True)
    assert features.clip_ids == ("c7", "c0", "c9", "c3")
    assert features.values.dtype == np.float32
    assert features.values.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(features.values, [clip.features for clip in asked])


def test_a_cache_is_looked_at_by_clip(tmp_path: Path) -> None:
    clips = [make_clip("b"), make_clip("a")]
    write(tmp_path / "data" / "i3d", clips)
    cache = FeatureCache.open(str(tmp_path / "data" / "i3d"))
    assert (len(cache), list(cache)) == (2, ["a", "b"])
    assert "a" in cache
    assert "c" not in cache
    np.testing.assert_array_equal(cache["b"], clips[0].features[0])
    with pytest.raises(CacheError, match=r"features of 1 of 1 clips are missing \('c'\)"):
        cache["c"]
    assert repr(cache) == f"FeatureCache(data/i3d: 2 clips, {SNIPPETS} snippets x {DIM})"
    cache.segments.clear()
    assert repr(cache) == "FeatureCache(data/i3d: 0 clips)"


def test_small_pieces_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [make_clip(f"c{i}") for i in range(10)]
    write(tmp_path, clips)
    monkeypatch.setattr("aqa_pipeline.cache.segment_file.BLOCK_BYTES", 3 * SNIPPETS * DIM * 4)
    values = FeatureCache.open(tmp_path).load(want(clips[::-1][2:]), verify=True).values
    np.testing.assert_array_equal(values, [clip.features for clip in clips[::-1][2:]])


def test_a_clip_of_another_source_or_window_is_no_hit(tmp_path: Path) -> None:
    write(tmp_path, [make_clip("a"), make_clip("b"), make_clip("c")])
    cache = FeatureCache.open(tmp_path)
    wanted = want(
        [
            make_clip("a"),
            make_clip("b", source_id="source-2"),
            make_clip("c", first_frame=1),
            make_clip("d"),
        ]
    )
    assert cache.cached(wanted)[:, 0].tolist() == [True, False, False, False]
    assert cache.outdated(wanted).tolist() == [False, True, True, False]
    with pytest.raises(
        CacheError,
        match=r"3 of 4 clips are missing \('b', 'c', 'd'\); 2 of them are here for another "
        r"video file or window; type `aqa extract --dataset .*` first",
    ):
        cache.load(wanted)


def test_a_window_that_differs_in_its_last_position_only_is_outdated(tmp_path: Path) -> None:
    clip = make_clip("a")
    write(tmp_path, [clip])
    frames = clip.frame_index.copy()
    frames[-1] += 1  # as an edit of end_frame may do where frames are spaced evenly
    moved = want([replace(clip, frame_index=frames)])
    cache = FeatureCache.open(tmp_path)
    assert not cache.cached(moved).any()
    assert cache.outdated(moved).tolist() == [True]


@pytest.mark.parametrize("num_snippets", [SNIPPETS - 1, SNIPPETS + 1])
def test_a_segment_of_more_or_fewer_snippets_is_not_data(tmp_path: Path, num_snippets: int) -> None:
    ensure_cache(tmp_path, FINGERPRINT)
    clip = make_clip("a")
    write_segment(
        tmp_path / segment_name(Clock().utc_now()),
        fingerprint_sha256=FINGERPRINT.sha256,
        table=SegmentTable(
            view_names=("plain",),
            clip_ids=[b"a"],
            source_ids=[b"source-1"],
            frame_index=clip.frame_index[None],
            pts_seconds=clip.pts_seconds[None],
            digests=np.zeros((1, 32), np.uint8),
        ),
        feature_blocks=[np.zeros((1, 1, num_snippets, DIM), np.float32)],
        feature_shape=(1, 1, num_snippets, DIM),
        machines=[{"cpu": "test"}],
        now=Clock().utc_now(),
    )
    cache = FeatureCache.open(tmp_path)
    assert cache.segments == []
    assert f"{num_snippets} snippets a clip, expected {SNIPPETS}" in cache.damaged[0].reason


def test_the_newest_segment_that_matches_wins(tmp_path: Path) -> None:
    clock = Clock()
    write(tmp_path, [make_clip("a", value=1)], clock=clock)
    write(tmp_path, [make_clip("a", value=2)], clock=clock)
    write(tmp_path, [make_clip("a", source_id="other", value=3)], clock=clock)
    cache = FeatureCache.open(tmp_path)
    assert np.unique(cache.load(want([make_clip("a")])).values).tolist() == [2]


def test_missing_views_are_added_later_without_view_0(tmp_path: Path) -> None:
    clock = Clock()
    plain = [make_clip(name, value=0) for name in "ab"]
    write(tmp_path, plain, clock=clock)
    write(tmp_path, [make_clip("b", view_names=("flip", "shift+1"), value=1)], clock=clock)
    cache = FeatureCache.open(tmp_path)
    views = ("plain", "flip")
    assert cache.cached(want(plain), view_names=views).tolist() == [[True, False], [True, True]]
    with pytest.raises(CacheError, match=r"1 of 2 clips are missing in view flip \('a'\)"):
        cache.load(want(plain), view_names=views)
    loaded = cache.load(want(plain[1:]), view_names=("shift+1", "plain"))
    assert loaded.values[0, :, 0, 0].tolist() == [1, 0]


def test_one_writer_may_mix_sets_of_views(tmp_path: Path) -> None:
    clips = [make_clip("a"), make_clip("b", view_names=("plain", "flip"))]
    assert len(write(tmp_path, clips)) == 2
    assert FeatureCache.open(tmp_path).cached(want(clips)).all()


def test_a_damaged_segment_is_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = [make_clip("a"), make_clip("b")]
    bad, _ = write(tmp_path, clips, flush_clips=1)
    bad.write_bytes(bad.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        cache = FeatureCache.open(tmp_path)
        cache.refresh()
    assert cache.clip_ids() == {"b"}
    assert [damage.path for damage in cache.damaged] == [bad]
    assert len(caplog.records) == 1
    assert str(bad) in caplog.text


def test_a_segment_of_another_fingerprint_is_not_data(tmp_path: Path) -> None:
    (path,) = write(tmp_path / "a", [make_clip("a")])
    ensure_cache(tmp_path / "b", replace(FINGERPRINT, precision="float16"))
    shutil.copy(path, tmp_path / "b")
    cache = FeatureCache.open(tmp_path / "b")
    assert cache.segments == []
    assert "fingerprint" in cache.damaged[0].reason


def test_a_temporary_is_not_a_segment(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [make_clip("a")])
    path.rename(tmp_path / f".tmp-host-1-00000000--{path.name}")
    assert FeatureCache.open(tmp_path).clip_ids() == set()


def test_loading_with_verify_does_not_trust_a_wrong_hash(tmp_path: Path) -> None:
    clock = Clock()
    old = write(tmp_path, [make_clip("a")], clock=clock)[0]
    new = write(tmp_path, [make_clip("a")], clock=clock)[0]
    for path in (new, old):
        data = bytearray(path.read_bytes())
        at = bytes(data).index(make_clip("a").features.tobytes())
        data[at] ^= 4
        path.write_bytes(data)
        cache = FeatureCache.open(tmp_path)
        if path == new:  # the older copy is still sound
            values = cache.load(want([make_clip("a")]), verify=True).values
            np.testing.assert_array_equal(values[0], make_clip("a").features)
    with pytest.raises(CacheError, match="1 of 1 clips are missing"):
        cache.load(want([make_clip("a")]), verify=True)


def test_a_segment_that_vanishes_between_open_and_load_is_found_again(tmp_path: Path) -> None:
    clips = [make_clip(f"c{i}") for i in range(6)]
    write(tmp_path, clips, flush_clips=2)
    cache = FeatureCache.open(tmp_path)
    compact(tmp_path)
    np.testing.assert_array_equal(cache.load(want(clips)).values, [clip.features for clip in clips])
    assert len(cache.segments) == 1


def test_a_segment_that_vanishes_while_listing_is_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [make_clip(f"c{i}") for i in range(6)]
    write(tmp_path, clips, flush_clips=2)
    calls: list[Path] = []

    def compact_first(path: Path, **arguments: str) -> SegmentIndex:
        calls.append(path)
        if len(calls) == 2:
            compact(tmp_path)
        return read_index(path, **arguments)

    monkeypatch.setattr(feature_cache, "read_index", compact_first)
    assert FeatureCache.open(tmp_path).cached(want(clips)).all()


def test_a_listing_that_differs_from_the_one_before_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip("a")
    paths = write(tmp_path, [clip])
    # The first listing passed the place of a merged segment before it was there.
    listings = iter([[], paths, paths])
    monkeypatch.setattr(Path, "glob", lambda *_: next(listings))
    assert FeatureCache.open(tmp_path).cached(want([clip])).all()


def test_readers_beside_writers_and_compactions_see_every_clip(tmp_path: Path) -> None:
    clips = [make_clip(f"c{i}") for i in range(40)]
    write(tmp_path, clips[:20], flush_clips=1)
    wanted = want(clips[:20])
    done = threading.Event()

    def churn() -> None:
        try:
            for clip in clips[20:]:
                write(tmp_path, [clip])
                compact(tmp_path)
        finally:
            done.set()

    thread = threading.Thread(target=churn)
    thread.start()
    rounds = 0
    while not done.is_set():
        cache = FeatureCache.open(tmp_path)
        assert not cache.damaged
        values = cache.load(wanted).values
        np.testing.assert_array_equal(values, [clip.features for clip in clips[:20]])
        rounds += 1
    thread.join()
    assert rounds > 1
    assert FeatureCache.open(tmp_path).cached(want(clips)).all()


def test_two_writers_on_one_folder_lose_nothing(tmp_path: Path) -> None:
    clips = [make_clip(f"c{i}") for i in range(60)]
    threads = [
        threading.Thread(target=write, args=(tmp_path, part), kwargs={"flush_clips": 4})
        for part in (clips[:40], clips[20:])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache = FeatureCache.open(tmp_path)
    assert not cache.damaged
    np.testing.assert_array_equal(
        cache.load(want(clips), verify=True).values, [clip.features for clip in clips]
    )


def test_a_request_that_contradicts_itself_is_refused() -> None:
    frames = np.zeros((2, 3), np.int64)
    with pytest.raises(DataError, match="clip id 'a' is asked for twice"):
        ClipQuery(["a", "a"], ["s", "s"], frames)
    with pytest.raises(DataError, match="do not belong together"):
        ClipQuery(["a", "b"], ["s"], frames)


def test_windows_of_another_length_are_no_hit(tmp_path: Path) -> None:
    write(tmp_path, [make_clip("a")])
    wanted = ClipQuery(["a"], ["source-1"], np.zeros((1, 3), np.int64))
    cache = FeatureCache.open(tmp_path)
    assert not cache.cached(wanted).any()
    assert cache.outdated(wanted).all()


def test_stored_tells_the_newest_source_and_window(tmp_path: Path) -> None:
    clock = Clock()
    write(tmp_path, [make_clip("a"), make_clip("b")], clock=clock)
    newest = make_clip("a", source_id="source-2", first_frame=4)
    write(tmp_path, [newest, make_clip("c", view_names=("flip",))], clock=clock)
    cache = FeatureCache.open(tmp_path)
    stored = cache.stored(["b", "nowhere", "c", "a"])
    assert stored.clip_ids == ["b", "a"]
    assert stored.source_ids == ["source-1", "source-2"]
    np.testing.assert_array_equal(cache.load(stored).values[1], newest.features)
    assert cache.stored([]).frame_index.shape == (0, newest.frame_index.size)


def test_missing_clips_are_named(tmp_path: Path) -> None:
    ensure_cache(tmp_path / "mtl" / "i3d", FINGERPRINT)
    cache = FeatureCache.open(tmp_path / "mtl" / "i3d")
    with pytest.raises(
        CacheError,
        match=r"4 of 9 clips are missing \('a', 'b', 'c', ...\); type `aqa extract --dataset mtl`",
    ):
        raise cache.missing(list("abcd"), asked=9)
