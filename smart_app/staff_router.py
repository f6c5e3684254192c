"""All pages of the staff that hang on a sign-in here."""

from fastapi import APIRouter

from rayhook.smart_app.audit_router import build_audit_routers
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.enrolment import build_enrolment_router
from rayhook.smart_app.erasures import build_erasure_router
from rayhook.smart_app.pages import Pages
from rayhook.smart_app.sign_in import build_sign_in_router
from rayhook.smart_app.sign_in_confirm import build_confirm_router
from rayhook.smart_app.sign_in_oidc import build_oidc_router
from rayhook.smart_app.sign_in_steps import SignInSteps
from rayhook.smart_app.staff import build_staff_router
from rayhook.smart_app.staff_access import StaffGate
from rayhook.smart_app.staff_accounts import build_account_router
from rayhook.smart_app.staff_jobs import build_job_router
from rayhook.smart_app.staff_pages import StaffPages
from rayhook.smart_app.staff_settings import build_settings_router


def build_staff_routers(deps: SMARTDependencies, pages: Pages, gate: StaffGate) -> APIRouter:
    own = StaffPages(deps, pages)
    steps = SignInSteps(deps)
    router = APIRouter()
    router.include_router(build_sign_in_router(deps, own, gate, steps))
    router.include_router(build_confirm_router(deps, own, gate, steps))
    router.include_router(build_oidc_router(deps, own, gate, steps))
    router.include_router(build_enrolment_router(deps, own, steps))
    router.include_router(build_staff_router(own, gate))
    router.include_router(build_account_router(deps, own, gate))
    router.include_router(build_job_router(deps, own, gate))
    router.include_router(build_erasure_router(deps, own, gate))
    router.include_router(build_settings_router(deps, own, gate))
    router.include_router(build_audit_routers(deps, own, gate))
    return router
