"""All pages of the compliance officer."""

from fastapi import APIRouter

from rayhook.audit.verification import Verifier
from rayhook.smart_app.audit_integrity import build_audit_integrity_router
from rayhook.smart_app.audit_search import build_audit_search_router
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.staff_access import StaffGate
from rayhook.smart_app.staff_pages import StaffPages


def build_audit_routers(deps: SMARTDependencies, pages: StaffPages, gate: StaffGate) -> APIRouter:
    verifier = Verifier(deps.sessions, deps.reading_sessions, deps.keyring, deps.audit)
    router = APIRouter()
    router.include_router(build_audit_search_router(deps, pages, gate))
    router.include_router(build_audit_integrity_router(deps, pages, gate, verifier))
    return router
