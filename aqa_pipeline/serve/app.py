"""Addresses of the local page.

==========================  =====================================================
``GET /``                   the page
``POST /clips``             a video as the body; answers with the id of its job
``GET /clips/ID``           how far the job is, or its result in numbers
``GET /clips/ID/result``    its result as HTML, to be shown in the page
``GET /clips/ID/page``      the same as one page to keep
``DELETE /clips/ID``        forget it
``GET /report``             the run's report
``GET /static/NAME``        one of three files, by name
==========================  =====================================================

Nothing a request says becomes a path: an id is looked up in the queue, a static name in a
table.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from aqa_pipeline.errors import AqaError
from aqa_pipeline.scoring.assessor import ClipMetadata
from aqa_pipeline.serve.guard import Guard
from aqa_pipeline.serve.jobs import DONE, FAILED, Job, JobQueue, JobResult
from aqa_pipeline.serve.uploads import RefusedUpload, receive

#: Reads and checks what the sender says of a clip, ``name -> text``; raises an AqaError.
Parse = Callable[[Mapping[str, str]], ClipMetadata]

MAX_RECEIVING = 4  #: uploads that come in at once
_DRAIN_SECONDS = 10.0  #: for what is still coming of a refused one


@dataclass(frozen=True)
class Site:
    """What the application shows and where it keeps uploads.

    Attributes
    ----------
    page : str
        The HTML of ``/``.
    static : mapping of str to (str, str)
        Media type and text of each file.
    report : callable
        Gives the HTML of the run's report; may take seconds.
    folder : Path
        Of the uploads.
    max_bytes : int
        Of one upload.
    parse : callable
    """

    page: str
    static: Mapping[str, tuple[str, str]]
    report: Callable[[], str]
    folder: Path
    max_bytes: int
    parse: Parse


def application(site: Site, queue: JobQueue, *, hosts: Collection[str] | None) -> Starlette:
    """The ASGI application.

    Parameters
    ----------
    site : Site
    queue : JobQueue
    hosts : collection of str, or None
        See :class:`aqa_pipeline.serve.guard.Guard`.
    """
    receiving = 0

    async def page(request: Request) -> Response:
        return HTMLResponse(site.page)

    async def static(request: Request) -> Response:
        found = site.static.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404, "no such file")
        return Response(found[1], media_type=found[0])

    async def report(request: Request) -> Response:
        try:
            text = await asyncio.to_thread(site.report)
        except AqaError as error:
            raise HTTPException(500, str(error)) from None
        return HTMLResponse(text)

    async def add(request: Request) -> Response:
        try:
            return await take(request)
        except AqaError:
            await _drain(request, max_bytes=site.max_bytes)
            raise

    async def take(request: Request) -> Response:
        nonlocal receiving
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise RefusedUpload(
                "the body must be the video itself, not a form: curl --data-binary @clip.mp4 "
                "ADDRESS/clips",
                status=415,
            )
        asked = dict(request.query_params)
        name = asked.pop("name", "clip")
        metadata = site.parse(asked)
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > site.max_bytes:
            raise RefusedUpload(
                f"{int(announced) / 1e6:.0f} MB; at most {site.max_bytes / 1e6:.0f} MB are taken",
                status=413,
            )
        if queue.is_full or receiving >= MAX_RECEIVING:
            raise RefusedUpload("too many clips at once; try again in a minute", status=429)
        receiving += 1
        try:
            upload = await receive(
                _body(request), folder=site.folder, name=name, max_bytes=site.max_bytes
            )
        finally:
            receiving -= 1
        job = queue.add(upload, metadata)
        return JSONResponse({"id": job.id}, status_code=202)

    def job_of(request: Request) -> Job:
        job = queue.find(request.path_params["id"])
        if job is None:
            raise HTTPException(404, "no such clip; it may have been forgotten")
        return job

    async def state(request: Request) -> Response:
        job = job_of(request)
        answer: dict[str, Any] = {"state": job.state, "name": job.upload.name}
        if job.state == FAILED:
            answer["error"] = job.message
        elif job.state == DONE and job.result is not None:
            answer["result"] = job.result.summary
        else:
            answer["position"] = queue.position(job)
        return JSONResponse(answer)

    def result_of(request: Request) -> JobResult:
        found = job_of(request).result
        if found is None:
            raise HTTPException(404, "no result yet")
        return found

    async def result(request: Request) -> Response:
        return HTMLResponse(result_of(request).fragment)

    async def own_page(request: Request) -> Response:
        return HTMLResponse(
            result_of(request).page,
            headers={"content-disposition": 'attachment; filename="explain.html"'},
        )

    async def forget(request: Request) -> Response:
        queue.forget(job_of(request))
        return Response(status_code=204)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/static/{name}", static),
            Route("/report", report),
            Route("/clips", add, methods=["POST"]),
            Route("/clips/{id}", state, methods=["GET"]),
            Route("/clips/{id}", forget, methods=["DELETE"]),
            Route("/clips/{id}/result", result),
            Route("/clips/{id}/page", own_page),
        ],
        middleware=[Middleware(Guard, hosts=hosts)],
        exception_handlers={
            AqaError: _refused,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
        },
    )


async def _body(request: Request) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(request.stream()) as stream:
        async for chunk in stream:
            if chunk:
                yield chunk


async def _drain(request: Request, *, max_bytes: int) -> None:
    """Read what is still coming of a refused upload, within reason.

    A browser that is still sending when the connection closes shows an error of its own
    instead of the sentence.
    """
    left = max_bytes
    with contextlib.suppress(ClientDisconnect, TimeoutError, RuntimeError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for chunk in _body(request):
                left -= len(chunk)
                if left < 0:
                    break


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, RefusedUpload) else 400
    # Part of the body may not have been read: the connection cannot be used again.
    return JSONResponse({"error": str(error)}, status_code=status, headers={"connection": "close"})


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody is there to read it
