"""What every request passes on its way in and out, as plain ASGI: id, log line, safe headers."""

import time
from collections.abc import Iterable

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayhook.audit.context import RequestPurpose, RequestSource, request_purpose, request_source
from rayhook.fhir.correlation import accept_request_id, request_id

log = structlog.get_logger(__name__)

_SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_HSTS = "max-age=63072000; includeSubDomains"


class RequestContext:
    """Bind `X-Request-Id`, add safe headers that a route has not set itself, and log one line.

    The line names the route's template, never its path: a path may hold an id of a patient's resource.
    """

    def __init__(self, app: ASGIApp, *, https: bool) -> None:
        self.app = app
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
            log.info(
                "request_answered",
                method=scope["method"],
                route=getattr(scope.get("route"), "path", "unmatched"),
                status=status,
                elapsed_ms=round((time.perf_counter() - started) * 1000, 1),
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
