"""All pages of the compliance officer."""

from fastapi import APIRouter

from rayhook.audit.unusual import Watching
from rayhook.audit.verification import Verifier
from rayhook.audit.watch import Thresholds
from rayhook.smart_app.audit_exports import build_audit_export_router
from rayhook.smart_app.audit_holds import build_audit_hold_router
from rayhook.smart_app.audit_integrity import build_audit_integrity_router
from rayhook.smart_app.audit_reports import build_audit_report_router
from rayhook.smart_app.audit_reviews import build_audit_review_router
from rayhook.smart_app.audit_search import build_audit_search_router
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.staff_access import StaffGate
from rayhook.smart_app.staff_pages import StaffPages


def build_audit_routers(deps: SMARTDependencies, pages: StaffPages, gate: StaffGate) -> APIRouter:
    parts = deps.sessions, deps.reading_sessions, deps.keyring, deps.audit
    verifier = deps.verifier or Verifier(*parts)
    watching = deps.watching or Watching(*parts, Thresholds())
    router = APIRouter()
    router.include_router(build_audit_search_router(deps, pages, gate))
    router.include_router(build_audit_integrity_router(deps, pages, gate, verifier))
    router.include_router(build_audit_review_router(deps, pages, gate, watching))
    router.include_router(build_audit_report_router(deps, pages, gate))
    router.include_router(build_audit_export_router(deps, pages, gate))
    router.include_router(build_audit_hold_router(deps, pages, gate))
    return router
