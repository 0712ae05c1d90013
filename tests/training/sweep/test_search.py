from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqa_pipeline.errors import DataError, SetupError
from aqa_pipeline.extraction.leases import Leases
from aqa_pipeline.training.sweep import search as sweep_search
from aqa_pipeline.training.sweep.search import (
    JOURNAL,
    Search,
    below_median,
    draws,
    importance,
)
from aqa_pipeline.training.sweep.space import Point, parse_space
from aqa_pipeline.training.sweep.trials import Trial, TrialResult, results_table
from tests.support.places import ROOT

SPACE = parse_space(["lr=1e-4..1e-2:log", "m=5,all"])
COUNT = 12


@contextmanager
def opened(
    folder: Path, *, count: int = COUNT, points: list[Point] | None = None, seed: int = 0
) -> Iterator[Search]:
    """A search of its own, as another process would open it; random unless points are given."""
    points = draws(SPACE, count, seed=0) if points is None else points
    with Leases(folder) as leases:
        yield Search(SPACE, folder, leases, count=count, points=points, seed=seed)


def trained(trial: Trial, score: float = 0.5, state: str = "done") -> TrialResult:
    return TrialResult(
        trial.number,
        trial.point,
        state,  # type: ignore[arg-type]
        score,
        per_part=[score],
        best_epoch=[3, 4],
        epochs=5,
        rungs={"0:0.25": score},
    )


def test_results_are_given_back_as_they_were_told(tmp_path: Path) -> None:
    with opened(tmp_path) as search:
        trials = search.ask(3)
        assert [t.point for t in trials] == draws(SPACE, 3, seed=0)
        told = [trained(trials[0]), trained(trials[1], 0.25, "stopped"), trained(trials[2], 0.1)]
        search.tell(told[2:])
        search.tell(told[:2])
        assert search.results() == told
    with opened(tmp_path) as search:
        assert search.results() == told
        assert [t.number for t in search.ask(100)] == list(range(3, COUNT))


def test_an_undefined_score_stays_one_and_is_as_bad_as_can_be_for_the_estimator(
    tmp_path: Path,
) -> None:
    with opened(tmp_path, points=[]) as search:
        (trial,) = search.ask(1)
        search.tell([trained(trial, math.nan)])
        (result,) = search.results()
    assert math.isnan(result.score)
    assert math.isnan(result.per_part[0])
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL))
    )
    study = optuna.load_study(study_name="aqa", storage=storage)
    assert study.trials[0].value == -1.0


def test_a_living_process_keeps_its_trials_and_an_ended_one_does_not(tmp_path: Path) -> None:
    with opened(tmp_path) as first:
        mine = first.ask(5)
        with opened(tmp_path) as second:
            others = second.ask(100)
            assert [t.number for t in others] == list(range(5, COUNT))
            assert first.ask(100) == []
    with opened(tmp_path) as third:
        assert third.ask(100) == [*mine, *others], "the same points under the same numbers"


def test_two_estimators_side_by_side_ask_for_the_whole_number_and_no_more(tmp_path: Path) -> None:
    with opened(tmp_path, points=[]) as one, opened(tmp_path, points=[], seed=1) as two:
        asked = [*one.ask(5), *two.ask(5), *one.ask(5), *two.ask(5)]
    assert sorted(t.number for t in asked) == list(range(COUNT))
    assert len({t.point["learning_rate"] for t in asked}) == COUNT


