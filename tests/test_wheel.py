"""The installed package: the files of the folder, under the names that are meant."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.places import ROOT

SHIPPED = {".py", ".typed", ".html", ".css", ".js", ".svg", ".json", ".toml"}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_file_and_only_two_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        f"{installed}/{path.relative_to(ROOT / source).as_posix()}"
        for source, installed in (("aqa_pipeline", "aqa_pipeline"), ("cli", "aqa_cli"))
        for path in (ROOT / source).rglob("*")
        if path.suffix in SHIPPED and "__pycache__" not in path.parts
    }
    assert names == expected
    assert {name.split("/")[0] for name in names} == {"aqa_pipeline", "aqa_cli"}


def test_help_works_from_a_clean_install_without_torch(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    run(*pip, "--no-deps", wheel, cwd=tmp_path)
    run(*pip, "click", "rich", cwd=tmp_path)
    out = run(tmp_path / "env" / "bin" / "aqa", "--help", cwd=tmp_path)
    assert "extract" in out
    assert "fit-head" in out
    out = run(tmp_path / "env" / "bin" / "aqa", "extract", "--help", cwd=tmp_path)
    assert "--manifest" in out
