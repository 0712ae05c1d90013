"""Frames on their way from decoders: the right ones in the right clip, and nothing left over."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Event, Timer

import numpy as np
import numpy.typing as npt
import pytest

from aqa_pipeline.atomic import is_running
from aqa_pipeline.config import PixelPreset
from aqa_pipeline.media.clip import ClipFrames, DecodeTask, read_clip
from aqa_pipeline.media.decode_pool import Decoded, DecodePool, decode_runs
from aqa_pipeline.media.sandbox import LimitedProcess
from tests.media.test_decode_pool import KillsItsSender
from tests.support.places import ROOT
from tests.support.videos import frame_numbers, write_video

SMALL = PixelPreset("small", crop=48, short_side=64)

Frames = npt.NDArray[np.uint8]


def task(number: int, folder: Path, *, frames: int = 20, behaviour: str = "") -> DecodeTask:
    return DecodeTask(
        f"{number}-{behaviour}", folder, np.arange(frames), SMALL, folder / "index", False
    )


def expected(work: DecodeTask) -> Frames:
    number = int(work.clip_id.split("-")[0])
    shape = (len(work.union), SMALL.crop, SMALL.crop, 3)
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def decoder(work: DecodeTask) -> ClipFrames:
    """Frames that say which clip they are of, after a while; does harm at the first attempt."""
    _, behaviour = work.clip_id.split("-")
    clip = ClipFrames(
        work.video, expected(work), work.positions, np.zeros(len(work.positions)), 0, 100
    )
    time.sleep(random.choice([0, 0, 0.002, 0.02]))
    marker = work.video / f"{work.clip_id}.{os.getpid()}"
    if list(work.video.glob(f"{work.clip_id}.*")):
        return clip
    marker.touch()
    if behaviour == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "dies soon":  # while it writes, sends, or has the next clip in hand
        Timer(random.uniform(0, 0.01), os.kill, (os.getpid(), signal.SIGKILL)).start()
    if behaviour == "dies sending":
        return KillsItsSender(*vars(clip).values())
    if behaviour == "hangs":
        time.sleep(60)
    if behaviour == "grows":
        return replace(clip, frames=np.concatenate([clip.frames, clip.frames]))
    return clip


def lies_in_shared_memory(frames: Frames) -> bool:
    base: object = frames
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap | memoryview)


def check(result: Decoded) -> Frames:
    assert result.clip is not None, result.error
    assert np.array_equal(result.clip.frames, expected(result.task)), result.task.clip_id
    return result.clip.frames


@pytest.mark.parametrize("seed", [0, 1])
def test_every_clip_has_its_own_frames_however_decoders_die_and_clips_are_kept(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    harm = ["dies", "dies soon", "dies soon", "dies sending", "hangs"]
    behaviours = harm + [""] * (90 - len(harm))
    rng.shuffle(behaviours)
    tasks = [
        task(number, tmp_path, frames=rng.choice([5, 20, 20, 40]), behaviour=behaviour)
        for number, behaviour in enumerate(behaviours)
    ]
    runs = [tasks[first : first + 6] for first in range(0, len(tasks), 6)]
    kept: list[Decoded] = []
    seen = []
    with DecodePool(workers=4, clip_timeout_seconds=3, decode=decoder) as pool:
        for result in pool.decode(runs):
            seen.append(result.task.clip_id)
            assert lies_in_shared_memory(check(result))
            kept.append(result)
            for _ in range(rng.choice([0, 0, 1, 4])):
                if kept:
                    check(kept.pop(rng.randrange(len(kept))))
            if rng.random() < 0.1:
                time.sleep(0.05)
    assert sorted(seen) == sorted(work.clip_id for work in tasks)
    for result in kept:  # after the end of all decoders
        check(result)


def waiting_decoder(work: DecodeTask) -> ClipFrames:
    """At the first attempt a process that goes on until it is killed."""
    marker = work.video / f"pid-of-{work.clip_id}"
    if not marker.exists():
        marker.with_suffix(".new").write_text(str(os.getpid()))
        os.rename(marker.with_suffix(".new"), marker)
        time.sleep(60)
    return ClipFrames(
        work.video, expected(work), work.positions, np.zeros(len(work.positions)), 0, 100
    )


def test_a_slot_is_not_lent_again_while_a_lost_decoder_may_write_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = Event()
    kill = LimitedProcess.kill

    class Ending:
        """A killed process that is not gone before it may be."""

        def __init__(self, process: LimitedProcess) -> None:
            self._process = process

        def wait(self) -> None:
            may_end.wait(30)
            killed = kill(self._process)
            assert killed is not None
            killed.wait()

    with DecodePool(workers=1, clip_timeout_seconds=60, decode=waiting_decoder) as pool:
        decoded = pool.decode([[task(1, tmp_path), task(2, tmp_path)]])
        deadline = time.monotonic() + 30
        while not (tmp_path / "pid-of-1-").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        worker = int((tmp_path / "pid-of-1-").read_text())
        (lane,) = pool._lanes
        slots = {one.slot for one in lane.in_hand}
        assert pool._slots is not None
        process = lane.process
        monkeypatch.setattr(process, "kill", lambda: Ending(process))
        pool._renew(lane)  # as if it had broken a limit
        time.sleep(0.2)
        assert is_running(worker)
        assert slots.isdisjoint(pool._slots._returned)
        assert slots.isdisjoint({one.slot for one in lane.in_hand})
        may_end.set()
        while not slots <= set(pool._slots._returned) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_running(worker)
        (tmp_path / "pid-of-2-").touch()
        assert [result.task.clip_id for result in decoded if len(check(result))] == ["1-", "2-"]


def test_more_frames_than_expected_come_through_the_pipe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [task(n, tmp_path, behaviour="grows") for n in range(3)] + [task(3, tmp_path)]
    with DecodePool(workers=1, clip_timeout_seconds=60, decode=decoder) as pool:
        results = list(pool.decode([tasks]))
    for result in results[:3]:
        assert result.clip is not None
        assert np.array_equal(result.clip.frames[:20], expected(result.task))
        assert len(result.clip.frames) == 40
    assert lies_in_shared_memory(check(results[3]))
    assert caplog.text.count("decoded frames come through a pipe (276480 bytes of uint8") == 1


def test_without_shared_memory_frames_come_through_the_pipe(tmp_path: Path) -> None:
    with DecodePool(
        workers=1, clip_timeout_seconds=60, decode=decoder, shares_memory=False
    ) as pool:
        for result in pool.decode([[task(0, tmp_path), task(1, tmp_path)]]):
            assert not lies_in_shared_memory(check(result))


def test_frames_of_real_videos_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    tasks = []
    for name, first in (("a.mp4", 0), ("a.mp4", 3), ("b.mp4", 7), ("a.mp4", 6)):
        if not (tmp_path / name).exists():
            write_video(tmp_path / name, 30)
        positions = np.arange(first, first + 12)
        tasks.append(
            DecodeTask(
                f"{name}{first}", tmp_path / name, positions, SMALL, tmp_path / "index", False,
                shifts=(-1, 0, 1),
            )
        )  # fmt: skip
    with DecodePool(workers=2, clip_timeout_seconds=60) as pool:
        found = {result.task.clip_id: result for result in pool.decode(decode_runs(tasks))}
    for work in tasks:
        clip = found[work.clip_id].clip
        assert clip is not None
        assert lies_in_shared_memory(clip.frames)
        assert np.array_equal(clip.frames, read_clip(work).frames)
        assert frame_numbers(clip.frames) == np.clip(work.union, 0, 29).tolist()


def shared_files() -> set[str]:
    with contextlib.suppress(FileNotFoundError):
        return set(os.listdir("/dev/shm"))
    return set()


def own_files() -> list[str]:
    links = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(link for link in links if "aqa-frames" in link)


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux alone has it")


@needs_proc
def test_nothing_is_left_after_a_normal_end_and_after_killed_decoders(tmp_path: Path) -> None:
    gc.collect()
    before = shared_files(), own_files()
    tasks = [task(n, tmp_path, behaviour="dies" if n == 4 else "") for n in range(8)]
    with DecodePool(workers=2, clip_timeout_seconds=60, decode=decoder) as pool:
        results = list(pool.decode([tasks[:4], tasks[4:]]))
        assert own_files() != before[1]
    assert len(results) == 8
    del results
    gc.collect()
    deadline = time.monotonic() + 10  # the process that died is seen to its end apart
    while own_files() != before[1] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (shared_files(), own_files()) == before
    assert "aqa-frames" not in Path("/proc/self/maps").read_text()


KILLED_PARENT = """
import os, sys, time
from pathlib import Path
from aqa_pipeline.media.decode_pool import DecodePool
from tests.media.test_decode_transport import decoder, task

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    tasks = [task(n, folder, behaviour="hangs" if n == 3 else "") for n in range(6)]
    with DecodePool(workers=1, clip_timeout_seconds=100, decode=decoder) as pool:
        for number, result in enumerate(pool.decode([tasks])):
            if number == 1:
                (folder / "ready").touch()
"""


@needs_proc
def test_nothing_is_left_after_a_killed_main_process(tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    (tmp_path / "temporary").mkdir()
    script = tmp_path / "parent.py"
    script.write_text(KILLED_PARENT)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "temporary"),
    }  # fmt: skip
    before = shared_files()
    parent = subprocess.Popen([sys.executable, script, tmp_path / "marks"], env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "marks" / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = {int(path.suffix[1:]) for path in (tmp_path / "marks").glob("*-*.*")}
    parent.kill()
    parent.wait()
    assert workers
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))
    assert shared_files() <= before
    assert list((tmp_path / "temporary").iterdir()) == []
