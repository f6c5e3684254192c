"""Who looks, at which patient: the session cookie, and the audit of what is refused.

Pages are made for one session and say so: write every link, form action and data address of a template with
`href(...)`, and let scripts use those addresses or send X-Rayhook-Window (see `window`). What changes something
without that mark is refused with 409.
"""

from dataclasses import dataclass, replace

from fastapi import Request
from starlette.responses import Response

from rayhook.audit.context import request_purpose
from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.auth.abilities import Ability
from rayhook.auth.emergency import emergency_end
from rayhook.auth.principal import SMARTUser
from rayhook.auth.registry import EHR
from rayhook.auth.roles import EMERGENCY, Permission, Role, permissions_of
from rayhook.auth.sessions import SMARTSession
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.errors import Forbidden, RayhookError, Unauthenticated
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.i18n import COOKIES, prefer
from rayhook.smart_app.live_sessions import LiveSessions
from rayhook.smart_app.own_page import SAFE_METHODS, require_own_page
from rayhook.smart_app.problem import SCOPE_MISSING
from rayhook.smart_app.staff_access import StaffGate, Staffing
from rayhook.smart_app.window import StaleWindow, note_emergency, note_session, require_same_window

__all__ = ["Cookies", "Gate", "Viewer", "Viewing", "agent_of", "require_own_page"]

# Spec: HL7 v3 ActReason, "break the glass"
BREAK_GLASS = "BTG"
# A page that brings itself up to date is no use of the session by a person.
_REFRESH = "X-Rayhook-Refresh"


@dataclass(frozen=True, slots=True)
class Cookies:
    """Host-bound, partitioned cookies on https; on plain loopback, which has neither, a cookie of its own name.

    Spec: RFC 6265bis section 4.1.3.2 (`__Host-`); CHIPS (`Partitioned`), for the EHR shows us in a frame
    """

    secure: bool

    @property
    def session(self) -> str:
        return "__Host-rayhook-session" if self.secure else "rayhook-development-session"

    @property
    def launch(self) -> str:
        return "__Host-rayhook-launch" if self.secure else "rayhook-development-launch"

    @property
    def language(self) -> str:
        return COOKIES[0] if self.secure else COOKIES[1]

    def put(self, response: Response, name: str, value: str, *, max_age_s: int) -> None:
        """Written by hand: Python 3.11's cookies do not know `Partitioned`."""
        rules = "Secure; SameSite=None; Partitioned" if self.secure else "SameSite=Lax"
        response.headers.append(
            "Set-Cookie", f"{name}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; {rules}"
        )

    def drop(self, response: Response, name: str) -> None:
        self.put(response, name, "", max_age_s=0)


@dataclass(frozen=True, slots=True)
class Viewer:
    """A person with a live session and a patient in context.

    `emergency_until` is when their leave to read without a role ends.
    """

    ehr: EHR
    patient_id: str
    session: SMARTSession
    emergency_until: float | None = None

    @property
    def user(self) -> SMARTUser:
        return SMARTUser(
            ehr=self.ehr,
            fhir_user=self.session.fhir_user,
            patient_id=self.patient_id,
            scopes=self.session.scopes,
            client_id=self.session.client_id,
            name=self.session.name,
            roles=self.roles,
        )

    @property
    def roles(self) -> frozenset[Role]:
        return self.session.roles

    def can(self, permission: Permission) -> bool:
        """Say whether the person's roles allow it; `may` says whether the EHR's token does."""
        if self.emergency_until is not None and permission in EMERGENCY:
            return True
        return permission in permissions_of(self.roles)

    def may(self, resource_type: str, interaction: str) -> bool:
        return self.session.scopes.permits(None, resource_type, interaction)


