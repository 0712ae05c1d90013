"""The watchdog over decoding: hung and killed workers, order, how far it runs ahead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from aqa_pipeline.atomic import is_running
from aqa_pipeline.config import PixelPreset
from aqa_pipeline.errors import ClipError
from aqa_pipeline.media.clip import ClipFrames, DecodeTask, read_clip
from aqa_pipeline.media.decode_pool import DecodePool, decode_runs
from tests.support.places import ROOT
from tests.support.videos import frame_numbers, write_video

TINY = PixelPreset("tiny", crop=32, short_side=48)


def task(
    clip_id: str, video: Path | str = "v.mp4", *, first: int = 0, frames: int = 3
) -> DecodeTask:
    return DecodeTask(
        clip_id=clip_id,
        video=Path(video),
        positions=np.arange(first, first + frames, dtype=np.int64),
        pixels=TINY,
        index_folder=Path(video).parent / "index",
        strict_window=False,
    )


def empty_clip() -> ClipFrames:
    return ClipFrames(
        Path("v.mp4"), np.zeros((3, 32, 32, 3), np.uint8), np.arange(3), np.zeros(3), 0, 3
    )


def misbehaving_decoder(work: DecodeTask) -> ClipFrames:
    """Does what the clip's name says. The video's folder remembers attempts."""
    attempts = work.video / work.clip_id
    attempts.write_text(attempts.read_text() + "x" if attempts.exists() else "x")
    first_time = attempts.read_text() == "x"
    if work.clip_id == "hangs" or (work.clip_id == "hangs-once" and first_time):
        time.sleep(60)
    if work.clip_id == "is-killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if work.clip_id == "exits":
        os._exit(3)
    if work.clip_id == "is-damaged":
        raise ClipError("a bad packet", stage="decode", detail="Invalid data")
    return empty_clip()


def test_a_hung_or_killed_worker_costs_one_clip_after_one_retry(tmp_path: Path) -> None:
    names = ["a", "hangs", "b", "is-killed", "c", "hangs-once", "d", "exits", "is-damaged", "e"]
    tasks = [task(name, tmp_path) for name in names]
    with DecodePool(workers=2, clip_timeout_seconds=4, decode=misbehaving_decoder) as pool:
        done = {result.task.clip_id: result for result in pool.decode([tasks[:5], tasks[5:]])}
    assert sorted(done) == sorted(names)
    for name in ("a", "b", "c", "d", "e", "hangs-once"):
        assert done[name].clip is not None, name
    assert done["hangs-once"].attempts == 2
    assert [done[n].error.stage for n in ("hangs", "is-killed", "exits", "is-damaged")] == [  # type: ignore[union-attr]
        "timeout",
        "worker",
        "worker",
        "decode",
    ]
    assert "longer than 4 s" in str(done["hangs"].error)
    assert "killed by SIGKILL, out of memory?" in str(done["is-killed"].error)
    assert "exit code 3" in str(done["exits"].error)
    # A damaged video fails alike every time: no second attempt.
    assert (tmp_path / "is-damaged").read_text() == "x"
    assert (tmp_path / "is-killed").read_text() == "xx"


class KillsItsSender(ClipFrames):
    """Dies while it is sent, with the pool's lock held and the message not there."""

    def __reduce__(self) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""


def dying_decoder(work: DecodeTask) -> ClipFrames:
    attempts = work.video / work.clip_id
    first_time = not attempts.exists()
    attempts.write_text(str(os.getpid()))
    if work.clip_id == "sent-by-the-dead" and first_time:
        return KillsItsSender(*vars(empty_clip()).values())
    return empty_clip()


def test_a_worker_that_dies_while_it_sends_a_clip_costs_nothing(tmp_path: Path) -> None:
    names = ["a", "sent-by-the-dead", "b", "c"]
    with DecodePool(workers=1, clip_timeout_seconds=30, decode=dying_decoder) as pool:
        done = list(pool.decode([[task(name, tmp_path) for name in names]]))
    assert sorted(result.task.clip_id for result in done) == sorted(names)
    assert all(result.clip is not None for result in done)


