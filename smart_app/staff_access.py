"""Who of the staff asks: their own cookie, their permission, and the second factor shown again before what matters."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.auth.roles import Permission
from rayhook.auth.staff_sessions import PROOF_LIFE_S, SESSION_LIFE_S, StaffMember, find_staff_session
from rayhook.fhir.errors import Forbidden, RayhookError
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.own_page import SAFE_METHODS, require_own_page

HOME: Final = "/staff"
SIGN_IN: Final = "/sign-in"
CONFIRM: Final = "/sign-in/confirm"
_STAFF_PATH: Final = re.compile(r"/staff(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")


@dataclass(frozen=True, slots=True)
class StaffCookies:
    """The session's, never sent from other sites; and the one that ties a sign-in elsewhere to its browser.

    Spec: RFC 6265bis section 4.1.3.2 (`__Host-`), section 4.1.2.7 (`SameSite`)
    """

    secure: bool

    @property
    def session(self) -> str:
        return "__Host-rayhook-staff" if self.secure else "rayhook-development-staff"

    @property
    def sign_in(self) -> str:
        return "__Host-rayhook-sign-in" if self.secure else "rayhook-development-sign-in"

    def put_session(self, response: Response, session_id: str) -> None:
        self._put(response, self.session, session_id, same_site="Strict", max_age_s=int(SESSION_LIFE_S))

    def drop_session(self, response: Response) -> None:
        self._put(response, self.session, "", same_site="Strict", max_age_s=0)

    def put_sign_in(self, response: Response, binding: str, *, max_age_s: int) -> None:
        """Lax: the provider sends the browser back from its own site."""
        self._put(response, self.sign_in, binding, same_site="Lax", max_age_s=max_age_s)

    def _put(self, response: Response, name: str, value: str, *, same_site: str, max_age_s: int) -> None:
        secure = "Secure; " if self.secure else ""
        response.headers.append(
            "Set-Cookie",
            f"{name}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; {secure}SameSite={same_site}",
        )


class StaffGate:
    """Lets the staff in by their cookie, and tells the audit of everybody it does not let in."""

    def __init__(self, deps: SMARTDependencies) -> None:
        self._deps = deps
        self.cookies = StaffCookies(deps.secure)

    def member(self, request: Request) -> StaffMember | None:
        session_id = request.cookies.get(self.cookies.session)
        if session_id is None:
            return None
        with self._deps.sessions() as session:
            found = find_staff_session(session, self._deps.keyring, session_id, clock=self._deps.clock)
            session.commit()
        if found is not None and found.provider is not None:
            return found if self._deps.registry.staff_provider(found.provider) else None
        return found

    def staff(self, request: Request, permission: Permission | None, *, fresh: bool = False) -> StaffMember:
        """Return who asks; without `permission`, anybody who is signed in.

        Nobody is sent to the sign-in page; one whose last proof is older than ten minutes is, where `fresh`, sent to
        show the second factor again. Raises Forbidden, told to the audit, without the permission, and for a form of
        another site.
        """
        if request.method not in SAFE_METHODS:
            require_own_page(request, self._deps.public_base_url)
        member = self.member(request)
        if member is None:
            raise see_other(SIGN_IN, landing_of(request))
        if permission is not None:
            self.require(member, permission)
        if fresh and not self.is_fresh(member):
            raise see_other(CONFIRM, landing_of(request))
        return member

    def staffing(self, permission: Permission | None, *, fresh: bool = False) -> "Staffing":
        """Return the dependency of a route that asks for `permission`."""
        return Staffing(self, permission, fresh)

    def is_fresh(self, member: StaffMember) -> bool:
        return member.proved_within(PROOF_LIFE_S, self._deps.clock())

    def require(self, member: StaffMember, permission: Permission) -> None:
        if not member.can(permission):
            error = Forbidden("your role does not allow this", code="role_insufficient")
            raise self.refused(error, member, permission)

    def refused(self, error: RayhookError, member: StaffMember, permission: Permission) -> RayhookError:
        """Record that access was denied, and return the error to raise."""
        with self._deps.sessions() as session:
            self._deps.audit.record(
                session,
                AuditEntry(
                    kind=AuditKind.SMART_APP_ACCESS_DENIED,
                    outcome=Outcome.SERIOUS_FAILURE,
                    agent=member.agent,
                    detail={"code": error.code, "permission": permission.value},
                ),
            )
            session.commit()
        return error


@dataclass(frozen=True, slots=True)
class Staffing:
    """Somebody of the staff whose roles allow `permission`; the access matrix reads it off the route."""

    gate: StaffGate
    permission: Permission | None
    fresh: bool

    def __call__(self, request: Request) -> StaffMember:
        return self.gate.staff(request, self.permission, fresh=self.fresh)


def see_other(path: str, landing: str) -> HTTPException:
    """Return what sends the browser to `path`, and from there on to `landing`."""
    query = "" if landing == HOME else f"?{urlencode({'next': landing})}"
    return HTTPException(303, headers={"Location": f"{path}{query}", "Cache-Control": "no-store"})


def landing_of(request: Request) -> str:
    """Return the page to come back to. A form's address is not one: it would act again."""
    return staff_path(request.url.path if request.method in SAFE_METHODS else HOME)


def staff_path(path: str | None) -> str:
    """Return `path` where it is one of the staff's pages, else their first: no other place is ever gone to."""
    return path if path is not None and _STAFF_PATH.fullmatch(path) else HOME
