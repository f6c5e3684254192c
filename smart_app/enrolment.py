"""Enrolment by invitation: a password of one's own, an authenticator app, recovery codes.

Spec: NIST SP 800-63B-4 sections 3.1.1, 4.1
"""

from fastapi import APIRouter, Request
from starlette.responses import Response

from rayhook.auth.one_time_codes import enrolment_uri, qr_svg
from rayhook.auth.passwords import MAX_LENGTH, MIN_LENGTH
from rayhook.fhir.errors import InvalidRequest
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.own_page import require_own_page
from rayhook.smart_app.sign_in import CodeField, PasswordField
from rayhook.smart_app.sign_in_steps import SignInSteps, caller_of
from rayhook.smart_app.staff_pages import StaffPages, staff_router


def build_enrolment_router(deps: SMARTDependencies, pages: StaffPages, steps: SignInSteps) -> APIRouter:
    router = staff_router(pages)

    @router.get("/sign-in/enrol/{token}")
    def enrolment_form(request: Request, token: str) -> Response:
        return form(request, token)

    @router.post("/sign-in/enrol/{token}")
    def enrol(
        request: Request, token: str, password: PasswordField, repeated: PasswordField, code: CodeField
    ) -> Response:
        require_own_page(request, deps.public_base_url)
        if password != repeated:
            return form(request, token, problem="password_differs")
        try:
            codes = steps.enrol(token, password, code, caller_of(request))
        except InvalidRequest as error:
            return form(request, token, problem=error.code)
        return pages.render("enrolled.html", request, None, codes=codes)

    def form(request: Request, token: str, *, problem: str | None = None) -> Response:
        account, secret = steps.invitation(token)
        return pages.render(
            "enrol.html",
            request,
            None,
            status=200 if problem is None else 400,
            account=account,
            secret=secret,
            qr=qr_svg(enrolment_uri(secret, account_name=account.name)),
            lengths=(MIN_LENGTH, MAX_LENGTH),
            problem=problem,
        )

    return router
