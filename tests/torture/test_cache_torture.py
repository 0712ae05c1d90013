"""The feature cache under real processes, real file systems and real damage.

`make torture` runs these; they take minutes. Mounting needs root, elsewhere those tests
are skipped.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from aqa_cli.main import cli
from click.testing import CliRunner, Result

from aqa_pipeline.cache.compact import compact
from aqa_pipeline.cache.failures import Failure, FailureLog
from aqa_pipeline.cache.fingerprint import Fingerprint
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.cache.segment import ClipQuery, SegmentDamagedError
from aqa_pipeline.cache.segment_file import damaged_clips, read_index
from aqa_pipeline.cache.verify import verify
from aqa_pipeline.cache.writer import ClipFeatures, SegmentWriter
from aqa_pipeline.config import PIXEL_PRESETS, Protocol
from aqa_pipeline.errors import SetupError
from tests.support.places import ROOT

pytestmark = pytest.mark.torture

PROTOCOL = Protocol("torture")
FINGERPRINT = Fingerprint(
    backbone="i3d",
    weights_sha256="ef" * 32,
    pixels=PIXEL_PRESETS["kinetics"],
    window_rule=PROTOCOL.window_rule,
    window_frames=PROTOCOL.window_frames,
    snippet_frames=PROTOCOL.snippet_frames,
    snippet_starts=PROTOCOL.snippet_starts,
)


def real_clip(number: int) -> ClipFeatures:
    """A clip of the real size: 10 snippets of 1024 numbers, known from its number."""
    frames = np.arange(number, number + PROTOCOL.window_frames)
    features = np.random.default_rng(number).standard_normal((1, 10, 1024), dtype=np.float32)
    return ClipFeatures(f"clip-{number}", f"source-{number // 9}", frames, frames / 25, features)


def wanted(count: int) -> ClipQuery:
    clips = [real_clip(number) for number in range(count)]
    return ClipQuery(
        [clip.clip_id for clip in clips],
        [clip.source_id for clip in clips],
        np.array([clip.frame_index for clip in clips]),
    )


def right(cache: FeatureCache, count: int) -> bool:
    values = cache.load(wanted(count), verify=True).values
    return all(
        np.array_equal(values[number], real_clip(number).features) for number in range(count)
    )


#: Writes what is not there yet, in an order of its own, as an extraction would.
WRITER = """
import random, sys
from pathlib import Path
from aqa_pipeline.config import ExtractConfig
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.cache.writer import SegmentWriter
from tests.torture.test_cache_torture import FINGERPRINT, real_clip, wanted
folder, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
draw = random.Random(seed)
with SegmentWriter(folder, FINGERPRINT, config=ExtractConfig(flush_clips=7)) as writer:
    missing = ~FeatureCache.open(folder).cached(wanted(count))[:, 0]
    todo = [number for number in range(count) if missing[number]]
    draw.shuffle(todo)
    print("ready", flush=True)
    for number in todo:
        for path in writer.add(real_clip(number)):
            print(path, flush=True)
