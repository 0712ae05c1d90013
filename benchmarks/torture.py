"""Survival of an extraction: kills, a full disk, a read-only disk, dead and hung decoders.

Runs the real command with the real network (drawn weights) on small videos, does harm to
it, and checks what is left. ``make torture``; figures in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from aqa_pipeline.cache.load import wanted  # noqa: E402
from aqa_pipeline.cache.reader import FeatureCache  # noqa: E402
from aqa_pipeline.cache.verify import verify  # noqa: E402
from aqa_pipeline.datasets.locate import locate, video_index_folder  # noqa: E402
from aqa_pipeline.datasets.manifest import read_manifest  # noqa: E402
from tests.support.small_project import make_project  # noqa: E402

AQA = [sys.executable, "-c", "from aqa_cli.main import main; main()"]
EXTRACT = ["extract", "--dataset", "small", "--weights", "w.safetensors", "--workers", "1"]


class Failed(Exception):
    """Something did not survive."""


def require(condition: object, what: str) -> None:
    if not condition:
        raise Failed(what)


# --- a project and its processes --------------------------------------------------------


def make(root: Path, *, clips: int) -> Path:
    """Two videos with so many clips in all, and weights."""
    from safetensors.torch import save_file

    from aqa_pipeline.backbone.weights import convert_weights
    from tests.support.random_i3d import random_i3d

    root.mkdir()
    make_project(root, clips_per_video=clips // 2)
    save_file(random_i3d().state_dict(), root / "raw.safetensors")
    convert_weights(root / "raw.safetensors", root / "w.safetensors")
    return root


_started: list[subprocess.Popen[str]] = []


def start(root: Path, *options: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*AQA, *EXTRACT, *options],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _started.append(process)
    return process


def end_all() -> None:
    """What a scenario that failed left running."""
    for process in _started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    _started.clear()


def finish(root: Path, *options: str, code: int = 0) -> dict[str, int]:
    process = start(root, "--json", *options)
    stdout, stderr = process.communicate()
    require(process.returncode == code, f"exit {process.returncode}, expected {code}: {stderr}")
    require("Traceback" not in stderr, stderr)
    summary: dict[str, int] = json.loads(stdout)
    return summary


def folder_of(root: Path) -> Path | None:
    return next((path.parent for path in root.glob("cache/small/*/fingerprint.json")), None)


def clips_in(root: Path) -> list[str]:
    """Ids of all clips in all segments, copies included; every segment must be sound."""
    folder = folder_of(root)
    if folder is None:
        return []
    require(not verify(folder).damaged, "a damaged segment")
    segments = FeatureCache.open(folder).segments
    return [name.decode() for segment in segments for name in segment.clip_ids]


def features_of(root: Path) -> npt.NDArray[np.float32]:
    folder = folder_of(root)
    require(folder, "no cache")
    manifest = read_manifest(root / "manifests" / "small.csv")
    located, _ = locate(manifest, index_folder=video_index_folder(root / "cache"))
    return FeatureCache.open(folder).load(wanted(located)).values  # type: ignore[arg-type]


def session_of(process: subprocess.Popen[str]) -> list[int]:
    """Living processes that were started by one, itself included."""
    shown = subprocess.run(
        ["ps", "-eo", "sess=,pid=,stat="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in shown.stdout.splitlines()]
    return [int(p) for s, p, state in rows if int(s) == process.pid and state[0] != "Z"]


def decoders_of(process: subprocess.Popen[str]) -> list[int]:
    """Its decoding processes."""
    found = []
    for pid in session_of(process):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"aqa_pipeline.media.sandbox" in command:
                found.append(pid)
    return found


def wait_for(condition: Callable[[], object], *, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        require(time.monotonic() < deadline, "it did not happen in time")
        time.sleep(0.02)


# --- what is done to it -----------------------------------------------------------------


def kills(work: Path, count: int) -> str:
    """kill -9 at random moments, resuming each time; then equal to an uninterrupted run."""
    rng = random.Random(0)
    clips = 2 * (3 * count // 2)
    whole = make(work / "whole", clips=clips)
    started = time.monotonic()
    finish(whole)
    whole_seconds = time.monotonic() - started
    broken = work / "broken"
    shutil.copytree(whole, broken, ignore=shutil.ignore_patterns("small", "video-index"))
    shutil.copytree(whole / "manifests", broken / "manifests", dirs_exist_ok=True)
    before: set[str] = set()
    in_work = 0
    for _ in range(count):
        process = start(broken, "--flush-clips", "3")
        begun = len(list(broken.glob("cache/small/*/*.h5")))
        # Half the moments lie in the start, half after the first segment was written.
        if rng.random() < 0.5:
            wait_for(
                lambda begun=begun, process=process: (
                    process.poll() is not None
                    or len(list(broken.glob("cache/small/*/*.h5"))) > begun
                )
            )
            time.sleep(rng.uniform(0, 1))
        else:
            time.sleep(rng.uniform(0, 4))
        in_work += process.poll() is None
        if rng.random() < 0.5:
            process.kill()  # the decoders must notice by themselves
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        now = clips_in(broken)
        require(before <= set(now), "a clip of a finished segment was lost")
        before = set(now)
    wait_for(lambda: not session_of(process), seconds=10)
    summary = finish(broken)
    done = clips_in(broken)
    require(summary["num_cached"] + summary["num_extracted"] == clips, "a clip is missing")
    require(features_of(broken).tobytes() == features_of(whole).tobytes(), "features differ")
    return (
        f"{count} kills ({in_work} before the end of a run) over {clips} clips "
        f"({whole_seconds:.0f} s uninterrupted): {len(before)} clips after the last kill, "
        f"{len(done) - len(set(done))} done twice, features equal byte for byte"
    )


def two_writers(work: Path, count: int) -> str:
    """Three processes on one manifest, one of them killed."""
    root = make(work / "writers", clips=60)
    all_three = [start(root, "--flush-clips", "4", "--json") for _ in range(3)]
    wait_for(lambda: list(root.glob("cache/small/*/*.h5")))
    os.killpg(all_three[0].pid, signal.SIGKILL)
    for process in all_three[1:]:
        _, stderr = process.communicate()
        require(process.returncode == 0, stderr)
    done = clips_in(root)
    require(len(set(done)) == 60, f"{60 - len(set(done))} clips are missing")
    require(len(done) == 60, f"{len(done) - 60} clips were done twice")
    return "3 processes on 60 clips, one killed: each clip once, none missing"


@contextlib.contextmanager
def small_disk(folder: Path, *, kilobytes: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={kilobytes}k"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        raise PermissionError("mounting a small disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def full_disk(work: Path, count: int) -> str:
    """The disk is full in the middle; with more space the same command goes on."""
    root = make(work / "full", clips=100)
    with small_disk(root / "cache", kilobytes=300):
        process = start(root, "--flush-clips", "10")
        _, stderr = process.communicate()
        require(process.returncode == 6, f"exit {process.returncode}: {stderr}")
        require("no space left" in stderr and "Traceback" not in stderr, stderr)
        left = len(clips_in(root))
        remount(root / "cache", "size=64m")
        summary = finish(root)
        require(summary["num_cached"] == left > 0, "a finished clip was lost")
        require(len(set(clips_in(root))) == 100, "a clip is missing")
    return f"full after {left} of 100 clips: exit 6, then all {left} kept and 100 complete"


def read_only_disk(work: Path, count: int) -> str:
    """The folder cannot be written."""
    root = make(work / "readonly", clips=8)
    with small_disk(root / "cache", kilobytes=4000):
        finish(root, "--shard", "1/2")
        remount(root / "cache", "ro")
        process = start(root)
        _, stderr = process.communicate()
        require(process.returncode == 6, f"exit {process.returncode}: {stderr}")
        require("cannot write here" in stderr and "Traceback" not in stderr, stderr)
        remount(root / "cache", "rw")
        require(finish(root)["num_cached"] == 4, "a finished clip was lost")
    return f"exit 6: {stderr.strip().splitlines()[-1].removeprefix('Error: ')[-90:]}"


def _harm_decoders(root: Path, number: signal.Signals, *options: str) -> tuple[str, int]:
    process = start(root, "--flush-clips", "4", "--json", *options)
    harmed: set[int] = set()
    for wanted_segments in (1, 3, 5):
        wait_for(
            lambda wanted_segments=wanted_segments: (
                process.poll() is not None
                or len(list(root.glob("cache/small/*/*.h5"))) >= wanted_segments
            )
        )
        for pid in decoders_of(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                harmed.add(pid)
    stdout, stderr = process.communicate()
    require(process.returncode == 0, stderr)
    require(len(set(clips_in(root))) == 60, "a clip is missing")
    require(not json.loads(stdout)["failures"], stderr)
    return stderr, len(harmed)


def killed_decoders(work: Path, count: int) -> str:
    """Decoders are killed as the OOM killer does; each clip is tried once more."""
    root = make(work / "oom", clips=60)
    _, harmed = _harm_decoders(root, signal.SIGKILL)
    return f"{harmed} decoders killed: 60 of 60 clips, exit 0"


def hung_decoders(work: Path, count: int) -> str:
    """Decoders stop for ever; the watchdog replaces them."""
    root = make(work / "hung", clips=60)
    _, harmed = _harm_decoders(root, signal.SIGSTOP, "--clip-timeout", "5")
    return f"{harmed} decoders stopped: all replaced, 60 of 60 clips, exit 0"


def memory(work: Path, count: int) -> str:
    """Resident memory over 500 clips."""
    root = make(work / "memory", clips=500)
    process = start(root)
    samples: list[tuple[float, float]] = []  # main process, decoders; in MB
    page = os.sysconf("SC_PAGE_SIZE") / 1e6
    while process.poll() is None:
        time.sleep(0.25)
        with contextlib.suppress(OSError, IndexError):
            decoders = decoders_of(process)
            sizes = [
                int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
                for pid in (process.pid, *decoders)
            ]
            if decoders:
                samples.append((sizes[0], sum(sizes[1:])))
    require(len(clips_in(root)) == 500, "clips are missing")
    fifth = len(samples) // 5
    early = np.median(samples[fifth : 2 * fifth], axis=0)
    late = np.median(samples[-fifth:], axis=0)
    require((late < 1.1 * early + 10).all(), f"memory grew from {early} to {late} MB")
    return (
        f"500 clips: main process {early[0]:.0f} MB in the second fifth of the run, "
        f"{late[0]:.0f} MB in the last; decoder {early[1]:.0f} and {late[1]:.0f} MB"
    )


SCENARIOS = (
    kills,
    two_writers,
    full_disk,
    read_only_disk,
    killed_decoders,
    hung_decoders,
    memory,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", help="some of: " + ", ".join(s.__name__ for s in SCENARIOS)
    )
    parser.add_argument("--kills", type=int, default=50)
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="aqa-torture-") as folder:
        for scenario in SCENARIOS:
            if arguments.names and scenario.__name__ not in arguments.names:
                continue
            started = time.monotonic()
            try:
                result = scenario(Path(folder), arguments.kills)
            except PermissionError as error:
                result = f"SKIPPED: {error}"
            except Failed as error:
                failed += 1
                result = f"FAILED: {error}"
            finally:
                end_all()
            print(f"{scenario.__name__} ({time.monotonic() - started:.0f} s): {result}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
