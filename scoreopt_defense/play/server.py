"""The page's server: what it answers, and to whom."""

from __future__ import annotations

import ipaddress
import json
import secrets
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scoreopt_defense.play import pictures
from scoreopt_defense.play.choices import Asked, Domain
from scoreopt_defense.play.experiment import FRESH, experiment
from scoreopt_defense.play.jobs import Event, Jobs

__all__ = ["Guard", "application", "serve"]

#: Bytes that a request may have.
MOST_BYTES = 20_000_000

_PAGE = Path(__file__).parent / "page"
# All the files that there are to ask for: read as the server starts.
_FILES = {
    "/": (_PAGE / "play.html", "text/html"),
    "/play.js": (_PAGE / "play.js", "text/javascript"),
    "/play.css": (_PAGE / "play.css", "text/css"),
    "/page.css": (_PAGE.parents[1] / "evaluation/report/templates/page.css", "text/css"),
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """Refuses what another site's page, or anybody without the key, may send.

    A name that leads here by somebody else's DNS is no address of this server (DNS rebinding): in
    ``Host`` are an IP address, ``localhost`` or one of ``names``. ``Origin``, where a browser sends
    it, is this very server's. Below ``/api`` a request carries the key in a header of its own,
    which no form and no image can, and another site's script only after asking in vain. A link to
    the page itself, which has no secret, may stand anywhere.

    Args:
        app: behind it.
        key: of this start.
        names: of this machine.
    """

    def __init__(self, app: ASGIApp, *, key: str, names: Sequence[str] = ()) -> None:
        self.app = app
        self.key = key.encode()
        self.names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None  # which refuses a web socket

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        refused = self._refused(Headers(scope=scope), scope["method"], scope["path"])
        answers = JSONResponse({"why": refused[1]}, refused[0]) if refused else self.app
        return await answers(scope, receive, with_headers)

    def _refused(self, headers: Headers, method: str, path: str) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._is_here(host):
            return 421, "this server has no such name"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, "requests of other sites are not answered"
        if path.startswith("/api/"):
            if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
                return 403, "requests of other sites are not answered"
            if not secrets.compare_digest(headers.get("x-key", "").encode(), self.key):
                return 403, "open the whole address that scoreopt play printed, with what follows #"
        if method == "POST":
            length = headers.get("content-length", "")
            if "transfer-encoding" in headers or not length.isdecimal():
                return 411, "a request must say its length"
            if int(length) > MOST_BYTES:
                return 413, f"the file must have at most {MOST_BYTES:,} bytes"
        return None

    def _is_here(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self.names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def application(
    domains: Sequence[Domain], *, key: str, names: Sequence[str] = (), jobs: Jobs | None = None
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        domains: what there is to choose.
        key, names: as of :class:`Guard`.
        jobs: the line in which experiments wait.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    line = Jobs() if jobs is None else jobs
    of_classifier = {name: domain for domain in domains for name in domain.classifiers}
    app.add_middleware(Guard, key=key, names=names)

    for path, (file, kind) in _FILES.items():
        app.add_route(path, _answer(file.read_bytes(), kind))

    @app.exception_handler(RequestValidationError)
    def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        said = (f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
        return JSONResponse({"why": "; ".join(said)}, 422)

    @app.exception_handler(ValueError)
    def explain(_: Request, error: ValueError) -> JSONResponse:
        return JSONResponse({"why": str(error)}, 422)

    def domain_of(classifier: str) -> Domain:
        if classifier not in of_classifier:
            raise ValueError(f"classifier must be one of {list(of_classifier)}")
        return of_classifier[classifier]

    @app.get("/api/choices")
    def choices() -> dict[str, Any]:
        return {"domains": [domain.as_json() for domain in domains], "fresh": FRESH}

    @app.post("/api/image")
    async def image(request: Request, classifier: Annotated[str, Query()]) -> dict[str, str]:
        domain, content = domain_of(classifier), await request.body()
        x = await run_in_threadpool(pictures.read, content, domain.shape)
        return {"image": pictures.as_url(x)}

    @app.post("/api/experiments")
    async def begin(asked: Asked) -> Response:
        domain = domain_of(asked.classifier)
        if asked.label is not None and asked.label >= len(domain.classes):
            raise ValueError(f"label must be below {len(domain.classes)}")
        if line.is_full:
            return JSONResponse({"why": f"{line.most} experiments wait already"}, 503)
        events = line.events(partial(experiment, domain, asked))
        return StreamingResponse(_lines(events), media_type="application/x-ndjson")

    @app.post("/api/experiments/{id}/stop")
    async def stop(id: str) -> dict[str, str]:
        line.stop(id)
        return {}

    return app


def _answer(content: bytes, kind: str) -> Callable[[Request], Response]:
    return lambda _: Response(content, media_type=f"{kind}; charset=utf-8")


async def _lines(events: AsyncGenerator[Event, None]) -> AsyncIterator[str]:
    async with aclosing(events):
        async for event in events:
            yield json.dumps(event) + "\n"


def serve(
    domains: Sequence[Domain], *, host: str, port: int, say: Callable[[str], object] = print
) -> None:
    """Serve until Ctrl-C, and say the address, which has the key.

    Args:
        domains: what there is to choose.
        host: an address or a name of this machine; 127.0.0.1 is reached from it alone.
        port: 0 takes a free one.
        say: prints the address.

    Raises:
        OSError: if it is taken.
    """
    jobs = Jobs()

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            jobs.stop()  # which ends the answers that it would wait for
            await super().shutdown(sockets)

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listening:
        key, at = secrets.token_urlsafe(16), f"[{host}]" if ":" in host else host
        app = application(domains, key=key, names=[host, socket.gethostname()], jobs=jobs)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10)
        say(f"http://{at}:{listening.getsockname()[1]}/#{key}\nCtrl-C ends it.")
        Server(config).run(sockets=[listening])
