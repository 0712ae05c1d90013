"""Local page, put together: run, queue, addresses, socket."""

from __future__ import annotations

import errno
import ipaddress
import socket
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from aqa_pipeline.config import ServeConfig
from aqa_pipeline.errors import SetupError
from aqa_pipeline.project import Project
from aqa_pipeline.report.explanation import fragment, page, view_of
from aqa_pipeline.report.html import render, template_text
from aqa_pipeline.report.page import write_report
from aqa_pipeline.scoring.assessor import ClipMetadata
from aqa_pipeline.scoring.explainer import Explainer
from aqa_pipeline.serve.fields import form_fields, parse_metadata
from aqa_pipeline.serve.jobs import Job, JobQueue, JobResult, Stage, Work

if TYPE_CHECKING:  # starlette is an extra
    from aqa_pipeline.serve.app import Site

#: Called with the address once the server answers there.
Ready = Callable[[str], None]


def serve(
    folder: Path,
    explainer: Explainer,
    listening: socket.socket,
    *,
    project: Project,
    config: ServeConfig,
    ready: Ready = lambda address: None,
) -> None:
    """Serve the page until interrupted.

    Parameters
    ----------
    folder : Path
        The run's.
    explainer : Explainer
    listening : socket
        Of :func:`listen`; closed at the end.
    project : Project
        For the run's report.
    config : ServeConfig
    ready : callable

    Raises
    ------
    KeyboardInterrupt
        When it was stopped; uploads are deleted by then.
    """
    import uvicorn

    from aqa_pipeline.serve.app import application

    with (
        listening,
        tempfile.TemporaryDirectory(prefix="aqa-serve-") as uploads,
        JobQueue(work_of(explainer)) as queue,
    ):
        site = site_of(folder, explainer, project=project, config=config, uploads=Path(uploads))
        server = uvicorn.Server(
            uvicorn.Config(
                application(site, queue, hosts=_hosts(config.host)),
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                timeout_keep_alive=5,
                timeout_graceful_shutdown=2,
                limit_concurrency=64,
            )
        )
        shown = f"[{config.host}]" if ":" in config.host else config.host
        ready(f"http://{shown}:{listening.getsockname()[1]}/")
        server.run(sockets=[listening])


def site_of(
    folder: Path, explainer: Explainer, *, project: Project, config: ServeConfig, uploads: Path
) -> Site:
    """Everything the addresses show; parameters as :func:`serve`, and where uploads lie."""
    from aqa_pipeline.serve.app import Site

    style = "\n".join(map(template_text, ("style.css", "explanation.css", "serve.css")))
    return Site(
        page=_page(folder, explainer, config),
        static={
            "serve.css": ("text/css", style),
            "serve.js": ("text/javascript", template_text("serve.js")),
            "players.js": ("text/javascript", template_text("players.js")),
        },
        report=_Report(folder, project).html,
        folder=uploads,
        max_bytes=config.max_megabytes * 10**6,
        parse=lambda asked: _parsed(explainer, asked),
    )


def _parsed(explainer: Explainer, asked: Mapping[str, str]) -> ClipMetadata:
    metadata = parse_metadata(asked)
    explainer.scorer.check(metadata)
    return metadata


def work_of(explainer: Explainer) -> Work:
    """Work of the queue's thread on a job."""
    return lambda job, stage: _explained(explainer, job, stage)


def listen(config: ServeConfig) -> socket.socket:
    """A listening socket; port 0 takes any that is free.

    To be called first: a taken port should not cost the loading of a run.

    Raises
    ------
    SetupError
        If the address is taken or not this machine's, or the extra ``serve`` is missing.
    """
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise SetupError(
            f"the local page needs {' and '.join(missing)}; "
            "type `pip install 'aqa-pipeline[serve]'`"
        )
    host, port = config.host, config.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except PermissionError:
        raise SetupError(
            f"port {port} is reserved for the administrator; 8000 is not", fact="port"
        ) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SetupError(
                f"port {port} of {host} is taken, perhaps by another `aqa serve`; try port "
                f"{port + 1}, or 0 for any that is free",
                fact="port",
            ) from None
        raise SetupError(f"cannot listen on {host}, port {port} ({error.strerror})") from None


def _hosts(host: str) -> set[str] | None:
    """Names by which requests may call this server; None, any, where it serves a network."""
    loopback = {"localhost", "127.0.0.1", "[::1]"}
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return {host.lower()} | (loopback if host.lower() == "localhost" else set())
    if address.is_unspecified:
        return None
    name = f"[{host}]" if address.version == 6 else host
    return {name} | (loopback if address.is_loopback else set())


def _explained(explainer: Explainer, job: Job, stage: Stage) -> JobResult:
    explanation = explainer.explain(
        job.upload.path, job.metadata, name=job.upload.name, stage=stage
    )
    summary = explanation.scored.as_dict() | {
        "video": job.upload.name,
        "contributions": explanation.contributions.points.tolist(),
        "baseline": explanation.contributions.baseline,
    }
    view = view_of(explanation, key=f"job-{job.id}")
    return JobResult(summary, fragment(view), page(view))


def _page(folder: Path, explainer: Explainer, config: ServeConfig) -> str:
    scorer = explainer.scorer
    runs = [run for name in scorer.categories for run in scorer.runs(name)]
    return render(
        "serve.html",
        name=folder.absolute().name,
        method=runs[0].head.config.name,
        dataset=runs[0].config.dataset,
        num_exemplars=len({name for run in runs for name in run.exemplars.clip_id}),
        fields=form_fields(runs, categories=scorer.categories),
        max_mb=config.max_megabytes,
    )


class _Report:
    """The run's report, made when it is first asked for."""

    def __init__(self, folder: Path, project: Project) -> None:
        self._folder, self._project = folder, project
        self._lock = Lock()
        self._html = ""

    def html(self) -> str:
        with self._lock:  # two windows that ask at once wait for one report
            if not self._html:
                with tempfile.TemporaryDirectory(prefix="aqa-serve-") as folder:
                    out = Path(folder) / "report.html"
                    write_report([self._folder], out, project=self._project)
                    self._html = out.read_text(encoding="utf-8")
        return self._html
