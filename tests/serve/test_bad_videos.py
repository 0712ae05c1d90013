"""Bad videos through the real server: one line each, and it keeps serving."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aqa_pipeline.config import ServeConfig
from aqa_pipeline.scoring.explainer import Explainer
from tests.support.bad_videos import BAD, ODD, BadVideo, good_video
from tests.support.explained import explainer_of
from tests.support.live_server import LiveServer, live_server

BAD_UPLOADS = [bad for bad in BAD if bad.is_upload]
ODD_UPLOADS = [odd for odd in ODD if odd.is_upload]
#: Refused by their first bytes already, before anything looks into them.
BY_BYTES = "not a video file: its first bytes|an empty file"
#: What the server itself may grow by over all of them, in bytes.
GROWTH = 400 << 20


@pytest.fixture(scope="module")
def explainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explainer]:
    with explainer_of(tmp_path_factory.mktemp("project")) as found:
        yield found


@pytest.fixture(scope="module")
def server(explainer: Explainer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    pytest.importorskip("starlette")
    from aqa_pipeline.serve.server import site_of, work_of

    uploads = tmp_path_factory.mktemp("uploads")
    site = site_of(
        explainer.scorer.runs()[0].folder,
        explainer,
        project=explainer._project,
        config=ServeConfig(max_megabytes=20),
        uploads=uploads,
    )
    with live_server(work_of(explainer), uploads, site=site) as found:
        yield found


def handed_in(server: LiveServer, path: Path) -> tuple[str, str]:
    """State and sentence of one upload."""
    answer = server.upload(path.read_bytes(), "name=clip.mp4&difficulty=2")
    if answer.status != 202:
        return "refused", answer.error
    state = server.finished(answer.json["id"])
    return state["state"], state.get("error", "")


@pytest.mark.parametrize("bad", BAD_UPLOADS, ids=lambda bad: bad.name)
def test_each_is_refused_in_one_line(server: LiveServer, tmp_path: Path, bad: BadVideo) -> None:
    state, sentence = handed_in(server, bad.make(tmp_path))
    assert state in ("refused", "failed")
    assert re.search(f"{bad.says}|{BY_BYTES}", sentence), sentence
    assert len(sentence.splitlines()) == 1
    assert "Traceback" not in sentence
    assert str(server.folder) not in sentence
    assert server.left_behind() == []


@pytest.mark.parametrize("odd", ODD_UPLOADS, ids=lambda odd: odd.name)
def test_what_only_looks_odd_is_scored(server: LiveServer, tmp_path: Path, odd: BadVideo) -> None:
    assert handed_in(server, odd.make(tmp_path)) == ("done", "")


def test_afterwards_it_still_serves_and_has_not_grown(server: LiveServer, tmp_path: Path) -> None:
    def peak() -> int:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    good = good_video(tmp_path)
    assert handed_in(server, good) == ("done", "")
    before = peak()
    for number, bad in enumerate(BAD_UPLOADS):
        folder = tmp_path / str(number)
        folder.mkdir()
        handed_in(server, bad.make(folder))
    assert peak() - before < GROWTH
    assert handed_in(server, good) == ("done", "")
