"""One HDF5 file: segments, whole or not at all, damage never read as data."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aqa_pipeline import atomic
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.cache.segment import (
    SegmentDamagedError,
    SegmentGoneError,
    SegmentIndex,
    SegmentTable,
    segment_name,
)
from aqa_pipeline.cache.segment_file import (
    damaged_clips,
    read_features,
    read_index,
    read_table,
    write_segment,
)
from aqa_pipeline.errors import DataError, SetupError
from aqa_pipeline.runs.exemplars import write_bank
from tests.support.cache_data import DIM, FINGERPRINT, SNIPPETS, make_clip, want, write
from tests.support.places import DATA, ROOT

VERSION_1 = DATA / "segment-v1.h5"
VERSION_1_FINGERPRINT = "0123456789abcdef" * 4


def segment(folder: Path, count: int = 6) -> Path:
    (path,) = write(folder, [make_clip(f"clip-{i}") for i in range(count)])
    return path


def index_of(path: Path) -> SegmentIndex:
    return read_index(path, fingerprint_sha256=FINGERPRINT.sha256)


def test_version_1_stays_readable() -> None:
    index = read_index(VERSION_1, fingerprint_sha256=VERSION_1_FINGERPRINT)
    assert [name.decode() for name in index.clip_ids] == ["dive-1", "Sprung Ü 2", "飛び込み 3"]
    assert index.source_ids == [b"sha256-aa-100", b"sha256-aa-100", b"sha256-bb-200"]
    assert index.view_names == ("plain", "flip")
    assert index.frame_index[:, 0].tolist() == [-2, 50, 108_168]
    assert index.created_utc == "2026-01-02T03:04:05.000006+00:00"
    assert index.machines == [{"cpu": "any", "torch": "2.13.0"}]
    ((start, features),) = read_features(index)
    assert start == 0
    np.testing.assert_array_equal(features.ravel(), np.arange(48) / 8)
    np.testing.assert_array_equal(read_table(index).pts_seconds[0, :4], [0, 0, 0, 0.04])
    assert damaged_clips(index) == []


def test_what_is_written_has_the_layout_of_version_1(tmp_path: Path) -> None:
    with h5py.File(segment(tmp_path), "r") as ours, h5py.File(VERSION_1, "r") as first:
        assert set(ours) == set(first)
        assert set(ours.attrs) == set(first.attrs)
        for name in first:
            assert ours[name].dtype.kind == first[name].dtype.kind
            assert ours[name].ndim == first[name].ndim
            if first[name].dtype.kind != "S":
                assert ours[name].dtype == first[name].dtype
        assert ours["features"].shape == (6, 1, SNIPPETS, DIM)


def test_names_sort_by_time_and_never_repeat() -> None:
    early, late = (datetime(2026, 1, 2, tzinfo=UTC, microsecond=n) for n in (9, 10))
    assert segment_name(early)[:32] == "segment-20260102T000000.000009Z-"
    assert segment_name(early) < segment_name(late)
    assert segment_name(early) != segment_name(early)


def test_a_missing_file_is_gone_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(SegmentGoneError, match="no such file"):
        index_of(tmp_path / "segment-x.h5")


def test_truncation_at_any_length_is_never_read_as_data(tmp_path: Path) -> None:
    path = segment(tmp_path)
    whole = path.read_bytes()
    lengths = random.Random(0).sample(range(len(whole)), 100)
    for length in [0, 1, len(whole) - 1, *lengths]:
        path.write_bytes(whole[:length])
        with pytest.raises(SegmentDamagedError, match="segment-"):
            index_of(path)


def test_every_flipped_bit_of_the_features_is_caught(tmp_path: Path) -> None:
    path = segment(tmp_path)
    with h5py.File(path, "r") as file:
        offset, size = file["features"].id.get_offset(), file["features"].id.get_storage_size()
    whole = path.read_bytes()
    draw = random.Random(1)
    for _ in range(60):
        byte, bit = draw.randrange(size), draw.randrange(8)
        data = bytearray(whole)
        data[offset + byte] ^= 1 << bit
        path.write_bytes(data)
        assert damaged_clips(index_of(path)) == [byte // (size // 6)]


def test_a_flipped_bit_anywhere_is_caught_or_changes_nothing(tmp_path: Path) -> None:
    path = segment(tmp_path)
    whole = path.read_bytes()
    index = index_of(path)
    expected = next(block for _, block in read_features(index))
    draw = random.Random(2)
    for _ in range(150):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            found = index_of(path)
            if damaged_clips(found):
                continue
        except SegmentDamagedError:
            continue
        assert found.clip_ids == index.clip_ids
        assert found.source_ids == index.source_ids
        np.testing.assert_array_equal(found.frame_index, index.frame_index)
        np.testing.assert_array_equal(next(read_features(found))[1], expected)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda file: file.attrs.__setitem__("format_version", 2),
            "format version 2, this program",
        ),
        (lambda file: file.attrs.__setitem__("format", "other"), "format 'other', expected"),
        (lambda file: file.attrs.__setitem__("fingerprint", "ff" * 32), "fingerprint ffffffffffff"),
        (lambda file: file.attrs.__delitem__("created_utc"), "attribute 'created_utc' is missing"),
        (lambda file: file.__delitem__("pts_seconds"), "holds no 'pts_seconds'"),
        (lambda file: file.__delitem__("clip_id"), "holds no 'clip_id'"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change, sentence: str) -> None:  # type: ignore[no-untyped-def]
    path = segment(tmp_path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(SegmentDamagedError, match=sentence):
        index_of(path)


def test_wrong_dtype_and_unwritten_features_are_refused(tmp_path: Path) -> None:
    path = segment(tmp_path)
    with h5py.File(path, "r+") as file:
        shape = file["features"].shape
        del file["features"]
        file.create_dataset("features", shape=shape, dtype="<f8")
    with pytest.raises(SegmentDamagedError, match=r"'features' is float64 .* expected float32"):
        index_of(path)
    with h5py.File(path, "r+") as file:
        del file["features"]
        file.create_dataset("features", shape=shape, dtype="<f4")
    with pytest.raises(SegmentDamagedError, match="never written"):
        index_of(path)


def test_reading_takes_no_lock(tmp_path: Path) -> None:
    path = segment(tmp_path)
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as a program that opened it for writing would
        assert index_of(path).num_clips == 6


class _SmallDisk:
    """Stands for a file on a disk with so many bytes left."""

    def __init__(self, file, left: int) -> None:  # type: ignore[no-untyped-def]
        self._file, self._left = file, left

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self._file.write(data))

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        return getattr(self._file, name)

    def __enter__(self) -> _SmallDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@pytest.mark.parametrize("left", [0, 100, 1000, 2500, 4096, 8000, 8500, 9000])
def test_disk_full_leaves_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    real_open = open
    with monkeypatch.context() as patch:
        patch.setattr(
            atomic, "open", lambda *args: _SmallDisk(real_open(*args), left), raising=False
        )
        with pytest.raises(SetupError, match=r"no space left to write .*: free some space"):
            write_bank(
                tmp_path / "b.h5", features=np.ones((50, 40), np.float32), columns={}, attributes={}
            )
    assert list(tmp_path.iterdir()) == []
    write_bank(tmp_path / "b.h5", features=np.ones((50, 40), np.float32), columns={}, attributes={})


def test_ctrl_c_inside_a_write_is_ctrl_c_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = open

    class Interrupted(_SmallDisk):
        def write(self, data: bytes) -> int:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "open", lambda *args: Interrupted(real_open(*args), 0), raising=False)
        with pytest.raises(KeyboardInterrupt):
            write_bank(
                tmp_path / "b.h5", features=np.ones((1, 2), np.float32), columns={}, attributes={}
            )
    assert list(tmp_path.iterdir()) == []


def test_a_fsync_that_fails_is_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SetupError, match="no space left"):
        write_bank(
            tmp_path / "b.h5", features=np.ones((1, 2), np.float32), columns={}, attributes={}
        )
    assert list(tmp_path.iterdir()) == []


def test_read_only_folder_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(atomic, "open", refuse, raising=False)  # root may write anywhere
    with pytest.raises(SetupError, match=r"cannot write here \(Permission denied\)"):
        write_bank(
            tmp_path / "b.h5", features=np.ones((1, 2), np.float32), columns={}, attributes={}
        )


def test_too_few_features_for_the_table_write_nothing(tmp_path: Path) -> None:
    table = SegmentTable(
        ("plain",),
        [b"a", b"b"],
        [b"s", b"s"],
        np.zeros((2, 3), np.int64),
        np.zeros((2, 3)),
        np.zeros((2, 32), np.uint8),
    )
    with pytest.raises(DataError, match="1 clips of features for 2 rows"):
        write_segment(
            tmp_path / "segment-x.h5",
            fingerprint_sha256="00" * 32,
            table=table,
            feature_blocks=[np.zeros((1, 1, 2, 3), np.float32)],
            feature_shape=(2, 1, 2, 3),
            machines=[],
            now=datetime.now(UTC),
        )
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from aqa_pipeline.config import ExtractConfig
from aqa_pipeline.cache.writer import SegmentWriter
from tests.support.cache_data import FINGERPRINT, make_clip
print("ready", flush=True)
with SegmentWriter(Path(sys.argv[1]), FINGERPRINT, config=ExtractConfig(flush_clips=3)) as writer:
    for number in range(10**9):
        for path in writer.add(make_clip(f"{number}")):
            print(path, flush=True)
"""


