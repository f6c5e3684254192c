"""The second factor once more, before what matters.

Spec: OWASP ASVS 5.0.0 V7.5.3 (re-authentication before sensitive acts)
"""

from fastapi import APIRouter, Request
from starlette.responses import Response

from rayhook.auth.staff_sessions import StaffMember
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.own_page import require_own_page
from rayhook.smart_app.sign_in import CodeField, Landing, LandingField, go
from rayhook.smart_app.sign_in_steps import SignInSteps, caller_of
from rayhook.smart_app.staff_access import CONFIRM, HOME, SIGN_IN, StaffGate, see_other, staff_path
from rayhook.smart_app.staff_pages import StaffPages, staff_router


def build_confirm_router(
    deps: SMARTDependencies, pages: StaffPages, gate: StaffGate, steps: SignInSteps
) -> APIRouter:
    router = staff_router(pages)

    @router.get(CONFIRM)
    def confirm_form(request: Request, landing: Landing = None) -> Response:
        return form(request, signed_in(request), staff_path(landing))

    @router.post(CONFIRM)
    def confirm(request: Request, code: CodeField, landing: LandingField = HOME) -> Response:
        require_own_page(request, deps.public_base_url)
        member = signed_in(request)
        if not steps.prove(member, code, caller_of(request, member)):
            return form(request, member, staff_path(landing), is_wrong=True)
        return go(staff_path(landing))

    def signed_in(request: Request) -> StaffMember:
        member = gate.member(request)
        if member is None:
            raise see_other(SIGN_IN, HOME)
        return member

    def form(request: Request, member: StaffMember, landing: str, *, is_wrong: bool = False) -> Response:
        provider = None if member.provider is None else deps.registry.staff_provider(member.provider)
        return pages.render(
            "sign_in_confirm.html",
            request,
            member,
            status=401 if is_wrong else 200,
            landing=landing,
            is_wrong=is_wrong,
            provider=provider,
        )

    return router
