"""Every option of every command, by command line, by aqa.toml and by the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import pytest
from aqa_cli.main import cli
from aqa_cli.settings import commands, names, options, variable
from click.testing import CliRunner, Result

PLACES = ("command line", "aqa.toml", "aqa.toml, underscores", "environment")
#: Option by the path of its command and each of its names.
OPTIONS = {
    " ".join([*path, f"--{name}"]): (path, command, option, name)
    for path, command in commands(cli)
    for option in options(command)
    for name in names(option)
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("AQA_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def value_of(option: click.Option, name: str) -> str:
    """Something that the option takes and that is not its default."""
    if name == "protocol":
        return "literature"
    kind = option.type
    if isinstance(kind, click.Choice):
        return next(str(c) for c in reversed(kind.choices) if c != option.default)
    if option.is_flag:
        return "false" if option.default is True else "true"
    if isinstance(kind, click.IntRange) or kind.name in ("integer", "count"):
        return str(max(int(getattr(kind, "min", 1) or 1), 7))
    if isinstance(kind, click.FloatRange):
        return "0.35" if kind.max is not None and kind.max <= 1 else "3.5"
    return "left=right"  # text, a path, or COLUMN=VALUE


def words(option: click.Option, name: str, text: str) -> list[str]:
    """The option with its value, as typed."""
    if option.count:
        return [f"--{name}"] * int(text)
    if option.is_flag:
        return [f"--{name}" if text == "true" else option.secondary_opts[0]]
    return [f"--{name}", text]


def toml_line(option: click.Option, key: str, text: str) -> str:
    """The option with its value, as anybody would write it in aqa.toml."""
    number = text.replace(".", "").isdecimal()
    value = text if option.is_flag or number else f'"{text}"'
    return f"{key} = [{value}]" if option.multiple else f"{key} = {value}"


def arguments(command: click.Command, besides: click.Option) -> list[str]:
    """What the command cannot do without."""
    found = []
    for param in command.params:
        if param is besides or not param.required:
            continue
        given = str(param.type.choices[0]) if isinstance(param.type, click.Choice) else "given"
        found += [given] if isinstance(param, click.Argument) else [param.opts[0], given]
    return found


def arrived(
    place: str,
    path: tuple[str, ...],
    command: click.Command,
    option: click.Option,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """All parameters of the command, with one option given in one place."""
    seen: dict[str, Any] = {}

    monkeypatch.setattr(command, "callback", lambda **values: seen.update(values))
    text, typed = value_of(option, name), [*path, *arguments(command, option)]
    if place == "command line":
        at = len(path)
        typed[at:at] = words(option, name, text)
    elif place == "environment":
        monkeypatch.setenv(variable(path, name), text)
    else:
        key = name.replace("-", "_") if "underscores" in place else name
        table = f"[{'.'.join(path)}]\n" if path else ""
        Path("aqa.toml").write_text(table + toml_line(option, key, text) + "\n")
    if not path:
        typed += ["doctor"]
        monkeypatch.setattr(cli.commands["doctor"], "callback", lambda **_: None)
    result = CliRunner().invoke(cli, typed)
    assert result.exit_code == 0, result.output
    return seen


@pytest.mark.parametrize("which", OPTIONS)
def test_the_same_value_arrives_from_all_three_places(
    which: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, command, option, name = OPTIONS[which]
    assert option.name is not None
    found = {}
    for place in PLACES:
        with monkeypatch.context() as patch:
            found[place] = arrived(place, path, command, option, name, patch)
        (tmp_path / "aqa.toml").unlink(missing_ok=True)
    expected = found["command line"]
    assert expected[option.name] != option.default
    assert all(values == expected for values in found.values()), found


def test_no_two_options_share_a_variable() -> None:
    variables = [variable(path, name) for path, _, _, name in OPTIONS.values()]
    assert len(set(variables)) == len(variables)
    assert {"AQA_FIT_HEAD_HEAD", "AQA_CACHE_IMPORT_RESAMPLE", "AQA_DATASET"} <= set(variables)


def test_what_is_typed_beats_the_environment_and_that_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []
    (tmp_path / "aqa.toml").write_text('[fit-head]\nhead = "mlp"\n')
    fit = cli.commands["fit-head"]
    monkeypatch.setattr(fit, "callback", lambda **values: seen.append(values["head__kind"]))
    CliRunner().invoke(cli, ["fit-head"])
    monkeypatch.setenv("AQA_FIT_HEAD_HEAD", "usdl")
    CliRunner().invoke(cli, ["fit-head"])
    CliRunner().invoke(cli, ["fit-head", "--head", "svr"])
    assert seen == ["mlp", "usdl", "svr"]


def refused(*sentences: str, args: tuple[str, ...] = ("doctor",)) -> Result:
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    for sentence in sentences:
        assert sentence in result.stderr
    return result


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("[fit-head]\nhed = 'mlp'", ("[fit-head] has no option 'hed'", "the nearest is head")),
        ("[fit-head]\nkind = 'mlp'", ("[fit-head] has no option 'kind'", "all are aggregation")),
        ("[fit-hed]\nhead = 'mlp'", ("[fit-hed] is not a command", "the nearest is fit-head")),
        ("[cache.inport]\npartial = 1", ("[cache.inport] is not a command", "is import,")),
        ("datset = 'x'", ("the top of the file has no option 'datset'", "nearest is dataset")),
        ("extract = 3", ("extract must be a table: [extract]",)),
        ("[extract]\nworkers = [1, 2]", ("workers in [extract]: expected one value",)),
        (
            "[fit-head]\nnum-groups = 8\nnum_groups = 16",
            ("num_groups stands in [fit-head] twice, under two names",),
        ),
    ],
)
def test_what_aqa_toml_must_not_say(text: str, sentences: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "aqa.toml").write_text(text)
    refused(*sentences)


def test_a_number_of_the_wrong_kind_is_not_cut_to_fit(tmp_path: Path) -> None:
    (tmp_path / "aqa.toml").write_text("[fit-head]\nepochs = 2.5\n")
    result = CliRunner().invoke(cli, ["fit-head"])
    assert result.exit_code == 2
    assert "'2.5' is not a valid integer range" in result.stderr


def test_a_misspelt_variable_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AQA_HOME", "home")  # read, though no option
    monkeypatch.setenv("AQA_FIT_HEAD_KIND_OF", "mlp")
    refused("AQA_FIT_HEAD_KIND_OF is no option; the nearest is AQA_FIT_HEAD_")
    monkeypatch.delenv("AQA_FIT_HEAD_KIND_OF")
    monkeypatch.setenv("AQA_EXTRACT_WORKER", "2")
    refused("AQA_EXTRACT_WORKER is no option; the nearest is AQA_EXTRACT_WORKERS")


@pytest.mark.parametrize("name", ["AQA_VERSION", "AQA_EXTRACT_HELP"])
def test_help_and_version_cannot_be_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "true")
    refused(f"{name} is no option")


@pytest.mark.parametrize("command", ["fit-head", "finetune", "reproduce"])
def test_help_shows_the_new_spelling_alone(command: str) -> None:
    told = CliRunner().invoke(cli, [command, "--help"]).stdout
    assert "--model-selection [validation|test]" in told
    assert "--protocol" not in told
    assert "literature" not in told
