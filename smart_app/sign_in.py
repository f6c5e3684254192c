"""The staff's way in and out: name, password and code.

Spec: NIST SP 800-63B-4; OWASP ASVS 5.0.0 V6, V7
"""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from rayhook.fhir.errors import RateLimited
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.own_page import require_own_page
from rayhook.smart_app.sign_in_steps import SignInSteps, caller_of
from rayhook.smart_app.staff_access import HOME, SIGN_IN, StaffGate, staff_path
from rayhook.smart_app.staff_pages import StaffPages, staff_router

Landing = Annotated[str | None, Query(alias="next", max_length=255)]
LandingField = Annotated[str, Form(alias="next", max_length=255)]
PasswordField = Annotated[str, Form(max_length=1024)]
CodeField = Annotated[str, Form(max_length=64)]


def build_sign_in_router(
    deps: SMARTDependencies, pages: StaffPages, gate: StaffGate, steps: SignInSteps
) -> APIRouter:
    router = staff_router(pages)

    @router.get(SIGN_IN)
    def sign_in_form(request: Request, landing: Landing = None) -> Response:
        if gate.member(request) is not None:
            return go(staff_path(landing))
        return sign_in_page(deps, pages, request, landing)

    @router.post(SIGN_IN)
    def sign_in(
        request: Request,
        name: Annotated[str, Form(max_length=255)],
        password: PasswordField,
        code: CodeField,
        landing: LandingField = HOME,
    ) -> Response:
        require_own_page(request, deps.public_base_url)
        try:
            session_id = steps.sign_in(name, password, code, caller_of(request, gate.member(request)))
        except RateLimited as error:
            response = sign_in_page(deps, pages, request, landing, problem="throttled", status=error.status)
            response.headers["Retry-After"] = str(error.retry_after_s)
            return response
        if session_id is None:
            return sign_in_page(deps, pages, request, landing, problem="wrong", status=401)
        response = go(staff_path(landing))
        gate.cookies.put_session(response, session_id)
        return response

    @router.post("/sign-out")
    def sign_out(request: Request) -> Response:
        require_own_page(request, deps.public_base_url)
        member = gate.member(request)
        if member is not None:
            steps.sign_out(member)
        response = go(SIGN_IN)
        gate.cookies.drop_session(response)
        return response

    return router


def sign_in_page(
    deps: SMARTDependencies,
    pages: StaffPages,
    request: Request,
    landing: str | None,
    *,
    problem: str | None = None,
    status: int = 200,
) -> Response:
    return pages.render(
        "sign_in.html",
        request,
        None,
        status=status,
        landing=staff_path(landing),
        problem=problem,
        providers=deps.registry.staff_providers,
    )


def go(path: str) -> Response:
    return RedirectResponse(path, status_code=303, headers={"Cache-Control": "no-store"})
