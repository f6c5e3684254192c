"""Reports on one patient: who had their data, and the accounting of disclosures, to print, as CSV and as FHIR.

Spec: 45 CFR 164.524, 164.528
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Form, Request
from pydantic import BaseModel
from starlette.responses import Response

from rayhook.audit.balp import audit_event
from rayhook.audit.disclosures import YEARS, Accounting, Line, access_report, accounting
from rayhook.audit.events import AuditKind
from rayhook.audit.review import AuditSearch, walk
from rayhook.auth.roles import Permission
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.text import translatable
from rayhook.smart_app.audit_question import Question
from rayhook.smart_app.audit_reading import AuditReading
from rayhook.smart_app.audit_search import download
from rayhook.smart_app.audit_words import DISCLOSED, entity_text, purpose_text, who_text
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.i18n import day_text, moment_text
from rayhook.smart_app.i18n import gettext as _
from rayhook.smart_app.staff_access import StaffGate
from rayhook.smart_app.staff_pages import StaffPages, staff_router

REPORTS: Final = "/staff/audit/reports"
_NEEDS_PATIENT: Final = translatable("choose the EHR and type the patient's id in it")
_FIRST_DAY: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ReportKind(StrEnum):
    ACCESS = "access"
    DISCLOSURES = "disclosures"


class ReportForm(StrEnum):
    PAGE = "page"
    CSV = "csv"
    FHIR = "fhir"


class ReportAsked(BaseModel):
    ehr: str
    patient: str
    report: ReportKind = ReportKind.ACCESS
    form: ReportForm = ReportForm.PAGE
    first_day: str = ""
    last_day: str = ""
    with_operations: bool = False


@dataclass(frozen=True, slots=True)
class ReportLine:
    seq: int
    at: str
    who: str
    by: str
    what: str
    done: str
    purpose: str


def report_line(line: Line) -> ReportLine:
    return ReportLine(
        seq=line.seq,
        at=moment_text(line.at),
        who=who_text(line.who),
        by="" if line.by == line.who else line.by,
        what=", ".join(map(entity_text, line.what.split(", "))),
        done=_(DISCLOSED[line.done]),
        purpose=purpose_text(line.purpose),
    )


@dataclass(frozen=True, slots=True)
class ReportPages:
    deps: SMARTDependencies
    pages: StaffPages
    reading: AuditReading

    def form(
        self, request: Request, member: StaffMember, *, problem: str | None = None, status: int = 200
    ) -> Response:
        self.reading.record(member, AuditKind.AUDIT_LOG_READ, {"page": "reports"})
        return self.pages.render(
            "audit_reports.html",
            request,
            member,
            status=status,
            problem=problem,
            ehrs=[(ehr.id, ehr.name) for ehr in self.deps.registry],
        )

    def report(self, request: Request, member: StaffMember, asked: ReportAsked) -> Response:
        """Make the report, tell the log of it, and only then give it out."""
        wanted = Question(
            ehr=asked.ehr, patient=asked.patient.strip(), first_day=asked.first_day, last_day=asked.last_day
        ).search()
        if wanted.ehr_id is None or wanted.patient_id is None:
            raise InvalidRequest(_NEEDS_PATIENT, expression="patient")
        now = datetime.fromtimestamp(self.deps.clock(), UTC)
        made = self._accounting(asked, wanted, now)
        self.reading.record(
            member,
            AuditKind.AUDIT_DISCLOSURE_READ,
            {"report": asked.report.value, "form": asked.form.value, "lines": str(len(made.lines))},
            wanted,
        )
        if asked.form is ReportForm.CSV:
            return download(made.csv().encode(), f"{asked.report}.csv", "text/csv; charset=utf-8")
        if asked.form is ReportForm.FHIR:
            return download(
                self._bundle(made).encode(), f"{asked.report}.json", "application/fhir+json; charset=utf-8"
            )
        return self._page(request, member, asked, made, now)

    def _accounting(self, asked: ReportAsked, wanted: AuditSearch, now: datetime) -> Accounting:
        """An access report has every purpose in it, and goes as far back as the log does."""
        assert wanted.ehr_id is not None
        assert wanted.patient_id is not None
        of_patient = {"ehr_id": wanted.ehr_id, "patient_id": wanted.patient_id}
        with self.deps.reading_sessions() as session:
            if asked.report is ReportKind.DISCLOSURES:
                return accounting(
                    session,
                    self.deps.keyring,
                    **of_patient,
                    asked_at=now,
                    since=wanted.since,
                    until=wanted.until,
                    with_operations=asked.with_operations,
                )
            since, until = wanted.since or _FIRST_DAY, wanted.until or now
            lines = tuple(access_report(session, self.deps.keyring, **of_patient, since=since, until=until))
        return Accounting(
            **of_patient, since=since, until=until, lines=lines, left_out=0, due_at=now, note=""
        )

    def _page(
        self, request: Request, member: StaffMember, asked: ReportAsked, made: Accounting, now: datetime
    ) -> Response:
        ehr = self.deps.registry.by_id(made.ehr_id)
        last = made.until - timedelta(microseconds=1)
        return self.pages.render(
            "audit_report.html",
            request,
            member,
            is_accounting=asked.report is ReportKind.DISCLOSURES,
            organization=self.deps.organization,
            ehr_name=made.ehr_id if ehr is None else ehr.name,
            patient=made.patient_id,
            since=None if made.since == _FIRST_DAY else day_text(made.since.date().isoformat()),
            until=day_text(last.date().isoformat()),
            made_at=moment_text(now),
            due_at=day_text(made.due_at.date().isoformat()),
            lines=list(map(report_line, made.lines)),
            left_out=made.left_out,
            years=YEARS,
        )

    def _bundle(self, made: Accounting) -> str:
        """Return the report's events as a Bundle. Spec: FHIR R4 Bundle, type collection."""
        numbers = {line.seq for line in made.lines}
        wanted = AuditSearch(
            ehr_id=made.ehr_id, patient_id=made.patient_id, since=made.since, until=made.until
        )
        with self.deps.reading_sessions() as session:
            events: Sequence[dict[str, object]] = [
                audit_event(record, self.deps.observer)
                for record in walk(session, self.deps.keyring, wanted)
                if record.seq in numbers
            ]
        base = f"{self.deps.public_base_url}/fhir/R4/AuditEvent"
        entries = [{"fullUrl": f"{base}/{event['id']}", "resource": event} for event in events]
        return json.dumps(
            {"resourceType": "Bundle", "type": "collection", **({"entry": entries} if entries else {})}
        )


def build_audit_report_router(deps: SMARTDependencies, pages: StaffPages, gate: StaffGate) -> APIRouter:
    router = staff_router(pages)
    reading = Annotated[StaffMember, Depends(gate.staffing(Permission.AUDIT_DISCLOSURE_READ))]
    own = ReportPages(deps, pages, AuditReading(deps))

    @router.get(REPORTS)
    def form(request: Request, member: reading) -> Response:
        return own.form(request, member)

    @router.post(REPORTS)
    def report(request: Request, member: reading, asked: Annotated[ReportAsked, Form()]) -> Response:
        try:
            return own.report(request, member, asked)
        except InvalidRequest as error:
            return own.form(request, member, problem=error.message, status=error.status)

    return router
