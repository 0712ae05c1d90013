"""Defaults of the commands, and the configurations that reach the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aqa_cli.main import cli
from aqa_cli.options import option_for
from click.testing import CliRunner, Result

from aqa_pipeline.config import FINETUNE_FIT, FinetuneConfig, FinetuneMachine, FitConfig, HeadConfig
from aqa_pipeline.errors import AqaError, UsageError
from aqa_pipeline.project import Project
from tests.support.small_project import make_project


def aqa(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


def expect(result: Result, code: int, sentence: str) -> None:
    assert result.exit_code == code, result.output
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, clips_per_video=1)
    return tmp_path


FOUND = "type `aqa extract --dataset small`"  # the manifest was, and has no features yet
WITH_DATASET = ("fit-head", "finetune", "reproduce table3", "sweep --set lr=1..2", "extract")


@pytest.mark.usefixtures("own_home")
@pytest.mark.parametrize("command", WITH_DATASET)
def test_the_only_data_set_need_not_be_named(project: Path, command: str) -> None:
    result = aqa(*command.split())
    assert result.exit_code in (5, 6), result.output  # no features, or no weights yet
    (project / "manifests" / "small.csv").rename(project / "manifests" / "a.csv")
    (project / "manifests" / "b.csv").write_text("")
    expect(aqa(*command.split()), 2, "either --dataset NAME or --manifest PATH (there are a, b)")


def test_aqa_toml_or_the_environment_names_the_data_set(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "manifests" / "other.csv").write_text("")
    (project / "aqa.toml").write_text('dataset = "small"\n')
    expect(aqa("fit-head"), 5, FOUND)
    expect(aqa("fit-head", "--manifest", "gone.csv"), 4, "gone.csv")
    monkeypatch.setenv("AQA_DATASET", "nobody")
    expect(aqa("fit-head"), 2, "nobody.csv: no such manifest (there are other, small)")
    expect(aqa("fit-head", "--dataset", "small"), 5, FOUND)
    monkeypatch.setenv("AQA_FIT_HEAD_DATASET", "small")
    expect(aqa("fit-head"), 5, FOUND)


def test_both_data_set_and_manifest_contradict_each_other(project: Path) -> None:
    both = aqa("fit-head", "--dataset", "small", "--manifest", "m.csv")
    expect(both, 2, "either --dataset NAME or --manifest PATH")


def add_run(project: Path, name: str, dataset: str) -> None:
    folder = project / "runs" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"dataset": dataset}))


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the run folders that `aqa evaluate` evaluates."""
    found: list[str] = []

    def record(folder: Path, *_: Any, **__: Any) -> None:
        found.append(folder.name)
        raise UsageError("recorded")

    monkeypatch.setattr("aqa_pipeline.runs.evaluate.evaluate_run", record)
    return found


def test_evaluate_without_a_run_takes_the_only_one_or_the_data_set_s(
    project: Path, evaluated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expect(aqa("evaluate"), 2, "say which run: `aqa evaluate RUN` (there is none yet)")
    add_run(project, "first", "small")
    aqa("evaluate")
    add_run(project, "second", "other")
    expect(aqa("evaluate"), 2, "(there are first, second)")
    aqa("evaluate", "--dataset", "other")
    monkeypatch.setenv("AQA_DATASET", "small")
    aqa("evaluate")
    add_run(project, "third", "small")
    expect(aqa("evaluate"), 2, "(there are first, second, third)")
    add_run(project, "small", "small")  # as fit-head names it
    aqa("evaluate")
    aqa("evaluate", "third")
    assert evaluated == ["first", "second", "first", "small", "third"]


def test_a_folder_of_runs_is_a_run_where_it_has_metrics(tmp_path: Path) -> None:
    add_run(tmp_path, "aqa7/diving", "aqa7")
    add_run(tmp_path, "reproduce/table3/gart", "small")
    (tmp_path / "runs" / "aqa7" / "metrics.json").write_text("{}")
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "config.json").write_text("[")
    project = Project(tmp_path)
    assert project.run_names() == ["aqa7", "damaged"]
    assert project.run_names("aqa7") == ["aqa7"]
    assert project.run_names("small") == []


def test_fit_head_hands_its_options_on_as_configurations(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def record(*_: Any, **named: Any) -> None:
        given.update(named)
        raise UsageError("recorded")

    monkeypatch.setattr("aqa_pipeline.cache.load.find_cache", lambda *_: None)
    monkeypatch.setattr("aqa_pipeline.training.fit.fit_dataset", record)
    aqa("fit-head", "--device", "cpu")
    assert (given["head_config"], given["fit_config"]) == (HeadConfig(), FitConfig())
    (project / "aqa.toml").write_text('[fit-head]\nnum-exemplars = "all"\ndifficulty = false\n')
    monkeypatch.setenv("AQA_FIT_HEAD_RANGE", "class")
    typed = ["--head", "mlp", "--seeds", "3", "--lr", "0.01", "--protocol", "literature"]
    aqa("fit-head", "--device", "cpu", *typed)
    assert given["head_config"] == HeadConfig(kind="mlp")
    assert given["fit_config"] == FitConfig(
        num_exemplars=None,
        use_difficulty=False,
        relative_l2_range="class",
        num_seeds=3,
        learning_rate=0.01,
        model_selection="test",
    )


@pytest.mark.usefixtures("own_home")
def test_finetune_has_defaults_and_names_of_its_own(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    finetune = cli.commands["finetune"]

    def record(*_: Any, **named: Any) -> Any:
        given.update(named)
        raise UsageError("recorded")

    monkeypatch.setattr("aqa_pipeline.backbone.weights.find_weights", lambda *_: Path("w"))
    monkeypatch.setattr("aqa_pipeline.finetune.run.plan_finetune", record)
    aqa("finetune")
    assert (given["head_config"], given["fit_config"]) == (HeadConfig(), FINETUNE_FIT)
    assert given["config"] == FinetuneConfig()
    aqa("finetune", "--head-lr", "0.5", "--backbone-lr", "0.25", "--no-flip")
    assert given["fit_config"].learning_rate == 0.5
    assert given["config"] == FinetuneConfig(backbone_learning_rate=0.25, flip=False)
    assert "'usdl' is not one of 'gart', 'mlp'" in aqa("finetune", "--head", "usdl").stderr
    machine = [p for p in finetune.params if str(p.name).startswith("machine__")]
    assert len(machine) == len(FinetuneMachine.__dataclass_fields__)


class LackingFactError(AqaError):
    fact: str | None = None


@pytest.mark.parametrize(
    ("command", "fact", "option"),
    [
        ("predict", "difficulty", "--difficulty"),
        ("explain", "start_frame", "--start"),
        ("predict", "columns", "--key COLUMN=VALUE"),
        ("compare", "category", "--category"),
        ("fit-head", "mode", "--mode"),
        ("evaluate", "difficulty", ""),
        ("predict", None, ""),
    ],
)
def test_the_command_names_the_option_for_what_the_library_misses(
    command: str, fact: str | None, option: str
) -> None:
    error = LackingFactError("this is not known")
    error.fact = fact
    assert option_for(error, cli.commands[command]) == option


def test_an_error_ends_with_the_option_that_puts_it_right(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = LackingFactError("this run scores by difficulty, which is not given")
    error.fact, error.exit_code = "difficulty", 2

    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(cli.commands["predict"], "callback", fail)
    told = aqa("predict", "run", "v.mp4")
    assert told.stderr == (
        "Error: this run scores by difficulty, which is not given; type --difficulty\n"
    )
    assert isinstance(told.exception, SystemExit)
