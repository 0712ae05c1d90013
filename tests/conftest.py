"""Fixtures that several test modules share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# A busy machine is slow now and then; a time limit for each example would fail by chance.
hypothesis.settings.register_profile("aqa", deadline=None, max_examples=60)
hypothesis.settings.load_profile("aqa")


@pytest.fixture(autouse=True)
def _library_log() -> None:
    """The library's log as Python makes it: a command run in this process sets it up anew.

    Before the test, not after it: fixtures of whole modules run commands too.
    """
    logger = logging.getLogger("aqa_pipeline")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture(scope="session")
def i3d_weights() -> Path:
    """The Kinetics weights, fetched once into the user's cache folder; skips without them."""
    from aqa_pipeline.backbone.weights import fetch_weights
    from aqa_pipeline.errors import SetupError

    try:
        return fetch_weights()
    except SetupError as error:
        pytest.skip(f"needs the published I3D weights: {error}")


@pytest.fixture
def own_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """No test that uses it writes into the user's cache folder."""
    if "i3d_weights" in request.fixturenames:
        request.getfixturevalue("i3d_weights")  # before the folder is another
    monkeypatch.setenv("AQA_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


@pytest.fixture
def one_thread(_torch_threads: int) -> Iterator[None]:
    """For tiny matrices, where more threads only wait for each other."""
    import torch

    torch.set_num_threads(1)
    yield
    torch.set_num_threads(_torch_threads)
