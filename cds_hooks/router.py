"""The CDS Hooks endpoints.

Spec: CDS Hooks 2.0.1 and 3.0.0-ballot
"""

import time
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from starlette.responses import HTMLResponse, Response

from rayhook.cds_hooks.call import answer_call
from rayhook.cds_hooks.cors import cors_route, preflight
from rayhook.cds_hooks.dependencies import CDSDependencies
from rayhook.cds_hooks.documentation import page
from rayhook.cds_hooks.feedback import receive_feedback
from rayhook.cds_hooks.hook_call import Received
from rayhook.cds_hooks.json_body import MAX_BODY_BYTES
from rayhook.cds_hooks.openapi import call_operation, feedback_operation
from rayhook.cds_hooks.services import Service, discovery, services_by_id
from rayhook.fhir.errors import NotFound, PayloadTooLarge

__all__ = ["CDSDependencies", "build_router"]

_JSON = "application/json"
_NO_STORE = {"Cache-Control": "no-store"}
_PAGE = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}


def build_router(dependencies: CDSDependencies) -> APIRouter:
    """Return the routes below `/cds-services`; errors leave it as RayhookError, for the application to render."""
    origins = {origin for ehr in dependencies.registry for origin in ehr.cors_origins}
    router = APIRouter(prefix="/cds-services", tags=["CDS Hooks"], route_class=cors_route(origins))
    services, by_id = discovery(), services_by_id()
    documentation = page(dependencies.public_base_url)

    def hooks_of(service_id: str) -> Mapping[str, Service]:
        if service_id not in by_id:
            raise NotFound("there is no CDS service of this id", code="unknown_service")
        return by_id[service_id]

    @router.get("", response_class=Response)
    def discover() -> Response:
        """List the CDS services."""
        return Response(services, media_type=_JSON)

    @router.get("/documentation", response_class=HTMLResponse)
    def document() -> Response:
        """Tell integrators what to register, what to send, and how to check it."""
        return HTMLResponse(documentation, headers=_PAGE)

    @router.post("/{service_id}", response_class=Response, openapi_extra=call_operation())
    def call_service(
        service_id: str,
        received: Annotated[Received, Depends(_received)],
        authorization: _Authorization = None,
    ) -> Response:
        """Answer a hook with cards."""
        body = answer_call(dependencies, service_id, hooks_of(service_id), authorization, received)
        return Response(body, media_type=_JSON, headers=_NO_STORE)

    @router.post("/{service_id}/feedback", response_class=Response, openapi_extra=feedback_operation())
    def take_feedback(
        service_id: str,
        received: Annotated[Received, Depends(_received)],
        authorization: _Authorization = None,
    ) -> Response:
        """Take what clinicians did with cards."""
        hooks_of(service_id)
        receive_feedback(dependencies, service_id, authorization, received.body)
        return Response(headers=_NO_STORE)

    router.add_api_route(
        "{path:path}", preflight, methods=["OPTIONS"], response_class=Response, include_in_schema=False
    )
    return router


_Authorization = Annotated[str | None, Header()]


async def _received(request: Request) -> Received:
    """Read the body up to the limit: what is longer is not read to its end."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"the body is longer than {MAX_BODY_BYTES} bytes")
        chunks.append(chunk)
    return Received(b"".join(chunks), time.monotonic())
