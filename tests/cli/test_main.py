"""Every command as people type it: exit codes, and the one line an error is worth."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import pytest
from aqa_cli.main import cli
from click.testing import CliRunner, Result

from tests.support.small_project import make_project


def aqa(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AQA_HOME", str(tmp_path / "home"))
    return tmp_path


def all_commands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= all_commands(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


COMMANDS = all_commands(cli)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    result = aqa(*name.split(), "--help")
    assert result.exit_code == 0
    assert COMMANDS[name].help, "no docstring"
    for option in COMMANDS[name].params:
        if isinstance(option, click.Option) and option.name != "help":
            assert option.help, f"{name} {option.opts[0]} has no help"


def test_the_reference_page_is_what_the_commands_say() -> None:
    from docs.make_cli_page import PAGE, page

    told = PAGE.read_text(encoding="utf-8")
    assert told == page(), "run `python docs/make_cli_page.py`"


def expect(result: Result, code: int, sentence: str) -> None:
    assert result.exit_code == code, result.output
    assert sentence in result.stderr
    assert "Traceback" not in result.output
    assert not isinstance(result.exception, Exception), result.exception


def test_missing_weights_are_6_and_say_what_to_type(project: Path) -> None:
    make_project(project, clips_per_video=1)
    expect(aqa("extract", "--dataset", "small"), 6, "aqa weights fetch")


def test_truncated_weights_are_6(project: Path) -> None:
    make_project(project, clips_per_video=1)
    (project / "w.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    result = aqa("extract", "--dataset", "small", "--weights", "w.safetensors")
    expect(result, 6, "w.safetensors")


MANIFEST_FAULTS = {
    "wrong columns": (
        "id;video;score\na;v.mp4;3\n",
        "the cells are not separated by commas: `aqa manifest import csv`",
    ),
    "not a number": ("clip_id,video,score\na,v.mp4,high\n", "line 2: score 'high' is not a number"),
    "id twice": ("clip_id,video,score\na,v.mp4,1\na,v.mp4,2\n", "stands already in line 2"),
    "empty": ("clip_id,video,score\n", "no clips, only a header"),
}


@pytest.mark.parametrize("fault", MANIFEST_FAULTS)
def test_a_bad_manifest_is_4_and_one_line(project: Path, fault: str) -> None:
    text, sentence = MANIFEST_FAULTS[fault]
    (project / "m.csv").write_text(text)
    result = aqa("extract", "--manifest", "m.csv")
    expect(result, 4, sentence)
    assert len(result.stderr.strip().splitlines()) == 1


def test_usage_is_2(project: Path) -> None:
    expect(aqa("extract"), 2, "either --dataset NAME or --manifest PATH")
    expect(aqa("extract", "--dataset", "nobody"), 2, "no such manifest (there is none yet)")
    expect(aqa("extract", "--wrong"), 2, "No such option")
    expect(aqa("fit-head", "--dataset", "x", "--num-exemplars", "0"), 2, "neither a whole number")


def test_no_features_yet_is_5(project: Path) -> None:
    make_project(project, clips_per_video=1)
    expect(aqa("fit-head", "--dataset", "small"), 5, "type `aqa extract --dataset small`")


def test_evaluating_something_that_is_no_run_is_4(project: Path) -> None:
    expect(aqa("evaluate", "nothing"), 4, "not a run folder")


def test_settings_file_gives_defaults_and_its_misspellings_are_told(project: Path) -> None:
    make_project(project, clips_per_video=1)
    (project / "aqa.toml").write_text("[extract]\nworker = 2\n")
    expect(aqa("extract", "--dataset", "small"), 2, "[extract] has no option 'worker'")
    (project / "aqa.toml").write_text("[extrct]\nworkers = 2\n")
    expect(aqa("extract", "--dataset", "small"), 2, "[extrct] is not a command")
    (project / "aqa.toml").write_text('[extract]\ndataset = "small"\n')
    (project / "deep" / "er").mkdir(parents=True)
    os.chdir(project / "deep" / "er")
    expect(aqa("extract"), 6, "aqa weights fetch")  # the manifest of the project was found


def test_environment_gives_defaults(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_project(project, clips_per_video=1)
    monkeypatch.setenv("AQA_EXTRACT_DATASET", "small")
    expect(aqa("extract"), 6, "aqa weights fetch")


def test_the_whole_way_on_tiny_videos(project: Path) -> None:
    from safetensors.torch import save_file

    from tests.support.random_i3d import random_i3d

    manifest = make_project(project, clips_per_video=8)
    save_file(random_i3d().state_dict(), project / "w.safetensors")
    (project / "videos" / "v1.mp4").rename(project / "videos" / "gone.mp4")
    weights = ("--weights", "w.safetensors")
    planned = json.loads(
        aqa("extract", "--dataset", "small", *weights, "--dry-run", "--json").stdout
    )
    assert (planned["clips"], planned["to_extract"], planned["video_missing"]) == (16, 8, 8)
    result = aqa("extract", "--dataset", "small", *weights, "--json")
    assert result.exit_code == 3, result.output
    summary = json.loads(result.stdout)
    assert (summary["num_extracted"], len(summary["failures"])) == (8, 8)
    (project / "videos" / "gone.mp4").rename(project / "videos" / "v1.mp4")
    result = aqa("extract", "--dataset", "small", *weights)
    assert result.exit_code == 0, result.output
    assert "cached before" in result.stdout
    fit = aqa("fit-head", "--dataset", "small", "--epochs", "2", "--seeds", "2", "--json")
    assert fit.exit_code == 0, fit.output
    fitted = json.loads(fit.stdout)
    assert fitted["num_test"] == 4 == len(manifest.clips[manifest.clips["split"] == "test"])
    again = json.loads(aqa("evaluate", "small", "--json").stdout)
    assert again == fitted
    table = aqa("evaluate", "small")
    assert "CoRe + GART, mean of 2 seeds" in table.stdout
    assert "protocol: best epoch chosen on a validation part" in table.stdout
