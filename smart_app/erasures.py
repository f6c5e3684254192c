"""Erasing a patient: asked for on this page by one person, confirmed on it by another."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Form, Request
from pydantic import BaseModel
from starlette.responses import RedirectResponse, Response

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.auth.roles import Permission
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.errors import Conflict, InvalidRequest, NotFound
from rayhook.fhir.text import translatable
from rayhook.inference.erasure import Erasure, ErasurePatient
from rayhook.smart_app.audit_words import who_text
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.i18n import decimal_text, moment_text
from rayhook.smart_app.staff_access import StaffGate
from rayhook.smart_app.staff_pages import StaffPages, staff_router

ERASURES: Final = "/staff/erasures"
_UNKNOWN_EHR: Final = translatable("choose the EHR that the patient is of")
_NOT_TYPED: Final = translatable(
    "type the patient's id again, as it is above, to confirm that it is the right one"
)


class ErasureAsked(BaseModel):
    ehr: str = ""
    patient: str = ""
    again: str = ""
    reason: str = ""
    audit: str = ""

    def of(self, ehr_ids: frozenset[str]) -> ErasurePatient:
        """Raise InvalidRequest where it is not certain who is meant."""
        if self.ehr not in ehr_ids:
            raise InvalidRequest(_UNKNOWN_EHR, expression="ehr")
        if self.again.strip() != self.patient.strip():
            raise InvalidRequest(_NOT_TYPED, expression="again")
        return ErasurePatient(self.ehr, self.patient.strip())


class ErasureConfirmed(BaseModel):
    again: str = ""


@dataclass(frozen=True, slots=True)
class ErasurePages:
    deps: SMARTDependencies
    pages: StaffPages
    gate: StaffGate

    def show(
        self, request: Request, member: StaffMember, *, problem: str | None = None, status: int = 200
    ) -> Response:
        """Return the page; who reads it is in the log before, with the patients that it names."""
        erasures = self.deps.patient_erasures
        with self.deps.sessions() as session:
            found = erasures.listed(session)
            waiting = {
                one.id: erasures.holdings(session, ErasurePatient(one.ehr_id, one.patient_id))
                for one in found
                if one.is_waiting and one.patient_id is not None
            }
            self.deps.audit.record(session, _listed(member))
            for one in found:
                if one.patient_id is not None:
                    self.deps.audit.record(session, _listed(member, one))
            session.commit()
        return self.pages.render(
            "staff_erasures.html",
            request,
            member,
            status=status,
            problem=problem,
            erasures=found,
            holdings=waiting,
            is_fresh=self.gate.is_fresh(member),
            ehrs=[(ehr.id, ehr.name) for ehr in self.deps.registry],
            names={ehr.id: ehr.name for ehr in self.deps.registry},
            kept_days=decimal_text(self.deps.retention.longest_days),
            moment=lambda at: moment_text(datetime.fromtimestamp(at, UTC)),
            who=who_text,
        )

    def missing(self, member: StaffMember, erasure_id: str) -> None:
        """Tell the log that somebody asked for an erasure that is not there."""
        entry = replace(_listed(member), outcome=Outcome.MINOR_FAILURE)
        self.deps.tell(replace(entry, detail={"missing": erasure_id[:32]}))

    def ask(self, member: StaffMember, asked: ErasureAsked) -> None:
        patient = asked.of(frozenset(ehr.id for ehr in self.deps.registry))
        with self.deps.sessions() as session:
            self.deps.patient_erasures.ask(
                session, patient, reason=asked.reason, takes_audit=asked.audit == "yes", agent=member.agent
            )
            session.commit()

    def confirm(self, member: StaffMember, erasure_id: str, again: str) -> None:
        """Raise InvalidRequest where the patient's id is not that of the erasure: nobody confirms by habit."""
        erasures = self.deps.patient_erasures
        with self.deps.sessions() as session:
            patient = erasures.patient_of(session, erasure_id)
            if again.strip() != patient.patient_id:
                raise InvalidRequest(_NOT_TYPED, expression="again")
            done = erasures.confirm(session, erasure_id, agent=member.agent)
            session.commit()
        self.deps.erased(done)

    def withdraw(self, member: StaffMember, erasure_id: str) -> None:
        with self.deps.sessions() as session:
            self.deps.patient_erasures.withdraw(session, erasure_id, agent=member.agent)
            session.commit()


def build_erasure_router(deps: SMARTDependencies, pages: StaffPages, gate: StaffGate) -> APIRouter:
    router = staff_router(pages)
    reading = Annotated[StaffMember, Depends(gate.staffing(Permission.AUTH_PATIENT_ERASE))]
    erasing = Annotated[StaffMember, Depends(gate.staffing(Permission.AUTH_PATIENT_ERASE, fresh=True))]
    own = ErasurePages(deps, pages, gate)

    @router.get(ERASURES)
    def show(request: Request, member: reading) -> Response:
        return own.show(request, member)

    @router.post(ERASURES)
    def ask(request: Request, member: erasing, asked: Annotated[ErasureAsked, Form()]) -> Response:
        try:
            own.ask(member, asked)
        except (Conflict, InvalidRequest) as error:
            return own.show(request, member, problem=error.message, status=error.status)
        return _back()

    @router.post(f"{ERASURES}/{{erasure_id}}/confirm")
    def confirm(
        request: Request, erasure_id: str, member: erasing, confirmed: Annotated[ErasureConfirmed, Form()]
    ) -> Response:
        try:
            own.confirm(member, erasure_id, confirmed.again)
        except (Conflict, InvalidRequest) as error:
            return own.show(request, member, problem=error.message, status=error.status)
        except NotFound:
            own.missing(member, erasure_id)
            raise
        return _back()

    @router.post(f"{ERASURES}/{{erasure_id}}/withdraw")
    def withdraw(request: Request, erasure_id: str, member: erasing) -> Response:
        try:
            own.withdraw(member, erasure_id)
        except Conflict as error:
            return own.show(request, member, problem=error.message, status=error.status)
        except NotFound:
            own.missing(member, erasure_id)
            raise
        return _back()

    return router


def _listed(member: StaffMember, one: Erasure | None = None) -> AuditEntry:
    """Return the event of the page, or that of one patient whom it names."""
    entry = AuditEntry(AuditKind.AUTH_ERASURE_LISTED, agent=member.agent, purpose="HOPERAT")
    if one is None:
        return entry
    return replace(entry, ehr_id=one.ehr_id, patient_id=one.patient_id, detail={"erasure": one.id})


def _back() -> RedirectResponse:
    return RedirectResponse(ERASURES, status_code=303, headers={"Cache-Control": "no-store"})