def test_equal_seeds_and_results_give_equal_trials(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with opened(tmp_path / name, points=[], count=30) as search:
            while asked := search.ask(5):
                search.tell([trained(t, -abs(math.log(float(str(t.point["learning_rate"])) / 1e-3)))
                             for t in asked])  # fmt: skip
            found.append(search.results())
    assert found[0] == found[1]
    near = [abs(math.log10(float(str(r.point["learning_rate"])) / 1e-3)) for r in found[0]]
    assert np.mean(near[15:]) < np.mean(near[:10]), "it learns"


_PROCESS = """
import sys
from pathlib import Path
from tests.training.sweep.test_search import opened, trained
with opened(Path(sys.argv[1])) as search:
    print("open", flush=True)
    while asked := search.ask(2):
        search.tell([trained(trial, trial.number / 100) for trial in asked])
"""


def test_a_search_that_is_killed_again_and_again_does_every_trial_once(tmp_path: Path) -> None:
    rng = random.Random(3)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (tmp_path / f"{JOURNAL}.lock").unlink(missing_ok=True)  # else ten seconds of waiting
    with opened(tmp_path) as search:
        left = search.ask(100)
        assert {t.number for t in left} == set(range(COUNT)) - {r.number for r in search.results()}
        search.tell([trained(trial, trial.number / 100) for trial in left])
        assert [(r.number, r.score) for r in search.results()] == [
            (n, n / 100) for n in range(COUNT)
        ]
        assert [r.point for r in search.results()] == draws(SPACE, COUNT, seed=0)


def test_a_journal_cut_anywhere_in_its_last_line_costs_that_line_only(tmp_path: Path) -> None:
    with opened(tmp_path) as search:
        search.tell([trained(trial) for trial in search.ask(2)])
    whole = (tmp_path / JOURNAL).read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in (start + 1, (start + len(whole)) // 2, len(whole) - 1):
        (tmp_path / JOURNAL).write_bytes(whole[:end])
        with opened(tmp_path) as search:
            assert [r.number for r in search.results()] == [0]
            assert search.ask(1)[0].number == 1, "what was not written is to be done again"
        with opened(tmp_path) as search:
            assert len(search.ask(100)) == COUNT - 1


@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_damaged_journal_is_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, place: float, byte: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    with opened(folder) as search:
        search.tell([trained(trial) for trial in search.ask(2)])
    lines = bytearray((folder / JOURNAL).read_bytes())
    lines[int(place * len(lines))] = byte
    (folder / JOURNAL).write_bytes(lines)
    sentence = f"{JOURNAL}: damaged ("  # or it means something else now
    try:
        with opened(folder) as search:
            search.ask(100)
    except DataError as error:
        sentence = str(error)
    assert f"{JOURNAL}: damaged (" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "line", ["{}", "5", "[" * 5000, '{"op_code": 77}', "\x00", '{"op_code":5}']
)
def test_a_line_of_another_kind_is_one_sentence(tmp_path: Path, line: str) -> None:
    with opened(tmp_path) as search:
        search.tell([trained(trial) for trial in search.ask(2)])
    whole = (tmp_path / JOURNAL).read_text()
    (tmp_path / JOURNAL).write_text(f"{line}\n{whole}")
    with pytest.raises(DataError, match="damaged"), opened(tmp_path):
        pass


def test_a_result_of_another_program_is_one_sentence(tmp_path: Path) -> None:
    with opened(tmp_path) as search:
        search.tell([trained(trial) for trial in search.ask(2)])
    whole = (tmp_path / JOURNAL).read_text()
    (tmp_path / JOURNAL).write_text(whole.replace('"per_part"', '"per_parts"'))
    with pytest.raises(DataError, match=r"journal\.log: damaged \(.*per_parts"), opened(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_search, "_LOCK_SECONDS", 1)
    (tmp_path / f"{JOURNAL}.lock").touch()
    started = time.monotonic()
    with opened(tmp_path) as search:
        assert len(search.ask(2)) == 2
    assert time.monotonic() - started < 10
    assert not (tmp_path / f"{JOURNAL}.lock").exists()


def test_a_full_disk_is_one_sentence_and_what_was_told_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as search:
        search.tell([trained(trial) for trial in search.ask(2)])
        with monkeypatch.context() as full:
            full.setattr(Path, "open", raise_full)
            with pytest.raises(SetupError, match=r"no space left to write journal\.log"):
                search.ask(1)
        assert len(search.results()) == 2
        assert not (tmp_path / f"{JOURNAL}.lock").exists()


def raise_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_optuna_says_nothing_and_keeps_its_settings(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with opened(tmp_path, points=[]) as search:
            trials = search.ask(10)
            search.tell([trained(trial, trial.number / 10) for trial in trials])
            search.tell([trained(trial) for trial in trials])  # again: the first counts
            table = results_table(search.results(), SPACE)
        below_median([0.1, math.nan, 0.2, 0.3], [])
        importance(table, ["learning_rate", "num_exemplars"])
        importance(table.assign(num_exemplars="all", learning_rate=1.0), ["learning_rate", "score"])
    assert search.results()[3].score == 0.3
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


def test_the_journal_is_a_study_that_optuna_reads(tmp_path: Path) -> None:
    with opened(tmp_path) as search:
        first, second, _ = search.ask(3)
        search.tell([trained(first, 0.7), trained(second, 0.2, "stopped")])
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL))
    )
    trials = optuna.load_study(study_name="aqa", storage=storage).trials
    assert [t.state.name for t in trials] == ["COMPLETE", "PRUNED", "RUNNING"]
    assert [t.value for t in trials] == [0.7, 0.2, None]
    assert trials[0].params == first.point
    assert trials[0].intermediate_values == {0: 0.7}
    assert json.loads(json.dumps(dataclasses.asdict(trained(first, 0.7))))["epochs"] == 5


