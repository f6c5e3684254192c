"""How long events are kept, what a legal hold keeps longer, and what the next purge would take."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Form, Request
from pydantic import BaseModel
from starlette.responses import RedirectResponse, Response

from rayhook.audit.events import AuditKind
from rayhook.audit.retention import HoldSubject, Retention
from rayhook.auth.roles import Permission
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.errors import InvalidRequest, NotFound
from rayhook.fhir.text import translatable
from rayhook.smart_app.audit_reading import AuditReading
from rayhook.smart_app.audit_words import kind_text
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.i18n import decimal_text, moment_text
from rayhook.smart_app.staff_access import StaffGate
from rayhook.smart_app.staff_pages import StaffPages, staff_router

HOLDS: Final = "/staff/audit/holds"
_NEEDS_SUBJECT: Final = translatable(
    "name a patient with the EHR, a person, or the first and the last event: one of the three"
)
_NEEDS_REASON: Final = translatable("write the reason")


class HoldAsked(BaseModel):
    reason: str = ""
    ehr: str = ""
    patient: str = ""
    person: str = ""
    first: str = ""
    last: str = ""

    def subject(self) -> HoldSubject:
        """Raise InvalidRequest where it is not exactly one of the three."""
        try:
            return HoldSubject(
                ehr_id=self.ehr or None,
                patient_id=self.patient.strip() or None,
                agent=self.person.strip() or None,
                first_seq=int(self.first) if self.first.strip() else None,
                last_seq=int(self.last) if self.last.strip() else None,
            )
        except (InvalidRequest, ValueError) as error:
            raise InvalidRequest(_NEEDS_SUBJECT) from error


@dataclass(frozen=True, slots=True)
class HoldPages:
    deps: SMARTDependencies
    pages: StaffPages
    gate: StaffGate
    reading: AuditReading

    def show(
        self, request: Request, member: StaffMember, *, problem: str | None = None, status: int = 200
    ) -> Response:
        self.reading.record(member, AuditKind.AUDIT_LOG_READ, {"page": "holds"})
        retention = self._retention(member)
        with self.deps.reading_sessions() as session:
            holds = retention.holds(session)
            plan = retention.plan(session, now=self._now())
        return self.pages.render(
            "audit_holds.html",
            request,
            member,
            status=status,
            problem=problem,
            holds=holds,
            plan=plan,
            kept_days=decimal_text(self.deps.retention.kept_days),
            by_kind=[(kind_text(kind), days) for kind, days in sorted(self.deps.retention.by_kind.items())],
            is_fresh=self.gate.is_fresh(member),
            ehrs=[(ehr.id, ehr.name) for ehr in self.deps.registry],
            moment=moment_text,
        )

    def place(self, member: StaffMember, asked: HoldAsked) -> None:
        subject = asked.subject()
        if not asked.reason.strip():
            raise InvalidRequest(_NEEDS_REASON, expression="reason")
        with self.deps.sessions() as session:
            self._retention(member).place(session, subject, reason=asked.reason, now=self._now())
            session.commit()

    def release(self, member: StaffMember, hold_id: str) -> None:
        with self.deps.sessions() as session:
            self._retention(member).release(session, hold_id, now=self._now())
            session.commit()

    def _retention(self, member: StaffMember) -> Retention:
        return Retention(self.deps.keyring, self.deps.audit, self.deps.retention, agent=member.agent)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.deps.clock(), UTC)


def build_audit_hold_router(deps: SMARTDependencies, pages: StaffPages, gate: StaffGate) -> APIRouter:
    router = staff_router(pages)
    reading = Annotated[StaffMember, Depends(gate.staffing(Permission.AUDIT_HOLD_MANAGE))]
    holding = Annotated[StaffMember, Depends(gate.staffing(Permission.AUDIT_HOLD_MANAGE, fresh=True))]
    own = HoldPages(deps, pages, gate, AuditReading(deps))

    @router.get(HOLDS)
    def show(request: Request, member: reading) -> Response:
        return own.show(request, member)

    @router.post(HOLDS)
    def place(request: Request, member: holding, asked: Annotated[HoldAsked, Form()]) -> Response:
        try:
            own.place(member, asked)
        except InvalidRequest as error:
            return own.show(request, member, problem=error.message, status=error.status)
        return _back()

    @router.post(f"{HOLDS}/{{hold_id}}/release")
    def release(hold_id: str, member: holding) -> Response:
        try:
            own.release(member, hold_id)
        except NotFound:
            own.reading.record(member, AuditKind.AUDIT_LOG_READ, {"page": "holds", "missing": hold_id[:32]})
            raise
        return _back()

    return router


def _back() -> Response:
    return RedirectResponse(HOLDS, status_code=303, headers={"Cache-Control": "no-store"})
