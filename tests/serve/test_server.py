"""The local page's server, over a real socket: what it takes, what it refuses, what stays."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from aqa_pipeline.errors import ClipError, UsageError
from aqa_pipeline.scoring.assessor import ClipMetadata
from aqa_pipeline.serve.jobs import MAX_WAITING, Job, JobQueue, JobResult, Stage
from aqa_pipeline.serve.uploads import RefusedUpload, Upload, container_of, receive, shown_name
from tests.support.live_server import MP4_HEAD, LiveServer, live_server


def work(job: Job, stage: Stage) -> JobResult:
    """Gives the size as the score; what begins with ``bad`` fails."""
    stage("decoding")
    content = job.upload.path.read_bytes()
    if b"bad" in content:
        raise ClipError(f"{job.upload.path}: no frame in it", stage="decode")
    if b"bug" in content:
        raise RuntimeError("a bug")
    return JobResult({"score": len(content)}, "<p>fragment</p>", "<p>page</p>")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(work, tmp_path_factory.mktemp("uploads")) as found:
        yield found


def test_an_upload_is_scored_shown_and_deleted(server: LiveServer) -> None:
    answer = server.upload(MP4_HEAD)
    assert answer.status == 202
    job = answer.json["id"]
    assert len(job) >= 22
    state = server.finished(job)
    assert state == {"state": "done", "name": "dive.mp4", "result": {"score": len(MP4_HEAD)}}
    assert server.ask("GET", f"/clips/{job}/result").body == b"<p>fragment</p>"
    page = server.ask("GET", f"/clips/{job}/page")
    assert page.body == b"<p>page</p>"
    assert "attachment" in page.headers["content-disposition"]
    assert server.left_behind() == []
    assert server.ask("DELETE", f"/clips/{job}").status == 204
    assert server.ask("GET", f"/clips/{job}").status == 404


def test_a_clip_that_cannot_be_scored_says_why_under_its_own_name(server: LiveServer) -> None:
    job = server.upload(MP4_HEAD + b"bad", "name=my%20dive.mp4").json["id"]
    state = server.finished(job)
    assert state["error"] == "my dive.mp4: no frame in it"
    assert server.ask("GET", f"/clips/{job}/result").status == 404
    assert server.left_behind() == []


def test_a_bug_is_one_sentence_and_the_server_goes_on(server: LiveServer) -> None:
    state = server.finished(server.upload(MP4_HEAD + b"bug").json["id"])
    assert state["error"] == "an unexpected error, written in the server's log"
    assert server.finished(server.upload(MP4_HEAD).json["id"])["state"] == "done"
    assert server.left_behind() == []


REFUSED = {
    "text": (b"just some words, long enough to be looked at\n" * 40, 415, "not a video file"),
    "short text": (b"hi", 415, "not a video file"),
    "empty": (b"", 400, "an empty file"),
    "playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", 415, "but a playlist"),
    "concat": (b"ffconcat version 1.0\nfile /etc/passwd\n", 415, "but a playlist"),
    "page": (b"<html><script>alert(1)</script></html>", 415, "but a web page"),
    "picture": (b"\xff\xd8\xff\xe0" + b"\0" * 900, 415, "but a picture"),
    "zip": (b"PK\x03\x04" + b"\0" * 900, 415, "but a zip archive"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_video_is_refused_by_its_bytes_not_its_name(
    server: LiveServer, kind: str
) -> None:
    content, status, sentence = REFUSED[kind]
    answer = server.upload(content)
    assert (answer.status, sentence in answer.error) == (status, True), answer.body
    assert server.left_behind() == []


def test_too_large_is_413_announced_or_not(server: LiveServer) -> None:
    large = MP4_HEAD + b"\0" * 200_000
    answer = server.upload(large)
    assert answer.status == 413
    assert "at most 0 MB" in answer.error
    chunks = (large[i : i + 5000] for i in range(0, len(large), 5000))
    answer = server.ask("POST", "/clips", chunks, {"Content-Type": "video/mp4"})
    assert answer.status == 413
    assert "larger than" in answer.error
    assert server.left_behind() == []


def test_an_upload_broken_off_in_the_middle_leaves_nothing(server: LiveServer) -> None:
    before = len(server.queue)
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(
            f"POST /clips HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
            "Content-Type: video/mp4\r\nContent-Length: 50000\r\n\r\n".encode()
            + MP4_HEAD
        )
        deadline = time.monotonic() + 20
        while not list(server.folder.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(server.folder.iterdir()), "it had begun"
    assert server.left_behind() == []
    assert len(server.queue) == before
    assert server.finished(server.upload(MP4_HEAD).json["id"])["state"] == "done"


NAMES = ["../../etc/passwd", "a\nb\r\n.mp4", "🤿 dive.mp4", "/etc/passwd", "x" * 5000, "", "\0.mp4"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_senders_name_is_shown_on_one_line_and_never_opened(
    server: LiveServer, name: str
) -> None:
    answer = server.upload(MP4_HEAD, f"name={quote(name, safe='')}")
    state = server.finished(answer.json["id"])
    assert state["state"] == "done"
    assert state["name"].isprintable()
    assert len(state["name"]) <= 81
    assert server.left_behind() == []


def test_a_form_is_refused_with_what_to_type(server: LiveServer) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="wrong"\r\n\r\nvalue\r\n--x--\r\n'
    answer = server.ask("POST", "/clips", form, {"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status == 415
    assert "curl --data-binary @clip.mp4" in answer.error
    assert server.ask("POST", "/clips", b"").status == 400


def test_unknown_addresses_and_methods_are_errors_in_one_line(server: LiveServer) -> None:
    for method, path, status in [
        ("GET", "/clips/nobody", 404),
        ("GET", "/clips/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/static/..%2fapp.py", 404),
        ("GET", "/static/app.py", 404),
        ("GET", "/nothing", 404),
        ("PUT", "/clips", 405),
        ("DELETE", "/clips/nobody", 404),
        ("GET", "/clips/nobody/result", 404),
    ]:
        answer = server.ask(method, path)
        assert answer.status == status, (method, path)
        assert "Traceback" not in answer.body.decode()


def test_garbage_instead_of_http_does_not_stop_it(server: LiveServer) -> None:
    for garbage in (b"\x16\x03\x01\x02\x00garbage\r\n\r\n", b"GET\r\n\r\n", b"\0" * 100_000):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(garbage)
            raw.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert raw.recv(1000)[:12] in (b"", b"HTTP/1.1 400")
    assert server.ask("GET", "/").status == 200


def test_answers_carry_a_policy_and_no_permission_for_others(server: LiveServer) -> None:
    for path in ("/", "/report", "/static/serve.css", "/clips/nobody"):
        headers = server.ask("GET", path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control-") for name in headers)


FOREIGN = [
    {"Host": "evil.example"},
    {"Host": "evil.example:80"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_other_sites_cannot_use_it(server: LiveServer, headers: dict[str, str]) -> None:
    answer = server.ask("POST", "/clips", MP4_HEAD, {"Content-Type": "text/plain", **headers})
    assert answer.status == 403
    assert server.left_behind() == []
    if "Host" in headers:
        assert server.ask("GET", "/", headers=headers).status == 403


def test_a_tunnel_with_another_port_is_no_other_site(server: LiveServer) -> None:
    for host in ("localhost", "LOCALHOST:9999", "127.0.0.1:1"):
        assert server.ask("GET", "/", headers={"Host": host}).status == 200
        headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert server.ask("POST", "/clips", MP4_HEAD, headers).status == 202


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("127.0.0.1", {"127.0.0.1", "localhost", "[::1]"}),
        ("::1", {"127.0.0.1", "localhost", "[::1]"}),
        ("localhost", {"127.0.0.1", "localhost", "[::1]"}),
        ("192.0.2.7", {"192.0.2.7"}),
        ("Judge.local", {"judge.local"}),
        ("0.0.0.0", None),
        ("::", None),
    ],
)
def test_names_a_server_answers_to(host: str, names: set[str] | None) -> None:
    from aqa_pipeline.serve.server import _hosts

    assert _hosts(host) == names


def test_options_are_checked_before_the_upload(tmp_path: Path) -> None:
    def check(asked: dict[str, str]) -> ClipMetadata:
        if asked.get("difficulty") != "3":
            raise UsageError("this run scores by difficulty: give one")
        return ClipMetadata(difficulty=3.0)

    seen = []

    def note(job: Job, stage: Stage) -> JobResult:
        seen.append(job.metadata)
        return JobResult({}, "", "")

    with live_server(note, tmp_path, parse=check) as server:
        answer = server.upload(MP4_HEAD, "name=a&difficulty=x")
        assert (answer.status, answer.error) == (400, "this run scores by difficulty: give one")
        server.finished(server.upload(MP4_HEAD, "name=a&difficulty=3").json["id"])
    assert seen == [ClipMetadata(difficulty=3.0)]


def test_a_refused_sender_can_finish_and_read_why(tmp_path: Path) -> None:
    def refuse(asked: dict[str, str]) -> ClipMetadata:
        raise UsageError("give a difficulty")

    with live_server(work, tmp_path, parse=refuse, max_bytes=30_000_000) as server:
        for _ in range(5):
            answer = server.upload(MP4_HEAD + b"\0" * 25_000_000)
            assert (answer.status, answer.error) == (400, "give a difficulty")


def test_uploads_queue_and_say_how_many_are_before_them(tmp_path: Path) -> None:
    gate, at_work = threading.Event(), threading.Semaphore(0)
    running = []

    def slow(job: Job, stage: Stage) -> JobResult:
        running.append(job.upload.name)
        at_work.release()
        assert gate.wait(60)
        running.remove(job.upload.name)
        assert not running, "two at once"
        return JobResult({}, "", "")

    with live_server(slow, tmp_path) as server:
        jobs = [server.upload(MP4_HEAD, f"name=clip{n}").json["id"] for n in range(3)]
        assert at_work.acquire(timeout=30)
        states = [server.ask("GET", f"/clips/{job}").json for job in jobs]
        assert [state["position"] for state in states] == [0, 1, 2]
        assert states[2]["state"] == "queued"
        assert server.ask("DELETE", f"/clips/{jobs[1]}").status == 204  # it has not begun
        gate.set()
        assert server.finished(jobs[2])["state"] == "done"
        assert server.left_behind() == []


def test_a_full_queue_says_so_and_its_files_go_when_it_closes(tmp_path: Path) -> None:
    gate, at_work = threading.Event(), threading.Semaphore(0)

    def slow(job: Job, stage: Stage) -> JobResult:
        at_work.release()
        gate.wait(60)
        return JobResult({}, "", "")

    def upload(n: int) -> Upload:
        path = tmp_path / f"{n}.upload"
        path.write_bytes(MP4_HEAD)
        return Upload(path, f"clip{n}", len(MP4_HEAD))

    with JobQueue(slow) as queue:
        queue.add(upload(0), ClipMetadata())
        assert at_work.acquire(timeout=30)
        for n in range(1, MAX_WAITING + 1):
            queue.add(upload(n), ClipMetadata())
        with pytest.raises(RefusedUpload, match=f"{MAX_WAITING} clips wait already") as refused:
            queue.add(upload(99), ClipMetadata())
        assert refused.value.status == 429
        assert not (tmp_path / "99.upload").exists()
        gate.set()
    assert list(tmp_path.iterdir()) == []


async def trickle(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    await asyncio.Event().wait()


def test_an_upload_that_stands_still_is_given_up(tmp_path: Path) -> None:
    waiting = receive(
        trickle(MP4_HEAD), folder=tmp_path, name="a", max_bytes=10**6, stalled_seconds=0.05
    )
    with pytest.raises(RefusedUpload, match=r"nothing came for 0\.05 s") as refused:
        asyncio.run(waiting)
    assert refused.value.status == 408
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_nothing_is_said_in_words(tmp_path: Path) -> None:
    waiting = receive(trickle(MP4_HEAD), folder=tmp_path / "gone", name="a", max_bytes=10**6)
    with pytest.raises(RefusedUpload, match="cannot be stored on this machine") as refused:
        asyncio.run(waiting)
    assert refused.value.status == 507


def test_which_first_bytes_are_a_video() -> None:
    packet = b"\x47" + b"\0" * 187
    assert container_of(packet * 4) == "MPEG transport stream"
    assert container_of((b"G" + b"o=- v=0 c=IN IP4 1.2.3.4\n").ljust(800)) is None
    assert container_of(b"RIFF\0\0\0\0AVI LIST") == "AVI"
    assert container_of(b"RIFF\0\0\0\0WAVEfmt ") is None
    assert container_of(b"\x1a\x45\xdf\xa3") == "Matroska or WebM"
    assert container_of(b"") is None


def test_long_names_keep_both_ends() -> None:
    assert shown_name("a" * 100 + ".mp4", longest=20) == "aaaaaaaaaa…aaaaaa.mp4"
    assert shown_name("\n\t") == "clip"
