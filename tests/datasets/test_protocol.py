from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqa_pipeline.config import Protocol
from aqa_pipeline.datasets import aqa7, finediving, jigsaws, mtl_aqa
from aqa_pipeline.datasets.protocol import read_protocol, write_protocol
from aqa_pipeline.errors import DataError

PUBLISHED = [mtl_aqa.PROTOCOL, aqa7.PROTOCOL, jigsaws.PROTOCOL, finediving.PROTOCOL]


@pytest.mark.parametrize("protocol", [Protocol("own"), *PUBLISHED], ids=lambda p: p.name)
def test_what_is_written_is_read_back(tmp_path: Path, protocol: Protocol) -> None:
    path = tmp_path / "a.toml"
    write_protocol(path, protocol)
    assert read_protocol(path) == protocol


@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    category=st.text(st.characters(exclude_categories=["Cs"])),
    epsilon=st.none() | st.floats(min_value=1e-300, allow_infinity=False),
)
def test_any_text_and_number_survives(
    tmp_path_factory: pytest.TempPathFactory, name: str, category: str, epsilon: float | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    protocol = Protocol(name, label_ranges={category: (-1.5, 2.0)}, epsilon=epsilon, source=name)
    write_protocol(path, protocol)
    assert read_protocol(path) == protocol


def test_every_key_is_explained_and_nothing_else_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    write_protocol(path, Protocol("own"))
    lines = path.read_text().splitlines()
    keys = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    assert all(lines[i - 1].startswith("# ") for i in keys)
    assert set(tomllib.loads(path.read_text())) == {
        key for key, value in vars(Protocol("own")).items() if value is not None and value != {}
    }


def test_left_out_keys_have_the_defaults_and_the_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("")
    assert read_protocol(path) == Protocol("mine")


def test_whole_numbers_are_taken_for_points(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("score_range = 30\n[label_ranges]\nvault = [12, 17]\n")
    protocol = read_protocol(path)
    assert repr(protocol.score_range) == "30.0"
    assert repr(protocol.label_ranges) == "{'vault': (12.0, 17.0)}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("windowrule = 'last'", "windowrule: unknown key; the keys are name, window_rule"),
        ("window_rule = 'middle'", "window_rule: 'middle' is not one of last, first, even"),
        ("window_frames = 0", "window_frames: 0 is not a whole number, 1 or more"),
        ("window_frames = true", "window_frames: True is not a whole number"),
        ("snippet_frames = 8", "the backbone needs 9"),
        ("snippet_starts = []", r"snippet_starts: \[\] is not a list"),
        ("snippet_starts = [0, 90]", "a snippet of 16 frames from 90 ends past the window of 103"),
        ("pixels = 'hd'", "pixels: 'hd' is not one of kinetics, core"),
        ("score_range = -1", "score_range: -1 is not a number above 0"),
        ("epsilon = inf", "epsilon: inf is not a number above 0"),
        ("per_category = 1", "per_category: 1 is not true or false"),
        ("exemplar_key = 'difficulty'", "exemplar_key: 'difficulty' is not a list of texts"),
        ("[label_ranges]\nvault = [17, 12]", "label_ranges: .* is not a table of CATEGORY"),
        ("name = ''", "name: '' is not a text"),
        ("name = ", "not a TOML file"),
        ("epsilon = 0\npixels = 1", "epsilon: 0 is .*; pixels: 1 is"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=f"a.toml: .*{sentence}"):
        read_protocol(path)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.toml: cannot be read \(No such file"):
        read_protocol(tmp_path / "a.toml")
