"""Emergency access: a practitioner without a role says why, and may read for half an hour.

Spec: 45 CFR 164.312(a)(2)(ii)
"""

from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Form, Request
from starlette.responses import RedirectResponse, Response

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry
from rayhook.auth.emergency import start_emergency
from rayhook.fhir.errors import NotFound
from rayhook.fhir.text import translatable
from rayhook.smart_app.access import BREAK_GLASS, Cookies, Gate, Viewer, agent_of, may_break_glass
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.pages import Pages, page_route
from rayhook.smart_app.window import href

PATH: Final = "/emergency"
_SHORTEST: Final = 10
_LONGEST: Final = 500
_NEEDS_REASON: Final = translatable(
    "Write a reason that somebody else will understand, ten letters at least."
)


def build_emergency_router(deps: SMARTDependencies, pages: Pages, gate: Gate) -> APIRouter:
    router = APIRouter(route_class=page_route(pages), include_in_schema=False)
    looking = Annotated[Viewer, Depends(gate.viewer)]
    cookies = Cookies(deps.secure)

    @router.get(PATH)
    def ask(viewer: looking) -> Response:
        _require_offered(viewer)
        return pages.render("emergency.html", ehr=viewer.ehr, problem=None)

    @router.post(PATH)
    def start(request: Request, viewer: looking, reason: Annotated[str, Form()] = "") -> Response:
        _require_offered(viewer)
        told = " ".join(reason.split())[:_LONGEST]
        if len(told) < _SHORTEST:
            return pages.render("emergency.html", ehr=viewer.ehr, status=400, problem=_NEEDS_REASON)
        with deps.sessions() as session:
            ends_at = start_emergency(session, request.cookies[cookies.session], now=deps.clock())
            deps.audit.record(session, _entry(viewer, told, ends_at))
            session.commit()
        return RedirectResponse(href("/patient"), status_code=303, headers={"Cache-Control": "no-store"})

    return router


def _require_offered(viewer: Viewer) -> None:
    """Who has a role needs no emergency, and an EHR that is not registered for it has none."""
    if not may_break_glass(viewer.ehr, viewer.session):
        raise NotFound("emergency access is not offered here", code="emergency_not_offered")


def _entry(viewer: Viewer, reason: str, ends_at: float) -> AuditEntry:
    until = datetime.fromtimestamp(ends_at, UTC)
    return AuditEntry(
        AuditKind.SMART_APP_EMERGENCY_STARTED,
        ehr_id=viewer.ehr.id,
        agent=agent_of(viewer.user),
        patient_id=viewer.patient_id,
        entities=(f"Patient/{viewer.patient_id}",),
        client_id=viewer.session.client_id,
        detail={"reason": reason, "until": f"{until:%Y-%m-%dT%H:%M:%SZ}"},
        purpose=BREAK_GLASS,
    )
