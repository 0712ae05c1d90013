from __future__ import annotations

import copy
import pickle

import pytest

from aqa_pipeline import errors
from aqa_pipeline.errors import (
    AqaError,
    CacheError,
    ClipError,
    DataError,
    MissingFactError,
    SetupError,
    UsageError,
)

CODES = {AqaError: 1, UsageError: 2, ClipError: 3, DataError: 4, CacheError: 5, SetupError: 6}


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_each_error_has_the_exit_code_of_the_table(kind: type[AqaError], code: int) -> None:
    assert kind.exit_code == code
    assert f"\n{code}      " in (errors.__doc__ or ""), "the module's table lists it"
    with pytest.raises(AqaError, match="a sentence"):
        raise kind("a sentence")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_clip_error_crosses_processes_whole(protocol: int) -> None:
    error = ClipError("dive.mp4: frame 7 is damaged", stage="timeout", detail="Invalid data")
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is ClipError
    assert (str(back), back.stage, back.detail) == (str(error), "timeout", "Invalid data")


def test_a_child_of_clip_error_stays_what_it_is() -> None:
    back = pickle.loads(pickle.dumps(Bruised("x.mp4", stage="open")))
    assert type(back) is Bruised
    assert back.stage == "open"
    assert copy.copy(back).stage == "open"


class Bruised(ClipError):
    """A child, as a module could add one."""


def test_a_clip_error_says_decode_unless_told() -> None:
    error = ClipError("x")
    assert (error.stage, error.detail) == ("decode", "")


def test_a_missing_fact_is_named_beside_the_sentence() -> None:
    error = copy.copy(pickle.loads(pickle.dumps(MissingFactError("no difficulty", fact="x"))))
    assert (str(error), error.fact, error.exit_code) == ("no difficulty", "x", 2)
    assert UsageError("another").fact is None
    assert ClipError("one more").fact is None
