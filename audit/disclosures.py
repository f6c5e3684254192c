"""What a patient may ask for: who saw their data, and to whom it was disclosed.

Spec: 45 CFR 164.524 (access), 164.528 (accounting of disclosures: six years back; date, recipient, what, why;
treatment, payment and operations are excluded by (a)(1)(i)).
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from sqlmodel import Session

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.review import AuditRecord, AuditSearch, walk
from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.text import translatable

YEARS: Final = 6
_ANSWER_WITHIN: Final = timedelta(days=60)
# Treatment, payment, health care operations, and what serves them: not accounted for unless asked.
_OPERATIONS: Final = frozenset({"TREAT", "HPAYMT", "HOPERAT", "HSYSADMIN"})
_TOO_FAR: Final = translatable("an accounting goes six years back at most")
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


class Disclosed(StrEnum):
    """What an event says of a patient's data, in the words of a report. `NOTHING`: no data went anywhere."""

    ANALYSED = "analysed by a model of this service"
    ANSWERED = "told to the clinician's system as a card"
    EXPORTED = "written to a file"
    NOTHING = ""
    READ = "read from the hospital's record system by this service"
    RETRIEVED = "images retrieved from the hospital's archive by this service"
    SEEN = "seen"
    SENT = "written to the hospital's own systems"
    SIGNED = "answered or signed"


_SAYS: Final[Mapping[AuditKind, Disclosed]] = {
    AuditKind.AUDIT_DISCLOSURE_READ: Disclosed.EXPORTED,
    AuditKind.AUDIT_LOG_EXPORTED: Disclosed.EXPORTED,
    AuditKind.CDS_HOOKS_CARD_RETURNED: Disclosed.ANSWERED,
    AuditKind.CDS_HOOKS_PREFETCH_FETCHED: Disclosed.READ,
    AuditKind.DICOMWEB_RESULT_STORED: Disclosed.SENT,
    AuditKind.DICOMWEB_STUDY_RETRIEVED: Disclosed.RETRIEVED,
    AuditKind.FHIR_RESOURCE_READ: Disclosed.READ,
    AuditKind.FHIR_RESULT_WRITTEN: Disclosed.SENT,
    AuditKind.INFERENCE_STUDY_ABSTAINED: Disclosed.ANALYSED,
    AuditKind.INFERENCE_STUDY_ANALYSED: Disclosed.ANALYSED,
    AuditKind.SMART_APP_FHIR_READ: Disclosed.SEEN,
    AuditKind.SMART_APP_FHIR_SEARCHED: Disclosed.SEEN,
    AuditKind.SMART_APP_FINDING_ANSWERED: Disclosed.SIGNED,
    AuditKind.SMART_APP_IMAGE_VIEWED: Disclosed.SEEN,
    AuditKind.SMART_APP_REPORT_CHANGED: Disclosed.SIGNED,
    AuditKind.SMART_APP_REPORT_SIGNED: Disclosed.SIGNED,
    AuditKind.SMART_APP_REPORT_WITHDRAWN: Disclosed.SIGNED,
    AuditKind.SMART_APP_RESULT_VIEWED: Disclosed.SEEN,
    AuditKind.SMART_APP_SERIES_OPENED: Disclosed.SEEN,
    AuditKind.SMART_APP_STUDY_OPENED: Disclosed.SEEN,
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a report: when, who (and by which system), what of the data, what was done, and why."""

    seq: int
    at: datetime
    who: str
    by: str
    what: str
    done: Disclosed
    purpose: str


@dataclass(frozen=True, slots=True)
class Accounting:
    """`left_out` disclosures for treatment, payment and operations are not among the lines; `note` says so.

    `due_at`: the answer is due sixty days after it was asked for.
    """

    ehr_id: str
    patient_id: str
    since: datetime
    until: datetime
    lines: tuple[Line, ...]
    left_out: int
    due_at: datetime
    note: str

    def csv(self) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow(("date", "recipient", "by", "what", "done", "purpose", "event"))
        for line in self.lines:
            cells = (line.at.isoformat(), line.who, line.by, line.what, line.done.value, line.purpose)
            writer.writerow((*map(_cell, cells), line.seq))
        return buffer.getvalue()


def access_report(
    session: Session, keyring: Keyring, *, ehr_id: str, patient_id: str, since: datetime, until: datetime
) -> Iterator[Line]:
    """Yield everything that was done with the patient's data, the oldest first. Spec: 45 CFR 164.524."""
    wanted = AuditSearch(ehr_id=ehr_id, patient_id=patient_id, since=since, until=until)
    for record in walk(session, keyring, wanted):
        done = _SAYS.get(record.kind, Disclosed.NOTHING)
        if done is not Disclosed.NOTHING and record.outcome is Outcome.SUCCESS:
            yield _line(record, done)


def accounting(
    session: Session,
    keyring: Keyring,
    *,
    ehr_id: str,
    patient_id: str,
    asked_at: datetime,
    since: datetime | None = None,
    until: datetime | None = None,
    with_operations: bool = False,
) -> Accounting:
    """Return the accounting of disclosures of the six years before `asked_at`, or of the shorter time asked for.

    Raises InvalidRequest for more than six years. Spec: 45 CFR 164.528.
    """
    earliest = _years_before(asked_at, YEARS)
    begin = earliest if since is None else since
    if begin < earliest:
        raise InvalidRequest(_TOO_FAR, expression="since")
    end = asked_at if until is None else min(until, asked_at)
    found = list(
        access_report(session, keyring, ehr_id=ehr_id, patient_id=patient_id, since=begin, until=end)
    )
    lines = found if with_operations else [line for line in found if line.purpose not in _OPERATIONS]
    return Accounting(
        ehr_id=ehr_id,
        patient_id=patient_id,
        since=begin,
        until=end,
        lines=tuple(lines),
        left_out=len(found) - len(lines),
        due_at=asked_at + _ANSWER_WITHIN,
        note=_note(len(found) - len(lines)),
    )


def _line(record: AuditRecord, done: Disclosed) -> Line:
    return Line(
        seq=record.seq,
        at=record.recorded_at,
        who=record.agent or "not known",
        by=record.client_id or record.context.get("peer") or record.ehr_id or "",
        what=_what(record),
        done=done,
        purpose=record.context.get("purpose") or "TREAT",
    )


def _what(record: AuditRecord) -> str:
    if record.is_erased:
        return "what it was is erased"
    return ", ".join(record.entities) or f"Patient/{record.patient_id}"


def _note(left_out: int) -> str:
    if left_out == 0:
        return "Every disclosure of the time asked for is listed."
    return (
        f"{left_out} uses and disclosures for treatment, payment or health care operations are not listed: "
        "45 CFR 164.528(a)(1)(i) excludes them. They are in the access report."
    )


def _years_before(moment: datetime, years: int) -> datetime:
    try:
        return moment.replace(year=moment.year - years)
    except ValueError:  # 29 February
        return moment.replace(year=moment.year - years, day=28)


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def plain_words(lines: Iterable[Line]) -> Iterator[str]:
    """Yield a report's lines as sentences that a patient can read."""
    for line in lines:
        by = f", by {line.by}" if line.by and line.by != line.who else ""
        yield f"{line.at:%d %B %Y, %H:%M} UTC: {line.what}: {line.done.value}, {line.who}{by}"
