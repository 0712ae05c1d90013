"""Checks of every request, headers of every answer.

A page of any web site can make its visitor's browser send requests to this machine. So a
request must name this server as its host (a foreign name that was made to point here is
refused), and what changes something must come from the server's own page, or from a
program that is no browser.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

#: Nothing is loaded from anywhere but this server; pictures, films and figures are data.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; "
    "media-src data:; connect-src 'self'; frame-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_SAFE_METHODS = {"GET", "HEAD"}


class Guard:
    """An ASGI application around another one.

    Parameters
    ----------
    app : App
    hosts : collection of str, or None
        Names by which requests may call this server, at any port: a tunnel from another
        machine has its own. None: any name.
    """

    def __init__(self, app: App, *, hosts: Collection[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.encode(): value.encode() for name, value in HEADERS.items()}
                given = list(message.get("headers", []))
                missing = [pair for pair in own.items() if pair[0] not in dict(given)]
                message["headers"] = given + missing
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send_guarded)
            return
        plain = [(b"content-type", b"text/plain; charset=utf-8")]
        await send_guarded({"type": "http.response.start", "status": 403, "headers": plain})
        await send_guarded({"type": "http.response.body", "body": f"{refusal}\n".encode()})

    def _refusal(self, scope: MutableMapping[str, Any]) -> str | None:
        headers = {name.decode("latin-1"): value.decode("latin-1")
                   for name, value in scope["headers"]}  # fmt: skip
        host = headers.get("host", "")
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if self._hosts is not None and name.lower() not in self._hosts:
            return "this server answers only to its own address"
        if scope["method"] in _SAFE_METHODS:
            return None
        site = headers.get("sec-fetch-site", "none")
        origin = headers.get("origin", f"http://{host}")
        if site not in ("same-origin", "none") or origin.partition("://")[2] != host:
            return "requests from other sites are not taken"
        return None
