"""Sweeps on made-up features, from the space to the run folder."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from aqa_cli import sweep as sweep_command
from aqa_cli.main import cli
from click.testing import CliRunner, Result

from aqa_pipeline.config import FitConfig, HeadConfig, SweepConfig
from aqa_pipeline.datasets.parts import parts_of
from aqa_pipeline.errors import DataError, SetupError, UsageError
from aqa_pipeline.training.stack import Stack
from aqa_pipeline.training.sweep import block as sweep_block
from aqa_pipeline.training.sweep.block import run_block
from aqa_pipeline.training.sweep.plan import DataSource, SweepPlan, open_search, waves
from aqa_pipeline.training.sweep.run import run_sweep
from aqa_pipeline.training.sweep.space import parse_space
from aqa_pipeline.training.sweep.trials import Trial, TrialResult, best_of
from tests.training.test_fit import make_cache

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = ["epochs=8", "batch_size=16", "hidden=16", "reduced_dim=4"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DataSource]:
    root = tmp_path_factory.mktemp("project")
    manifest, cache = make_cache(root)
    (root / "aqa.toml").write_text("")
    return root, DataSource(manifest.path, cache.folder)


def plan(project: tuple[Path, DataSource], name: str, *settings: str, **config: Any) -> SweepPlan:
    root, source = project
    return SweepPlan(
        source=source,
        folder=root / "runs" / name,
        space=parse_space([*QUICK, *settings]),
        head=HeadConfig(),
        fit=FitConfig(num_seeds=2),
        config=SweepConfig(**{"jobs": 1, **config}),
        device=torch.device("cpu"),
    )


def test_a_trial_in_a_sweep_is_the_fit_with_its_settings(
    project: tuple[Path, DataSource],
) -> None:
    own = plan(project, "best", "lr=1e-4,3e-3,1e-2", "m=3,10", early_stop=False)
    told: list[tuple[int, int]] = []
    outcome = run_sweep(own, progress=lambda *now: told.append(now))
    assert (told[0], told[-1]) == ((0, 48), (48, 48))
    assert len(outcome.results) == 6
    assert {r.stack for r in outcome.results} == {6}, "three rates, two seeds; M costs nothing"
    scores = [r.score for r in outcome.results]
    assert outcome.best.score == max(scores) > min(scores)
    config = json.loads((own.folder / "config.json").read_text())
    assert np.mean(config["selection_rho"]) == pytest.approx(outcome.best.score, abs=1e-6)
    assert config["best_epoch"] == outcome.best.best_epoch
    assert config["fit"]["learning_rate"] == outcome.best.point["learning_rate"]
    table = pd.read_csv(outcome.results_csv)
    assert table["number"].tolist()[0] == outcome.best.number
    assert json.loads((own.folder / "metrics.json").read_text())["num_test"] == 15


def test_hopeless_trials_are_stopped_and_the_best_is_not(project: tuple[Path, DataSource]) -> None:
    rates = "lr=1e-6,1e-5,1e-4,1e-3,3e-3,1e-2,2e-2,3e-2"
    whole = run_sweep(plan(project, "whole", rates, early_stop=False))
    cut = run_sweep(plan(project, "cut", rates))
    stopped = {r.number for r in cut.results if r.state == "stopped"}
    assert 3 <= len(stopped) <= 6
    assert {r.epochs for r in cut.results if r.state == "stopped"} <= {2, 4}
    ranked = sorted(whole.results, key=lambda r: r.score)
    assert ranked[0].number in stopped
    assert cut.best.number not in stopped
    for result in cut.results:
        if result.state == "done":
            assert result.score == pytest.approx(whole.results[result.number].score, abs=0.02)


def test_what_is_done_is_not_done_again(
    project: tuple[Path, DataSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = plan(project, "resumed", "lr=1e-4..1e-2:log", "hidden=8,16", trials=4)
    first = run_sweep(own)
    journal = own.folder / "sweep" / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    told = [n for n, line in enumerate(lines) if b'"result"' in line]
    journal.write_bytes(b"".join(lines[: told[2]]) + lines[told[2]][:40])  # killed while writing
    with open_search(own) as search:
        done = [result.number for result in search.results()]
    left = {r.number for r in first.results} - set(done)
    assert len(left) == 2
    trained: list[int] = []
    real = sweep_block.run_block

    def listen(plan: SweepPlan, trials: Sequence[Trial], *given: Any, **more: Any) -> Any:
        trained.extend(trial.number for trial in trials)
        return real(plan, trials, *given, **more)

    monkeypatch.setattr("aqa_pipeline.training.sweep.run.run_block", listen)
    said: list[str] = []
    again = run_sweep(own, log=said.append)
    assert said[0] == "2 trials are done already; going on"
    assert sorted(trained) == sorted(left)
    assert again.best.number == first.best.number
    assert again.best.score == pytest.approx(first.best.score, abs=1e-6)
    more = dataclasses.replace(own, config=dataclasses.replace(own.config, trials=5))
    trained.clear()
    run_sweep(more)
    assert trained == [4], "more trials of the same draws"


def test_another_space_is_not_mixed_in(project: tuple[Path, DataSource]) -> None:
    run_sweep(plan(project, "mixed", "lr=1e-3,1e-2"))
    with pytest.raises(UsageError, match="holds a sweep with another space; choose another --run"):
        run_sweep(plan(project, "mixed", "lr=1e-3,2e-2"))


@pytest.mark.parametrize("text", ["[]", "{", '"space"', "\\udcff"])
def test_damaged_settings_are_one_sentence(project: tuple[Path, DataSource], text: str) -> None:
    own = plan(project, "damaged", "lr=1e-3,1e-2")
    path = own.folder / "sweep" / "settings.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    with pytest.raises(DataError, match=r"settings\.json: cannot be read"):
        run_sweep(own)


def test_shapes_make_stacks_and_trials_that_differ_in_m_stay_together(
    project: tuple[Path, DataSource],
) -> None:
    own = plan(project, "x", "lr=1e-4,1e-3,1e-2", "m=1,2", "hidden=8,16", stack=4, jobs=2)
    trials = [Trial(i, point) for i, point in enumerate(own.points)]
    stacked = [stack for wave in waves(own, trials) for stack in wave]
    assert sorted(t.number for stack in stacked for t in stack) == list(range(12))
    for stack in stacked:
        assert len({t.point["hidden"] for t in stack}) == 1
        rates = [t.point["learning_rate"] for t in stack]
        assert len(set(rates)) * 2 <= 4, "two seeds of each, four models at most"
        assert all(rates.count(rate) == 2 for rate in rates)


def test_a_stack_is_cut_when_memory_is_short_and_it_is_said(
    project: tuple[Path, DataSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = plan(project, "x", "lr=1e-4,1e-3,1e-2")
    trials = tuple(Trial(i, point) for i, point in enumerate(own.points))
    whole, notes = run_block(own, trials, {})
    assert notes == []
    assert {r.stack for r in whole} == {6}
    monkeypatch.setattr(sweep_block, "largest_stack", lambda *_, **__: 3)
    cut, notes = run_block(own, trials, {})
    assert {r.stack for r in cut} == {2}, "two seeds of a trial stay together"
    assert len(notes) == 1
    assert notes[0].startswith("stacks of 3 models instead of 6: each takes")
    for a, b in zip(whole, cut, strict=True):
        assert a.score == pytest.approx(b.score, abs=0.02)


def test_a_stack_that_memory_does_not_suffice_for_is_halved_as_if_it_had_never_begun(
    project: tuple[Path, DataSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = plan(project, "x", "lr=1e-6,1e-5,1e-4,1e-3,3e-3", early_stop=False)
    trials = tuple(Trial(i, point) for i, point in enumerate(own.points))
    whole, _ = run_block(own, trials, {})
    real = Stack.run_epoch

    def short(self: Stack) -> Any:
        if self.epoch == 2 and len(self.seeds) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return real(self)

    monkeypatch.setattr(Stack, "run_epoch", short)
    told: list[tuple[int, int]] = []
    cut, notes = run_block(own, trials, {}, progress=lambda *now: told.append(now))
    assert told[-1] == (5 * 8, 5 * 8), "epochs that are done again count once"
    assert notes == [
        "stacks of 6 models instead of 10: memory ran out",
        "stacks of 4 models instead of 6: memory ran out",
    ]
    assert [r.stack for r in cut] == [4, 4, 2, 4, 4]
    for a, b in zip(whole, cut, strict=True):
        assert a.score == pytest.approx(b.score, abs=0.02)
        assert len(a.best_epoch) == len(b.best_epoch)
    monkeypatch.setattr(Stack, "run_epoch", lambda self: torch.empty(2**60))
    with pytest.raises(SetupError, match="device cpu: out of memory"):
        run_block(own, trials, {})


def test_a_sweep_without_memory_ends_in_one_sentence(
    project: tuple[Path, DataSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stack, "run_epoch", lambda self: torch.empty(2**60))
    root, _ = project
    done = aqa(root, *SWEEP, "--set", "lr=1e-3,1e-2", "--jobs", "1", "--run", "short")
    assert done.exit_code == 6, done.output
    assert "out of memory" in done.stderr
    assert "Traceback" not in done.output


def test_processes_side_by_side_find_the_same(project: tuple[Path, DataSource]) -> None:
    settings = ("lr=1e-4,1e-3,3e-3,1e-2",)
    alone = run_sweep(plan(project, "one", *settings, early_stop=False))
    both = run_sweep(plan(project, "two", *settings, jobs=2, early_stop=False))
    assert [r.stack for r in both.results] == [4] * 4, "two trials, two seeds in each process"
    for a, b in zip(alone.results, both.results, strict=True):
        assert a.score == pytest.approx(b.score, abs=0.02)


def test_a_dask_cluster_finds_the_same(project: tuple[Path, DataSource]) -> None:
    distributed = pytest.importorskip("distributed")
    settings = ("lr=1e-4,1e-3,3e-3,1e-2",)
    here = run_sweep(plan(project, "here", *settings, early_stop=False))
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        own = plan(project, "there", *settings, jobs=2, early_stop=False)
        there = run_sweep(dataclasses.replace(own, scheduler=cluster.scheduler_address))
    for a, b in zip(here.results, there.results, strict=True):
        assert a.score == pytest.approx(b.score, abs=0.02)


def test_tpe_takes_over_what_a_killed_process_had_asked_for(
    project: tuple[Path, DataSource],
) -> None:
    own = plan(project, "tpe", "lr=1e-4..1e-2:log", "m=3,all", search="tpe", trials=6, stack=3)
    with open_search(own) as killed:
        asked = killed.ask(2)
    outcome = run_sweep(own)
    assert [r.number for r in outcome.results] == list(range(6))
    assert [r.point for r in outcome.results[:2]] == [trial.point for trial in asked]
    assert {r.point["num_exemplars"] for r in outcome.results} <= {3, None}
    with open_search(own) as search:
        assert search.ask(3) == [], "all are in"


def test_a_second_process_waits_for_the_trials_of_the_first(
    project: tuple[Path, DataSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = plan(project, "shared", "lr=1e-3,3e-3,1e-2", early_stop=False)
    other = open_search(own)
    others = other.__enter__().ask(1)

    def look(seconds: float) -> None:
        other.__exit__(None, None, None)  # the first process ends, and its trial is left

    monkeypatch.setattr("aqa_pipeline.training.sweep.run.time.sleep", look)
    said: list[str] = []
    outcome = run_sweep(own, log=said.append)
    assert [trial.number for trial in others] == [0]
    assert [r.number for r in outcome.results] == [0, 1, 2]
    assert "waiting for trials that other processes have begun" in said


def test_a_trial_without_a_score_in_one_part_has_none(
    project: tuple[Path, DataSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = plan(project, "x", "lr=1e-3,1e-2", early_stop=False)
    trials = tuple(Trial(i, point) for i, point in enumerate(own.points))
    (part,) = parts_of(own.source.manifest())
    categories = ["vault", "rings"]
    monkeypatch.setattr(
        sweep_block,
        "parts_of",
        lambda manifest: [dataclasses.replace(part, category=name) for name in categories],
    )
    load, scores = sweep_block._load, sweep_block._scores
    monkeypatch.setattr(sweep_block, "_load", lambda source, _, *more: load(source, part, *more))
    calls: list[int] = []

    def undefined(*given: Any) -> Any:
        found = scores(*given)
        calls.append(len(found))
        return [found[0], (found[1][0], math.nan, found[1][2])] if len(calls) == 2 else found

    monkeypatch.setattr(sweep_block, "_scores", undefined)
    results, _ = run_block(own, trials, {})
    assert len(calls) == 2
    assert [len(result.per_part) for result in results] == [2, 2]
    assert math.isfinite(results[0].score)
    assert math.isnan(results[1].score)
    assert best_of(results) == results[0]


# --- the command ---------------------------------------------------------------------


def aqa(root: Path, *arguments: str) -> Result:
    before = Path.cwd()
    os.chdir(root)
    try:
        return CliRunner().invoke(cli, list(arguments))
    finally:
        os.chdir(before)


SWEEP = ["sweep", "--dataset", "made-up", *(f"--set={setting}" for setting in QUICK)]


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    project: tuple[Path, DataSource],
) -> None:
    root, _ = project
    done = aqa(root, *SWEEP, "--set", "lr=1e-3,1e-2", "--set", "m=5,all", "--run", "dry",
               "--jobs", "1", "--dry-run", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["search"], found["trials"], found["stacks"], found["largest_stack"]) == (
        "grid", 4, 1, 2,
    )  # fmt: skip
    assert not (root / "runs" / "dry").exists()
    text = aqa(root, *SWEEP, "--set", "hidden=8,16", "--run", "dry", "--dry-run", "--jobs", "1")
    assert "would sweep into" in text.stdout
    assert "every trial has a shape of its own" in text.stderr


def test_the_command_prints_the_best_trials_and_the_test_once(
    project: tuple[Path, DataSource],
) -> None:
    root, _ = project
    arguments = [*SWEEP, "--set", "lr=1e-4..2e-2:log", "--set", "m=3,all", "--trials", "8",
                 "--jobs", "1", "--run", "told"]  # fmt: skip
    done = aqa(root, *arguments)
    assert done.exit_code == 0, done.output
    assert "best 8 of 8 trials" in done.stdout
    assert re.search(r"best trials apart \(PED-ANOVA\): .*learning_rate [0-9]+ %", done.stdout)
    assert re.search(r"stopped$", done.stdout, re.MULTILINE)
    assert done.stdout.count("test read once") == 1
    found = json.loads(aqa(root, *arguments, "--json").stdout)
    assert found["best"]["state"] == "done"
    assert len(found["trials"]) == 8
    assert found["metrics"]["num_test"] == 15


def test_wrong_calls_end_in_one_sentence(project: tuple[Path, DataSource]) -> None:
    root, _ = project
    for arguments, sentence in (
        (["--set", "lr=1e-3"], "nothing to vary"),
        (["--set", "lr=1e-3..1e-2", "--search", "grid"], "a grid needs the number of steps"),
        (["--set", "m=1,2", "--backend", "dask"], "--backend dask and --scheduler"),
        (["--set", "num_groups=8,12", "--jobs", "1"], "a binary tree needs a power of two"),
        (["--space", "none.toml"], "none.toml: cannot be read"),
        (["--set", "views=true,false", "--jobs", "1", "--run", "v"], "no augmented view"),
    ):
        done = aqa(root, *SWEEP, *arguments)
        assert done.exit_code in (2, 5), done.output
        assert sentence in done.stderr
        assert "Traceback" not in done.output


def test_a_sweep_that_is_killed_goes_on(project: tuple[Path, DataSource]) -> None:
    root, _ = project
    start = "from aqa_cli.main import main; main()"
    command = [sys.executable, "-c", start, *SWEEP, "--set", "lr=1e-4..1e-2:log",
               "--set", "hidden=8,12,16,20,24,28", "--trials", "12", "--jobs", "1",
               "--run", "killed"]  # fmt: skip
    journal = root / "runs" / "killed" / "sweep" / "journal.log"
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 100
    while not (journal.exists() and b'"result"' in journal.read_bytes()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    journal.with_name("journal.log.lock").unlink(missing_ok=True)  # else ten seconds of waiting
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    before = re.search("([0-9]+) trials are done already; going on", done.stderr)
    assert before is not None
    assert 0 < int(before[1]) < 12
    assert len(pd.read_csv(journal.with_name("results.csv"))) == 12
    assert (root / "runs" / "killed" / "metrics.json").exists()


def test_a_stopped_trial_says_over_how_many_parts_its_score_is() -> None:
    stopped = TrialResult(3, {}, state="stopped", score=0.4, per_part=[0.3, 0.5])
    assert sweep_command._state(stopped, of=4) == "stopped, 2 of 4 parts"
    assert sweep_command._state(stopped, of=1) == "stopped"
    assert sweep_command._state(TrialResult(4, {}, per_part=[0.1] * 4), of=4) == "done"
