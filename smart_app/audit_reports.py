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
from rayhook.audit.disclosures import Accounting, Line, access_report, accounting
from rayhook.audit.events import AuditKind
from rayhook.audit.review import AuditSearch, walk
from rayhook.auth.roles import Permission
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.text import translatable
from rayhook.smart_app.audit_pdf import report_pdf
from rayhook.smart_app.audit_question import Question
from rayhook.smart_app.audit_reading import AuditReading
from rayhook.smart_app.audit_search import download
from rayhook.smart_app.audit_words import DISCLOSED, entity_text, purpose_text, who_text
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.i18n import day_text, language, moment_text, ngettext
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
    PDF = "pdf"
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
class ReportText:
    """A report in the reader's language, for the page and the PDF. `due`, `note`: empty but for an accounting."""

    title: str
    patient: str
    ehr_name: str
    time: str
    made: str
    due: str
    note: str
    lines: tuple[ReportLine, ...]

    def pdf(self, made_at: datetime) -> bytes:
        due = [(_("Due to the patient by"), self.due)] if self.due else []
        return report_pdf(
            self.title,
            [
                (_("Patient"), f"{self.patient} · {self.ehr_name}"),
                (_("Time"), self.time),
                (_("Made"), self.made),
                *due,
            ],
            note=self.note,
            heads=(_("When"), _("Who"), _("What was done"), _("With what"), _("Why"), _("Event")),
            rows=[_cells(line) for line in self.lines],
            language=language().tag,
            made_at=made_at,
        )


def _cells(line: ReportLine) -> tuple[str, ...]:
    by = f"\n{_('through %(client)s', client=line.by)}" if line.by else ""
    return line.at, f"{line.who}{by}", line.done, line.what, line.purpose, str(line.seq)


def _time_text(made: Accounting) -> str:
    until = day_text((made.until - timedelta(microseconds=1)).date().isoformat())
    if made.since == _FIRST_DAY:
        return _("from the log's beginning to %(until)s", until=until)
    return _("%(since)s to %(until)s", since=day_text(made.since.date().isoformat()), until=until)


def _note_text(left_out: int) -> str:
    if left_out == 0:
        return _("Every disclosure of the time asked for is listed.")
    return ngettext(
        "%(count)s use for treatment, payment or health care operations is not listed: 45 CFR 164.528(a)(1)(i) "
        "excludes it. It is in the access report.",
        "%(count)s uses for treatment, payment or health care operations are not listed: 45 CFR 164.528(a)(1)(i) "
        "excludes them. They are in the access report.",
        left_out,
        count=left_out,
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
        text = self._text(asked, made, now)
        if asked.form is ReportForm.PDF:
            return download(text.pdf(now), f"{asked.report}.pdf", "application/pdf")
        return self.pages.render("audit_report.html", request, member, report=text)

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

    def _text(self, asked: ReportAsked, made: Accounting, now: datetime) -> ReportText:
        ehr = self.deps.registry.by_id(made.ehr_id)
        is_accounting = asked.report is ReportKind.DISCLOSURES
        return ReportText(
            title=_("Accounting of disclosures") if is_accounting else _("Access report"),
            patient=made.patient_id,
            ehr_name=made.ehr_id if ehr is None else ehr.name,
            time=_time_text(made),
            made=" · ".join(filter(None, (moment_text(now), self.deps.organization))),
            due=day_text(made.due_at.date().isoformat()) if is_accounting else "",
            note=_note_text(made.left_out) if is_accounting else "",
            lines=tuple(map(report_line, made.lines)),
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
