from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from aqa_pipeline.cache.failures import Failure, FailureLog, read_failures
from aqa_pipeline.errors import SetupError


def fail(clip_id: str, second: int = 0, **fields: object) -> Failure:
    return Failure(
        clip_id=clip_id,
        source_id="s",
        frame_window=(-3, 100),
        stage="decode",
        error="bad packet",
        when_utc=f"2026-01-01T00:00:{second:02d}.000000+00:00",
        **fields,  # type: ignore[arg-type]
    )


def test_round_trip_of_odd_text(tmp_path: Path) -> None:
    failure = fail("a\nb\u2028ü\ud800", detail='say "no"')
    FailureLog(tmp_path).append(failure)
    assert read_failures(tmp_path) == {failure.clip_id: failure}


def test_the_latest_of_all_writers_wins(tmp_path: Path) -> None:
    first, second = FailureLog(tmp_path), FailureLog(tmp_path)
    assert first.path != second.path
    second.append(fail("a", 2, attempts=2))
    first.append(fail("a", 1))
    first.append(fail("b", 3))
    found = read_failures(tmp_path)
    assert list(found) == ["a", "b"]
    assert found["a"].attempts == 2


def test_a_later_success_clears_it(tmp_path: Path) -> None:
    log = FailureLog(tmp_path)
    log.append(fail("a"))
    log.append(fail("b"))
    assert list(read_failures(tmp_path, succeeded={"a"})) == ["b"]


def test_the_time_is_filled_in(tmp_path: Path) -> None:
    FailureLog(tmp_path).append(Failure("a", "s", (0, 1), "open", "no such file"))
    assert read_failures(tmp_path)["a"].when_utc.endswith("+00:00")


def test_every_cut_of_the_last_line_is_tolerated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = FailureLog(tmp_path)
    log.append(fail("a"))
    complete = len(log.path.read_bytes())
    log.append(fail("b"))
    data = log.path.read_bytes()
    for length in range(complete, len(data) - 1):
        log.path.write_bytes(data[:length])
        assert list(read_failures(tmp_path)) == ["a"]
    assert not caplog.records


def test_a_broken_line_in_the_middle_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = FailureLog(tmp_path)
    log.append(fail("a"))
    log.path.write_bytes(b"nonsense\n" + log.path.read_bytes())
    with caplog.at_level(logging.WARNING):
        assert list(read_failures(tmp_path)) == ["a"]
    assert "line 1: not a failure record" in caplog.text


def test_disk_full_is_a_sentence_and_the_next_line_starts_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = FailureLog(tmp_path)
    log.append(fail("a"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SetupError, match="no space left"):
            log.append(fail("b"))
    log.path.write_bytes(log.path.read_bytes()[:-5])
    log.append(fail("c"))
    assert list(read_failures(tmp_path)) == ["a", "c"]


def test_no_failures(tmp_path: Path) -> None:
    assert read_failures(tmp_path) == {}