"""


def start_writer(folder: Path, count: int, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(count), str(seed)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_two_writing_processes_a_compacting_one_and_a_reader(tmp_path: Path) -> None:
    count = 600
    writers = [start_writer(tmp_path, count, seed) for seed in (1, 2)]
    reads = compactions = 0
    while any(writer.poll() is None for writer in writers):
        if not (tmp_path / "fingerprint.json").exists():
            time.sleep(0.05)
            continue
        cache = FeatureCache.open(tmp_path)
        here = [int(name.partition("-")[2]) for name in sorted(cache.clip_ids())]
        request = wanted(count).take(np.array(here, dtype=np.int64))
        values = cache.load(request, verify=True).values
        assert all(
            np.array_equal(row, real_clip(n).features) for n, row in zip(here, values, strict=True)
        )
        assert not cache.damaged
        reads += 1
        if reads % 2:
            compactions += bool(compact(tmp_path).merged)
    assert [writer.wait() for writer in writers] == [0, 0]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()
    assert reads > 1
    assert compactions > 0
    assert right(FeatureCache.open(tmp_path), count)  # no clip missing
    compact(tmp_path)
    (segment,) = FeatureCache.open(tmp_path).segments
    assert max(Counter(segment.clip_ids).values()) == 1  # no clip twice
    assert len(segment.clip_ids) == count


def test_kill_9_at_fifty_random_moments_of_writing(tmp_path: Path) -> None:
    count, kills, draw = 1500, 0, random.Random(3)
    announced: set[str] = set()
    for attempt in range(50):
        writer = start_writer(tmp_path, count, attempt)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0, 0.06))
        writer.send_signal(signal.SIGKILL)
        announced |= set(writer.stdout.read().splitlines())
        kills += writer.wait() == -signal.SIGKILL
        writer.stdout.close()
    assert kills > 25, "the writers were done too early to be killed"
    cache = FeatureCache.open(tmp_path)
    assert not cache.damaged
    assert announced <= {str(segment.path) for segment in cache.segments}
    assert verify(tmp_path).damaged == []
    last = start_writer(tmp_path, count, 99)
    last.communicate()
    assert last.returncode == 0
    assert right(FeatureCache.open(tmp_path), count)


def test_200_flipped_bits_and_100_truncations(tmp_path: Path) -> None:
    with SegmentWriter(tmp_path, FINGERPRINT) as writer:
        for number in range(20):
            writer.add(real_clip(number))
    (path,) = writer.written
    whole = path.read_bytes()
    with h5py.File(path, "r") as file:
        features = file["features"].id
        offset, size = features.get_offset(), features.get_storage_size()
    draw = random.Random(4)
    for _ in range(200):
        byte, bit = draw.randrange(size), draw.randrange(8)
        data = bytearray(whole)
        data[offset + byte] ^= 1 << bit
        path.write_bytes(data)
        index = read_index(path, fingerprint_sha256=FINGERPRINT.sha256)
        assert damaged_clips(index) == [byte // (size // 20)]
    for length in draw.sample(range(len(whole)), 100):
        path.write_bytes(whole[:length])
        with pytest.raises(SegmentDamagedError, match="segment-"):
            read_index(path, fingerprint_sha256=FINGERPRINT.sha256)


@contextmanager
def mounted(folder: Path, *, megabytes: int) -> Iterator[Path]:
    """A file system of its own, of a given size."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def aqa(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mounted(tmp_path / "small", megabytes=3) as disk:
        monkeypatch.chdir(disk)
        folder = disk / "cache" / "x" / FINGERPRINT.folder_name
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(700_000))
        writer = SegmentWriter(folder, FINGERPRINT)
        finished = 0

        def fill() -> None:
            nonlocal finished
            while True:
                for number in range(finished, finished + 8):
                    writer.add(real_clip(number))
                writer.flush()
                finished += 8

        with pytest.raises(SetupError, match=r"no space left to write segment-.*free some space"):
            fill()
        assert 0 < finished < 100
        assert not list(folder.glob(".tmp-*"))
        cache = FeatureCache.open(folder)
        assert not cache.damaged
        assert right(cache, finished)
        with pytest.raises(SetupError, match=r"merging needs .* nothing was changed"):
            compact(folder)
        assert aqa("cache", "compact").exit_code == 6
        assert right(FeatureCache.open(folder), finished)
        ballast.unlink()
        assert writer.num_pending == 8
        writer.flush()  # what was waiting is not lost either
        assert right(FeatureCache.open(folder), finished + 8)


def test_a_file_system_that_is_really_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mounted(tmp_path / "frozen", megabytes=8) as disk:
        monkeypatch.chdir(disk)
        folder = disk / "cache" / "x" / FINGERPRINT.folder_name
        for numbers in (range(3), range(3, 6)):
            with SegmentWriter(folder, FINGERPRINT) as writer:
                for number in numbers:
                    writer.add(real_clip(number))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert right(FeatureCache.open(folder), 6)
        assert aqa("cache", "info").exit_code == 0
        assert aqa("cache", "verify").exit_code == 0
        sentence = r"cannot write here \(Read-only file system\)"
        with pytest.raises(SetupError, match=sentence):
            compact(folder)
        with (
            pytest.raises(SetupError, match=sentence),
            SegmentWriter(folder, FINGERPRINT) as writer,
        ):
            writer.add(real_clip(7))
        with pytest.raises(SetupError, match=sentence):
            FailureLog(folder).append(Failure("a", "s", (0, 7), "decode", "bad packet"))
        for command in ("compact", "doctor"):
            result = aqa(*(["cache", command] if command == "compact" else [command]))
            assert result.exit_code == 6
            assert "Read-only file system" in result.output


def test_a_read_only_cache_with_damage_is_told_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mounted(tmp_path / "frozen", megabytes=8) as disk:
        monkeypatch.chdir(disk)
        folder = disk / "cache" / "x" / FINGERPRINT.folder_name
        with SegmentWriter(folder, FINGERPRINT) as writer:
            writer.add(real_clip(0))
        (path,) = writer.written
        data = bytearray(path.read_bytes())
        data[-1000] ^= 4
        path.write_bytes(data)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        kept = aqa("cache", "verify", "--keep")
        assert kept.exit_code == 3
        assert "wrong hash in 1 of 1 clips ('clip-0')" in kept.stdout
        result = aqa("cache", "verify")
        assert result.exit_code == 6
        assert "wrong hash" in result.stdout, "what was found is told although moving failed"
        assert "Read-only file system" in result.stderr
