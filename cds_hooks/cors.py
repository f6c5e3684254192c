"""CORS for EHR clients that run in a browser: registered origins only, and never with cookies.

Spec: CDS Hooks 2.0.1, "Cross-Origin Resource Sharing"; Fetch Standard, 3.2 "CORS protocol"
"""

from collections.abc import Iterable

from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

_PREFLIGHT = {
    "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Request-Id",
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Max-Age": "600",
}


def cors_route(origins: Iterable[str]) -> type[APIRoute]:
    """Return a route class whose answers, refusals among them, a page of `origins` may read."""
    allowed = frozenset(origins)

    class CORSRoute(APIRoute):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            origin = Headers(scope=scope).get("origin")

            async def send_with_cors(message: Message) -> None:
                if message["type"] == "http.response.start":
                    headers = MutableHeaders(scope=message)
                    headers.add_vary_header("Origin")
                    if origin in allowed:
                        headers["Access-Control-Allow-Origin"] = origin
                        headers["Access-Control-Expose-Headers"] = "Retry-After, X-Request-Id"
                await send(message)

            await super().handle(scope, receive, send_with_cors)

    return CORSRoute


def preflight() -> Response:
    """Answer OPTIONS; without `Access-Control-Allow-Origin`, which the route adds, it allows nothing."""
    return Response(status_code=204, headers=_PREFLIGHT)
