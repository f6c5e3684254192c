"""The staff's pages: never in a frame, with links to what the person may open."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import structlog
from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.responses import Response

from rayhook.audit.verification import is_alarmed
from rayhook.auth.roles import Permission
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.correlation import request_id
from rayhook.fhir.errors import InvalidRequest, RayhookError
from rayhook.fhir.text import translatable
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.i18n import language_of, speaking
from rayhook.smart_app.pages import Pages

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StaffLink:
    path: str
    title: str
    about: str
    permission: Permission


# Shown where the route exists and the person has the permission.
LINKS: Final = (
    StaffLink(
        "/staff/audit",
        translatable("Audit"),
        translatable("Search the audit trail, verify it, and account for disclosures."),
        Permission.AUDIT_LOG_READ,
    ),
    StaffLink(
        "/staff/performance",
        translatable("Performance"),
        translatable("How often people agree with the models, and what they changed."),
        Permission.INFERENCE_PERFORMANCE_READ,
    ),
    StaffLink(
        "/staff/models",
        translatable("Models"),
        translatable("The models that are installed, each with its card."),
        Permission.INFERENCE_MODEL_READ,
    ),
    StaffLink(
        "/staff/jobs",
        translatable("Analyses"),
        translatable("Which analyses wait, run or failed, and have them tried again."),
        Permission.INFERENCE_JOB_READ,
    ),
    StaffLink(
        "/staff/accounts",
        translatable("Accounts"),
        translatable("Who may sign in here, and in which roles."),
        Permission.AUTH_ACCOUNT_MANAGE,
    ),
    StaffLink(
        "/staff/erasures",
        translatable("Erasure"),
        translatable("Erase a patient for good: one person asks, another confirms."),
        Permission.AUTH_PATIENT_ERASE,
    ),
    StaffLink(
        "/staff/roles",
        translatable("Roles"),
        translatable("What each role allows, and what each address asks for."),
        Permission.AUTH_ROLE_READ,
    ),
    StaffLink(
        "/staff/settings",
        translatable("Settings"),
        translatable("What the service runs with: settings, EHRs, models, keys and versions."),
        Permission.DEPLOY_SETTINGS_READ,
    ),
)


class StaffPages:
    """Renders the staff's templates; no EHR may show them in a frame."""

    def __init__(self, deps: SMARTDependencies, pages: Pages) -> None:
        self._pages = pages
        self._sessions = deps.reading_sessions

    def render(
        self,
        template: str,
        request: Request,
        member: StaffMember | None,
        *,
        status: int = 200,
        **values: object,
    ) -> Response:
        response = self._pages.render(
            template,
            ehr=None,
            status=status,
            member=member,
            links=[] if member is None else links_of(request, member),
            here=request.url.path,
            is_alarmed=member is not None and self._is_alarmed(),
            **values,
        )
        policy, _, _ = response.headers["Content-Security-Policy"].partition("frame-ancestors")
        response.headers["Content-Security-Policy"] = f"{policy}frame-ancestors 'none'"
        return response

    def _is_alarmed(self) -> bool:
        with self._sessions() as session:
            return is_alarmed(session)

    def problem(self, request: Request, error: RayhookError) -> Response:
        return self.render(
            "staff_problem.html", request, None, status=error.status, error=error, request_id=request_id.get()
        )


def links_of(request: Request, member: StaffMember) -> list[StaffLink]:
    served = {route.path for route in iter_route_contexts(request.app.routes)}
    return [link for link in LINKS if link.path in served and member.can(link.permission)]


def staff_router(pages: StaffPages) -> APIRouter:
    """Return a router whose errors are pages."""

    class StaffRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def with_error_pages(request: Request) -> Response:
                with speaking(language_of(request)):
                    try:
                        return await handle(request)
                    except RequestValidationError as error:
                        return pages.problem(request, _invalid(error))
                    except RayhookError as error:
                        log.info("page_refused", status=error.status, code=error.code)
                        return pages.problem(request, error)

            return with_error_pages

    return APIRouter(route_class=StaffRoute, include_in_schema=False)


def _invalid(error: RequestValidationError) -> InvalidRequest:
    field = str(error.errors()[0]["loc"][-1])
    return InvalidRequest(f"{field}: is missing or has the wrong form", expression=field)