class Gate:
    """Lets a browser in by its cookie, and tells the audit of everybody it does not let in."""

    def __init__(self, deps: SMARTDependencies) -> None:
        self._deps = deps
        self._cookies = Cookies(deps.secure)
        self._live = LiveSessions(deps)
        self.of_staff = StaffGate(deps)

    def staff(self, request: Request, permission: Permission, *, fresh: bool = False) -> StaffMember:
        """Let in somebody of the staff; `StaffGate.staff` says who is not."""
        return self.of_staff.staff(request, permission, fresh=fresh)

    def staffing(self, permission: Permission, *, fresh: bool = False) -> Staffing:
        """Return the dependency of a staff page that asks for `permission`."""
        return self.of_staff.staffing(permission, fresh=fresh)

    def viewer(self, request: Request) -> Viewer:
        """Return who looks, by the cookie.

        Raises Unauthenticated without a live session, Forbidden without a patient or the right to read, and for a
        form of another site.
        """
        if request.method not in SAFE_METHODS:
            require_own_page(request, self._deps.public_base_url)
        session_id = request.cookies.get(self._cookies.session)
        found = (
            None if session_id is None else self._live.find(session_id, noted=_REFRESH not in request.headers)
        )
        ehr = None if found is None else self._deps.registry.by_id(found.ehr_id)
        if found is None or ehr is None:
            raise self.refused(Unauthenticated("no live session"), None)
        prefer(ehr.language)
        if found.patient_id is None:
            raise self.refused(Forbidden("your EHR named no patient"), None)
        assert session_id is not None
        viewer = Viewer(ehr, found.patient_id, found, self._emergency(session_id, found, ehr))
        self._require_same_window(request, viewer)
        if Ability.READ_REPORTS not in viewer.session.abilities:
            raise self.refused(
                Forbidden(
                    "not permitted by your EHR: reading of DiagnosticReport",
                    code=SCOPE_MISSING,
                    expression="patient/DiagnosticReport.r",
                ),
                viewer.user,
            )
        return viewer

    def _emergency(self, session_id: str, found: SMARTSession, ehr: EHR) -> float | None:
        """Return when emergency access ends; while there is any, all that the request does is told as such."""
        if not may_break_glass(ehr, found):
            return None
        with self._deps.reading_sessions() as session:
            ends_at = emergency_end(session, session_id, now=self._deps.clock())
        purpose = request_purpose.get()
        if ends_at is not None:
            note_emergency(ends_at)
            if purpose is not None:
                purpose.code = BREAK_GLASS
        return ends_at

    def viewing(self, permission: Permission) -> "Viewing":
        """Return the dependency of a route that asks for `permission`."""
        return Viewing(self, permission)

    def require(self, viewer: Viewer, permission: Permission) -> None:
        """Raise Forbidden, told to the audit, unless one of the viewer's roles allows `permission`."""
        if not viewer.can(permission):
            error = Forbidden("your role does not allow this", code="role_insufficient")
            raise self.refused(error, viewer.user, permission=permission)

    def _require_same_window(self, request: Request, viewer: Viewer) -> None:
        """See `window`: a page made in another session acts on nobody, and shows nobody."""
        try:
            require_same_window(request, viewer.session)
        except StaleWindow as error:
            raise self.refused(error, viewer.user) from error
        note_session(viewer.session)

    def refused(
        self,
        error: RayhookError,
        user: SMARTUser | None,
        *entities: str,
        permission: Permission | None = None,
    ) -> RayhookError:
        """Record that access was denied, and return the error to raise."""
        told = {"code": error.code, **({} if permission is None else {"permission": permission.value})}
        entry = AuditEntry(
            AuditKind.SMART_APP_ACCESS_DENIED, Outcome.SERIOUS_FAILURE, entities=entities, detail=told
        )
        if user is None:
            self._deps.tell_refusal(entry)
            return error
        entry = replace(
            entry,
            ehr_id=user.ehr.id,
            agent=agent_of(user),
            client_id=user.client_id,
            patient_id=user.patient_id,
        )
        self._deps.tell(entry)
        return error


@dataclass(frozen=True, slots=True)
class Viewing:
    """A viewer whose roles allow `permission`; the access matrix reads it off the route."""

    gate: Gate
    permission: Permission

    def __call__(self, request: Request) -> Viewer:
        viewer = self.gate.viewer(request)
        self.gate.require(viewer, self.permission)
        return viewer


def may_break_glass(ehr: EHR, session: SMARTSession) -> bool:
    """Say whether the EHR's registration offers emergency access to a person without a role."""
    return ehr.break_glass and not session.roles


def agent_of(user: SMARTUser) -> str:
    """Return who acts, for the audit: the person, or where the EHR does not say who, its client."""
    return user.fhir_user or user.client_id
