"""The real server on a real socket, with work that a test chooses."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aqa_pipeline.scoring.assessor import ClipMetadata
from aqa_pipeline.serve.jobs import JobQueue, Work

#: The shortest thing that begins like an MP4 file.
MP4_HEAD = b"\x00\x00\x00\x18ftypmp42" + b"\0" * 1000


@dataclass(frozen=True)
class Answer:
    """One answer of the server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


@dataclass(frozen=True)
class LiveServer:
    """A server under test."""

    port: int
    folder: Path
    queue: JobQueue

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def upload(self, content: bytes, query: str = "name=dive.mp4") -> Answer:
        return self.ask("POST", f"/clips?{query}", content, {"Content-Type": "video/mp4"})

    def finished(self, job_id: str, *, seconds: float = 120) -> Any:
        """The state of a job once it has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            state = self.ask("GET", f"/clips/{job_id}").json
            if state["state"] in ("done", "failed"):
                return state
            time.sleep(0.05)
        raise AssertionError(f"job {job_id} is still {state}")

    def left_behind(self) -> list[str]:
        """Uploads on the disk; given a moment, since a file is removed after its answer."""
        for _ in range(100):
            names = sorted(path.name for path in self.folder.iterdir())
            if not names:
                break
            time.sleep(0.05)
        return names


@contextmanager
def live_server(
    work: Work,
    folder: Path,
    *,
    max_bytes: int = 100_000,
    page: str = "<!DOCTYPE html><title>page</title>",
    static: Mapping[str, tuple[str, str]] | None = None,
    report: str = "<!DOCTYPE html><title>report</title><p>how good it is",
    parse: Any = lambda asked: ClipMetadata(),
    site: Any = None,
) -> Iterator[LiveServer]:
    """Serve until the block ends; ``site`` in place of one made of the other arguments."""
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    from aqa_pipeline.serve.app import Site, application

    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    site = site or Site(
        page=page,
        static=static or {"serve.css": ("text/css", "body{}")},
        report=lambda: report,
        folder=folder,
        max_bytes=max_bytes,
        parse=parse,
    )
    with listening, JobQueue(work) as queue:
        app = application(site, queue, hosts={"127.0.0.1", "localhost"})
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield LiveServer(port, folder, queue)
        finally:
            server.should_exit = True
            thread.join(timeout=30)
            assert not thread.is_alive()
