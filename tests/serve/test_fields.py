"""Fields of the page, and the clip made of its answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from aqa_pipeline.config import ServeConfig
from aqa_pipeline.core.labels import LabelScale
from aqa_pipeline.errors import UsageError
from aqa_pipeline.scoring.assessor import ClipMetadata
from aqa_pipeline.scoring.explainer import Explainer
from aqa_pipeline.serve.fields import form_fields, parse_metadata
from aqa_pipeline.serve.server import site_of
from tests.support.drawn_run import drawn_run
from tests.support.explained import explainer_of


def test_a_run_that_compares_by_difficulty_asks_for_one() -> None:
    (field,) = form_fields([drawn_run()], categories=[""])
    assert (field.name, field.values, field.value) == ("difficulty", ("2", "3"), "3")
    assert field.is_free  # a dive of 2.7 may come, too


def test_every_column_of_the_exemplar_key_is_asked_for() -> None:
    run = drawn_run()
    pool = dataclasses.replace(
        run.exemplars,
        category=tuple("ab"[i % 2] for i in range(len(run.exemplars))),
        key=tuple(("ab"[i % 2], f"10{i % 3}B") for i in range(len(run.exemplars))),
    )
    protocol = dataclasses.replace(run.protocol, exemplar_key=("category", "action_type"))
    labels = LabelScale("none")
    run = dataclasses.replace(run, exemplars=pool, protocol=protocol, labels=labels)
    category, action = form_fields([run], categories=[""])
    assert (category.name, category.values, category.is_free) == ("category", ("a", "b"), False)
    assert (action.name, action.label) == ("key.action_type", "Action type")
    assert action.values == ("100B", "101B", "102B")


def test_heads_of_their_own_for_each_category_are_a_choice() -> None:
    run = dataclasses.replace(drawn_run(), labels=LabelScale("none"))
    run = dataclasses.replace(run, protocol=dataclasses.replace(run.protocol, exemplar_key=()))
    assert form_fields([run], categories=[""]) == []
    (field,) = form_fields([run], categories=["vault", "diving"])
    assert field.values == ("diving", "vault")


@pytest.fixture(scope="module")
def explainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explainer]:
    with explainer_of(tmp_path_factory.mktemp("project")) as found:
        yield found


def test_answers_become_metadata() -> None:
    asked = {"difficulty": "2,5", "start": "3", "end": "", "key.x": "y"}
    assert parse_metadata(asked) == ClipMetadata(
        start_frame=3, end_frame=None, category="", difficulty=2.5, columns={"x": "y"}
    )


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({}, "scores by difficulty, which is not given"),
        ({"difficulty": "hard"}, "difficulty is 'hard'; expected a number above 0"),
        ({"difficulty": "-1"}, "expected a number above 0"),
        ({"difficulty": "nan"}, "expected a number above 0"),
        ({"difficulty": "1e999"}, "expected a number above 0"),
        ({"difficulty": "2", "start": "-3"}, "start is '-3'; expected a frame number, 0 or more"),
        ({"difficulty": "2", "end": "1" * 30}, "expected a frame number"),
        ({"difficulty": "2", "start": "\u0663"}, "expected a frame number"),
        ({"difficulty": "2", "path": "/etc/passwd"}, "unknown: path"),
    ],
    ids=str,
)
def test_wrong_answers_are_one_sentence(
    explainer: Explainer, tmp_path: Path, asked: dict[str, str], sentence: str
) -> None:
    pytest.importorskip("starlette")
    project, folder = explainer._project, explainer.scorer.any_run.folder
    site = site_of(folder, explainer, project=project, config=ServeConfig(), uploads=tmp_path)
    with pytest.raises(UsageError, match=sentence):
        site.parse(asked)
