"""What every request passes on its way in and out, as plain ASGI: id, log line, safe headers."""

import time
from collections.abc import Iterable

import structlog
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayhook.audit.context import RequestPurpose, RequestSource, request_purpose, request_source
from rayhook.deploy.health import HEALTH, Health, Phase
from rayhook.deploy.request_metrics import UNMATCHED, RequestMetrics
from rayhook.fhir.correlation import accept_request_id, request_id
from rayhook.fhir.errors import ServiceUnavailable, operation_outcome

log = structlog.get_logger(__name__)

_SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_STARTING_S = 2
_HSTS = "max-age=63072000; includeSubDomains"


class WhileStarting:
    """Answer with 503 until the parts are there whose routes are asked for; the health routes are there at once."""

    def __init__(self, app: ASGIApp, *, health: Health) -> None:
        self.app = app
        self.health = health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_there = self.health.phase in {Phase.RUNNING, Phase.STOPPING}
        if is_there or scope["type"] != "http" or scope["path"].startswith(HEALTH):
            await self.app(scope, receive, send)
            return
        waiting = self.health.waiting
        error = (
            ServiceUnavailable("the service is starting", code="starting") if waiting is None else waiting[1]
        )
        headers = {"Cache-Control": "no-store", "Retry-After": str(_STARTING_S)}
        await JSONResponse(operation_outcome(error), error.status, headers)(scope, receive, send)


class RequestContext:
    """Bind `X-Request-Id`, add safe headers that a route has not set itself, and log one line.

    The line names the route's template, never its path: a path may hold an id of a patient's resource.
    """

    def __init__(self, app: ASGIApp, *, https: bool, metrics: RequestMetrics | None = None) -> None:
        self.app = app
        self.metrics = metrics or RequestMetrics()
        self.headers = _SAFE_HEADERS | ({"Strict-Transport-Security": _HSTS} if https else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        identifier = accept_request_id(_header(scope["headers"], b"x-request-id"))
        token = request_id.set(identifier)
        source = request_source.set(_source(scope))
        purpose = request_purpose.set(RequestPurpose())
        started = time.perf_counter()
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = identifier
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            elapsed_s = time.perf_counter() - started
            method, route = scope["method"], getattr(scope.get("route"), "path", UNMATCHED)
            self.metrics.note(method, route, status=status, elapsed_s=elapsed_s)
            log.info(
                "request_answered",
                method=method,
                route=route,
                status=status,
                elapsed_ms=round(elapsed_s * 1000, 1),
            )
            request_purpose.reset(purpose)
            request_source.reset(source)
            request_id.reset(token)


def _source(scope: Scope) -> RequestSource:
    """Spec: ASGI 3.0, `client` and `server` of the HTTP connection scope; either may be absent."""
    client, server = scope.get("client"), scope.get("server")
    return RequestSource("" if client is None else str(client[0]), "" if server is None else str(server[0]))


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key == name), None)
