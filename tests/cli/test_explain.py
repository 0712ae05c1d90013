"""``aqa explain`` and ``aqa serve`` as typed: output, exit codes, and how the page ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import aqa, expect
from tests.support.explained import QUERY, explainer_of
from tests.support.places import ROOT


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose run needs no weights."""
    monkeypatch.chdir(tmp_path)
    explainer = explainer_of(tmp_path)
    explainer.scorer.runs()[0].folder.mkdir(parents=True)
    monkeypatch.setattr(
        "aqa_pipeline.scoring.explainer.Explainer.load", lambda folder, **rest: explainer
    )
    return tmp_path


def test_explain_prints_the_reasons_and_writes_them(project: Path) -> None:
    result = aqa("explain", "small", QUERY, "--difficulty", "2")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"score \d+\.\d\d", lines[0])
    assert re.fullmatch(r"an average clip \d+\.\d\d; each snippet of this one adds", lines[1])
    assert [line.split()[1] for line in lines[2:5]] == ["0-8", "4-12", "9-17"]
    total = float(lines[1].split()[3].rstrip(";")) + sum(float(x.split()[2]) for x in lines[2:5])
    assert total == pytest.approx(float(lines[0].split()[1]), abs=0.03)
    assert lines[5] == "runs/small/explain/query-22-40/explain.html"
    assert all((project / line).stat().st_size for line in lines[5:])
    assert "looking at it" in result.stderr


def test_explain_as_json_is_json_alone(project: Path) -> None:
    result = aqa("explain", "small", QUERY, "--difficulty", "2", "--out", "here", "--json")
    said = json.loads(result.stdout)
    assert said["baseline"] + sum(said["contributions"]) == pytest.approx(said["score"], abs=1e-3)
    assert said["contribution_errors"] == [0, 0, 0]
    assert said["files"][0] == "here/explain.html"
    assert len(list((project / "here").iterdir())) == len(said["files"])


def test_explain_refuses_in_one_line(project: Path) -> None:
    expect(aqa("explain", "small", QUERY), 2, "type --difficulty")
    expect(aqa("explain", "small", "gone.mp4", "--difficulty", "2"), 3, "gone.mp4: no such video")
    (project / "file").write_text("")
    out = ("--out", "file/folder")
    expect(aqa("explain", "small", QUERY, "--difficulty", "2", *out), 6, "file/folder")


def test_without_a_run_or_captum_the_sentence_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expect(aqa("explain", "nobody", "a.mp4"), 4, "`aqa fit-head` makes one")
    expect(aqa("serve", "nobody"), 4, "`aqa fit-head` makes one")
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    from aqa_pipeline.errors import SetupError
    from aqa_pipeline.scoring.grad_cam import require_captum

    with pytest.raises(SetupError, match=r"pip install 'aqa-pipeline\[captum\]'"):
        require_captum()


def test_serve_without_its_extra_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "aqa_pipeline.serve.server.find_spec",
        lambda name: None if name == "uvicorn" else util.find_spec(name),
    )
    expect(aqa("serve", "small"), 6, "needs uvicorn; type `pip install 'aqa-pipeline[serve]'`")


#: The real command in a process of its own, but for the network.
SERVE = """
    import sys
    from pathlib import Path
    import aqa_pipeline.scoring.explainer
    from tests.support.explained import explainer_of
    explainer = explainer_of(Path.cwd())
    explainer.scorer.runs()[0].folder.mkdir(parents=True, exist_ok=True)
    aqa_pipeline.scoring.explainer.Explainer.load = lambda folder, **rest: explainer
    from aqa_cli.main import main
    sys.argv = ["aqa", "serve", "small", *sys.argv[1:]]
    if __name__ == "__main__":
        main()
"""


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Any]:
    """``aqa serve`` in ``folder``; yields the process and its address."""
    script = folder / "serve.py"
    script.write_text(textwrap.dedent(SERVE))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, str(script), *options],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"open (http://127\.0\.0\.1:\d+/) in a browser; .*\n", line)
        assert found, (line, process.communicate())
        yield process, found[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def upload(address: str, content: bytes) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}clips?name=a.mp4&difficulty=2", data=content, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def members(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_serve_scores_and_ends_without_leaving_anything(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    pytest.importorskip("uvicorn")
    with serving(tmp_path, "--port", "0") as (process, address):
        query = (tmp_path / QUERY).read_bytes()
        job = upload(address, query)["id"]
        for _ in range(600):
            with urllib.request.urlopen(f"{address}clips/{job}", timeout=60) as answer:
                state = json.load(answer)
            if state["state"] in ("done", "failed"):
                break
            time.sleep(0.1)
        assert state["state"] == "done"
        assert state["result"]["score"] > 0
        assert list(tmp_path.glob("aqa-serve-*"))
        upload(address, query)  # one in hand or in the queue when it ends
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        assert "Traceback" not in said
        for _ in range(100):
            if not members(process.pid):
                break
            time.sleep(0.1)
        assert members(process.pid) == []
    assert list(tmp_path.glob("aqa-serve-*")) == []


def test_a_taken_port_is_one_line(project: Path) -> None:
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = aqa("serve", "small", "--port", port)
    expect(result, 6, f"port {port} of 127.0.0.1 is taken, perhaps by another `aqa serve`")
    expect(aqa("serve", "small", "--host", "203.0.113.7"), 6, "cannot listen on 203.0.113.7")
    expect(aqa("serve", "small", "--port", "70000"), 2, "70000")