def test_a_worker_that_dies_with_nothing_to_do_costs_nothing(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "e"]
    done = []
    with DecodePool(workers=1, clip_timeout_seconds=30, decode=dying_decoder) as pool:
        for result in pool.decode([[task(name, tmp_path) for name in names]]):
            done.append(result)
            if result.task.clip_id == "a":
                deadline = time.monotonic() + 10
                while not (tmp_path / "b").exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(0.3)  # what is in hand has been sent
                os.kill(int((tmp_path / "a").read_text()), signal.SIGKILL)
                time.sleep(0.5)
    assert sorted(result.task.clip_id for result in done) == names
    assert all(result.clip is not None for result in done)


def hungry_decoder(work: DecodeTask) -> ClipFrames:
    np.ones(int(work.clip_id) * 2**20, np.uint8)
    return empty_clip()


def test_a_decoder_has_a_memory_limit_that_shared_frames_do_not_count_for(tmp_path: Path) -> None:
    tasks = [task(mib, tmp_path, frames=50_000) for mib in ("1", "200", "2")]  # slots of 150 MB
    with DecodePool(
        workers=1, clip_timeout_seconds=30, decode=hungry_decoder, memory_bytes=100 * 2**20
    ) as pool:
        done = {result.task.clip_id: result for result in pool.decode([tasks])}
    assert done["1"].clip is not None
    assert done["2"].clip is not None
    assert str(done["200"].error) == (
        f"{tmp_path}: reading it takes more than 0.0976562 GiB of memory"
    )
    assert done["200"].attempts == 1


def counting_decoder(work: DecodeTask) -> ClipFrames:
    (work.video / work.clip_id).touch()
    return empty_clip()


def test_decoding_never_runs_more_than_a_few_clips_ahead(tmp_path: Path) -> None:
    tasks = [task(f"{i:02d}", tmp_path) for i in range(12)]
    with DecodePool(workers=1, clip_timeout_seconds=30, decode=counting_decoder) as pool:
        for taken, result in enumerate(pool.decode([tasks]), start=1):
            assert result.task.clip_id == f"{taken - 1:02d}"
            time.sleep(0.1)
            assert len(list(tmp_path.iterdir())) <= taken + 2
    assert len(list(tmp_path.iterdir())) == 12


def test_runs_keep_neighbours_of_one_video_together_and_in_order() -> None:
    tasks = [task("late", "b", first=50), task("early", "b", first=5), task("other", "a")]
    runs = [[item.clip_id for item in run] for run in decode_runs(tasks)]
    assert runs == [["other"], ["early", "late"]]
    many = [task(str(i), "b", first=i) for i in range(40)]
    assert [len(run) for run in decode_runs(many)] == [16, 16, 8]


def test_a_window_past_the_end_is_clamped_or_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 20)
    asked = task("clip", path, first=15, frames=10)
    clip = read_clip(asked)
    assert frame_numbers(clip.frames) == [15, 16, 17, 18, 19, 19, 19, 19, 19, 19]
    assert (clip.num_clamped, clip.video_frames) == (5, 20)
    strict = DecodeTask(**{**vars(asked), "strict_window": True})
    with pytest.raises(ClipError, match=r"frames 15 to 24, the video has 20 frames \(0 to 19\)"):
        read_clip(strict)


def test_errors_cross_the_process_border_whole(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"")
    with DecodePool(workers=1, clip_timeout_seconds=60) as pool:
        (result,) = pool.decode([[task("clip", tmp_path / "broken.mp4")]])
    assert result.clip is None
    assert result.error is not None
    assert result.error.stage == "open"
    assert "broken.mp4" in str(result.error)


PARENT_OF_A_HUNG_WORKER = """
import sys
from aqa_pipeline.media.decode_pool import DecodePool
from tests.media.test_decode_pool import hang_and_tell, task

if __name__ == "__main__":
    with DecodePool(workers=1, clip_timeout_seconds=100, decode=hang_and_tell) as pool:
        list(pool.decode([[task("clip", sys.argv[1])]]))
"""


def hang_and_tell(work: DecodeTask) -> ClipFrames:
    (work.video / "pid").write_text(str(os.getpid()))
    time.sleep(100)
    return empty_clip()


def test_a_hung_worker_ends_with_its_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT_OF_A_HUNG_WORKER)
    root = ROOT
    environment = {**os.environ, "PYTHONPATH": str(root)}
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    told = tmp_path / "pid"
    deadline = time.monotonic() + 30
    while not (told.exists() and told.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    worker = int(told.read_text())
    assert is_running(worker)
    parent.kill()
    parent.wait()
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)