# --- draws, the median, importance -----------------------------------------------------


@given(seed=st.integers(0, 50))
def test_draws_lie_in_their_range_and_longer_lists_begin_alike(seed: int) -> None:
    space = parse_space(["lr=1e-4..1e-2:log", "epochs=3..6", "dropout=0..0.5", "m=1,all"])
    points = draws(space, 20, seed=seed)
    assert points[:5] == draws(space, 5, seed=seed)
    for point in points:
        assert isinstance(point["learning_rate"], float)
        assert 1e-4 <= point["learning_rate"] <= 1e-2
        assert point["epochs"] in (3, 4, 5, 6)
        assert isinstance(point["dropout"], float)
        assert 0 <= point["dropout"] <= 0.5
        assert point["num_exemplars"] in (1, None)


def test_a_logarithmic_range_has_half_of_its_draws_below_the_middle_of_the_exponents() -> None:
    rates = [p["learning_rate"] for p in draws(parse_space(["lr=1e-4..1e-2:log"]), 400, seed=0)]
    assert 160 < sum(float(str(rate)) < 1e-3 for rate in rates) < 240


@pytest.mark.parametrize(
    ("scores", "others", "given_up"),
    [
        ([0.1, 0.2, 0.3], [], [False] * 3),  # too few to compare
        ([0.1, 0.2, 0.3, 0.4], [], [True, True, False, False]),
        ([0.5, 0.5, 0.5, 0.5], [], [False] * 4),
        ([0.1], [0.2, 0.3, 0.4], [True]),
        ([0.35], [0.2, 0.3, 0.4], [False]),
        ([math.nan, 0.2, 0.1, 0.3], [], [True, False, True, False]),
        ([math.nan], [math.nan] * 3, [True]),
        ([], [0.1] * 5, []),
    ],
)
def test_what_lies_below_the_median_is_given_up(
    scores: list[float], others: list[float], given_up: list[bool]
) -> None:
    assert below_median(scores, others) == given_up


def test_importance_finds_the_setting_that_makes_the_best_trials() -> None:
    rng = np.random.default_rng(0)
    results = [
        TrialResult(
            i,
            {"learning_rate": float(rate), "num_exemplars": (5, None)[rng.integers(2)]},
            score=float(i // 10),
        )
        for i, rate in enumerate(np.geomspace(1e-4, 1e-2, 40))
    ]
    names = ["num_exemplars", "learning_rate"]
    shares = importance(results_table(results, SPACE), names, log=["learning_rate"])
    assert list(shares) == ["learning_rate", "num_exemplars"], "the largest first"
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["learning_rate"] > 0.8
    few = importance(results_table(results[:7], SPACE), names)
    assert math.isnan(few["learning_rate"])
    alone = importance(results_table(results, SPACE), ["learning_rate"])
    assert math.isnan(alone["learning_rate"]), "a single setting has nothing to be compared with"
