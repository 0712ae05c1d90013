from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqa_pipeline.errors import ClipError, DataError
from aqa_pipeline.media import sandbox
from aqa_pipeline.media.sandbox import LimitedProcess
from tests.support.places import ROOT

MIB = 2**20


def double(value: Any) -> Any:
    return value * 2


def own_id(_: None) -> int:
    return os.getpid()


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def allocate(size: int) -> int:
    return int(np.ones(size, np.uint8).sum())


def complain(message: str) -> None:
    raise DataError(message)


def stumble(_: None) -> None:
    raise ZeroDivisionError("one / none")


def die(_: None) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(_: None) -> None:
    os._exit(3)


def count(end: int) -> Iterator[int]:
    for number in range(end):
        if number == 3:
            raise ClipError("three is damaged")
        yield number


def folder(_: None) -> str:
    return os.getcwd()


@pytest.fixture(scope="module")
def process() -> Iterator[LimitedProcess]:
    with LimitedProcess(memory_bytes=256 * MIB, seconds=20) as own:
        yield own


def test_work_is_done_elsewhere_and_comes_back(process: LimitedProcess) -> None:
    assert process.call(double, 21) == 42
    np.testing.assert_array_equal(process.call(double, np.arange(3)), [0, 2, 4])
    assert process.call(own_id, None) == process.call(own_id, None) != os.getpid()


def test_errors_of_the_work_are_raised_here_and_it_goes_on(process: LimitedProcess) -> None:
    before = process.call(own_id, None)
    with pytest.raises(DataError, match=r"^a sentence$"):
        process.call(complain, "a sentence")
    with pytest.raises(ClipError, match=r"reading it failed \(ZeroDivisionError: one / none\)"):
        process.call(stumble, None)
    assert process.call(own_id, None) == before


def test_too_much_memory_is_refused_and_it_goes_on(process: LimitedProcess) -> None:
    assert process.call(allocate, 100 * MIB) == 100 * MIB
    with pytest.raises(ClipError, match=r"takes more than 0\.25 GiB of memory"):
        process.call(allocate, 300 * MIB)
    assert process.call(allocate, 100 * MIB) == 100 * MIB


@pytest.mark.parametrize(("work", "how"), [(die, "killed by SIGSEGV"), (leave, "exit code 3")])
def test_a_death_is_one_sentence_and_a_new_process_takes_over(
    process: LimitedProcess, work: Any, how: str
) -> None:
    with pytest.raises(ClipError, match=f"reading process died .{how}") as caught:
        process.call(work, None)
    assert caught.value.stage == "worker"
    assert process.call(double, 1) == 2


def test_a_hang_is_ended() -> None:
    with LimitedProcess(seconds=0.5) as own:
        own.call(double, 1)
        started = time.monotonic()
        with pytest.raises(ClipError, match=r"longer than 0\.5 s") as caught:
            own.call(sleep, 600)
        assert caught.value.stage == "timeout"
        assert time.monotonic() - started < 60
        assert own.call(double, 1) == 2


def stop_in_a_message(_: None) -> None:
    (connection,) = (found for found in gc.get_objects() if isinstance(found, Connection))
    os.write(connection.fileno(), (100).to_bytes(4, "big") + b"not a hundred bytes")
    os.kill(os.getpid(), signal.SIGSTOP)


def test_half_a_message_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_MESSAGE_SECONDS", 0.5)
    with LimitedProcess(seconds=20) as own:
        with pytest.raises(ClipError, match=r"died \(killed by SIGKILL"):
            own.call(stop_in_a_message, None)
        assert own.call(double, 1) == 2


def test_a_stream_comes_item_by_item_with_its_error_at_the_end(process: LimitedProcess) -> None:
    assert list(process.stream(count, 3)) == [0, 1, 2]
    stream = process.stream(count, 9)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ClipError, match="three is damaged"):
        next(stream)


def test_a_stream_that_is_left_does_not_mix_with_the_next_call(process: LimitedProcess) -> None:
    stream = process.stream(count, 3)
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]
    assert process.call(double, 5) == 10


def test_it_works_where_the_caller_is(
    process: LimitedProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert process.call(folder, None) == str(tmp_path.resolve())


def test_it_ends_with_its_parent_in_the_middle_of_its_work() -> None:
    import subprocess
    import sys

    code = (
        "import os\n"
        "from aqa_pipeline.media.sandbox import LimitedProcess\n"
        "from tests.media.test_sandbox import own_id, sleep\n"
        "own = LimitedProcess(); print(own.call(own_id, None), flush=True); own.call(sleep, 60)\n"
    )
    root = str(ROOT)
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        state = Path(f"/proc/{child}/stat")
        if state.exists() and state.read_text().split()[2] == "Z":
            return  # dead, and nobody here to bury it
        time.sleep(0.05)
    pytest.fail("the process outlived its parent by 10 s")
