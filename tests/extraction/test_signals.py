"""The real command, interrupted, terminated and killed: what it leaves, and that it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from aqa_pipeline.cache.reader import FeatureCache
from tests.support.fake_aqa import run_aqa, start_aqa, write_fake_weights
from tests.support.small_project import make_project

EXTRACT = ("extract", "--dataset", "small", "--weights", "w.safetensors", "--workers", "1")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    make_project(tmp_path, clips_per_video=10)
    write_fake_weights(tmp_path / "w.safetensors")
    return tmp_path


def clips_in_cache(root: Path) -> list[str]:
    """Ids of all clips in all segments, copies included."""
    folders = list((root / "cache" / "small").glob("*/fingerprint.json"))
    if not folders:
        return []
    segments = FeatureCache.open(folders[0].parent).segments
    return [name.decode() for segment in segments for name in segment.clip_ids]


def wait_for(condition: object, *, seconds: float = 60) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def processes_of(session: int) -> list[str]:
    """Processes that were started in a session, as `ps` shows them."""
    shown = subprocess.run(
        ["ps", "-eo", "sess=,pid=,stat=,args="], capture_output=True, text=True, check=True
    )
    lines = [line.split(None, 3) for line in shown.stdout.splitlines()]
    # A name in brackets has no memory any more: that one is ending.
    living = [line for line in lines if line[2][0] != "Z" and not line[3].startswith("[")]
    return [" ".join(line) for line in living if line[0] == str(session)]


def wait_for_segments(root: Path, process: subprocess.Popen[str], *, count: int = 2) -> None:
    def written() -> bool:
        assert process.poll() is None, process.communicate()
        return len(list(root.glob("cache/small/*/*.h5"))) >= count

    wait_for(written)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_flushes_what_is_done_and_the_same_command_goes_on(
    project: Path, number: signal.Signals, code: int, word: str
) -> None:
    process = start_aqa(project, *EXTRACT, "--flush-clips", "3", clip_seconds=0.15)
    wait_for_segments(project, process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to the workers too
    else:
        process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert stderr.splitlines()[-1] == f"Error: {word}; the same command resumes where it stopped"
    assert "Traceback" not in stderr
    done = clips_in_cache(project)
    assert 6 <= len(done) < 20
    assert processes_of(process.pid) == []
    assert list(project.glob("cache/small/*/claims/*")) == []
    again = run_aqa(project, *EXTRACT, "--json")
    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout)
    assert (summary["num_cached"], summary["num_extracted"]) == (len(done), 20 - len(done))
    assert len(set(clips_in_cache(project))) == len(clips_in_cache(project)) == 20


@pytest.mark.parametrize("delay", [0.8, 1.4])
def test_an_interrupt_while_it_starts_ends_in_one_line(project: Path, delay: float) -> None:
    process = start_aqa(project, *EXTRACT, clip_seconds=0.3)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    if "KeyboardInterrupt" in stderr:
        assert delay < 1, "after its first second the program has its handlers"
        return
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert processes_of(process.pid) == []


def test_a_killed_main_process_leaves_no_decoders_and_its_clips_are_done_again(
    project: Path,
) -> None:
    process = start_aqa(project, *EXTRACT, "--flush-clips", "3", clip_seconds=0.15)
    wait_for_segments(project, process)
    assert len(processes_of(process.pid)) >= 2, "nothing to be orphaned: the test is blind"
    process.kill()
    process.communicate()
    wait_for(lambda: not processes_of(process.pid), seconds=10)
    again = run_aqa(project, *EXTRACT)
    assert again.returncode == 0, again.stderr
    assert sorted(set(clips_in_cache(project))) == sorted(clips_in_cache(project))
    assert len(clips_in_cache(project)) == 20


def test_two_processes_on_one_manifest_do_no_clip_twice_and_none_is_missing(
    project: Path,
) -> None:
    options = ("--flush-clips", "2", "--json")
    both = [start_aqa(project, *EXTRACT, *options, clip_seconds=0.1) for _ in range(2)]
    summaries = []
    for process in both:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        summaries.append(json.loads(stdout))
    clips = clips_in_cache(project)
    assert len(clips) == len(set(clips)) == 20
    assert sum(summary["num_extracted"] for summary in summaries) == 20
    for summary in summaries:
        parts = ("num_cached", "num_extracted", "num_elsewhere")
        assert sum(summary[part] for part in parts) == 20


def test_two_shards_at_once_fill_one_cache(project: Path) -> None:
    both = [start_aqa(project, *EXTRACT, "--shard", f"{i}/2", "--json") for i in (1, 2)]
    for i, process in enumerate(both, start=1):
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert f"shard {i}/2: 10 of 20 clips" in stderr
        assert json.loads(stdout)["num_extracted"] == 10
    clips = clips_in_cache(project)
    assert len(clips) == len(set(clips)) == 20