def test_kill_at_random_moments_leaves_no_unreadable_segment(tmp_path: Path) -> None:
    draw = random.Random(3)
    announced: set[str] = set()
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "c"), str(ROOT)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        for _ in range(draw.randrange(2, 12)):
            announced.add(writer.stdout.readline().strip())
        writer.kill()
        announced |= set(writer.stdout.read().splitlines())
        writer.wait()
        writer.stdout.close()
    announced.discard("ready")
    cache = FeatureCache.open(tmp_path / "c")
    assert not cache.damaged
    assert announced <= {str(segment.path) for segment in cache.segments}
    assert not any(damaged_clips(segment) for segment in cache.segments)


def test_odd_ids_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="NUL character"):
        write(tmp_path, [make_clip("a\0b")])
    with pytest.raises(DataError, match="not valid text"):
        write(tmp_path, [make_clip("a", source_id="\ud800")])


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(TEXT, min_size=1, max_size=5, unique=True), source=TEXT)
@example(ids=["a\nb", "", " ", "飛び込み", "a "], source="")
def test_any_text_comes_back(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], source: str
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    clips = [make_clip(name, source_id=source) for name in ids]
    write(folder, clips)
    cache = FeatureCache.open(folder)
    assert cache.clip_ids() == set(ids)
    values = cache.load(want(clips), verify=True).values
    np.testing.assert_array_equal(values, [clip.features for clip in clips])


def test_the_store_does_not_import_torch_or_pandas() -> None:
    code = (
        "import sys, json, aqa_pipeline.cache.verify, aqa_pipeline.cache.writer\n"
        "print(json.dumps([m for m in ('torch', 'pandas', 'av', 'scipy') if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []
