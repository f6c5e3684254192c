"""Reading the log for somebody of the staff: what is read, and by whom, is in the log before it is shown."""

from collections.abc import Mapping
from dataclasses import dataclass

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.audit.review import AuditRecord, AuditSearch, Page, find_event, search
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.errors import NotFound
from rayhook.smart_app.dependencies import SMARTDependencies

PAGE_SIZE = 50
_STORY = 200


@dataclass(frozen=True, slots=True)
class AuditReading:
    deps: SMARTDependencies

    def page(self, member: StaffMember, wanted: AuditSearch, *, before: int | None) -> Page:
        """Return one page of events; the log is told their numbers."""
        with self.deps.reading_sessions() as session:
            found = search(
                session, self.deps.keyring, wanted, limit=PAGE_SIZE, before=before, is_lenient=True
            )
        self.record(member, AuditKind.AUDIT_LOG_READ, {"shown": _numbers(found)}, wanted)
        return found

    def event(self, member: StaffMember, seq: int) -> tuple[AuditRecord, tuple[AuditRecord, ...]]:
        """Return one event, and those of the same X-Request-Id, the oldest first. Raises NotFound."""
        keyring = self.deps.keyring
        detail = {"event": str(seq)}
        try:
            with self.deps.reading_sessions() as session:
                record = find_event(session, keyring, seq)
                wanted = AuditSearch(request_id=record.request_id)
                same = (
                    search(session, keyring, wanted, limit=_STORY, is_lenient=True).records
                    if record.request_id
                    else (record,)
                )
        except NotFound:
            self.record(member, AuditKind.AUDIT_LOG_READ, detail, outcome=Outcome.MINOR_FAILURE)
            raise
        about = AuditSearch(ehr_id=record.ehr_id, patient_id=record.patient_id)
        self.record(member, AuditKind.AUDIT_LOG_READ, detail, about)
        return record, tuple(sorted(same, key=lambda one: one.seq))

    def record(
        self,
        member: StaffMember,
        kind: AuditKind,
        detail: Mapping[str, str],
        about: AuditSearch | None = None,
        *,
        outcome: Outcome = Outcome.SUCCESS,
    ) -> None:
        """Tell the log; `about` names the patient, where it is one's events."""
        is_patient = about is not None and about.patient_id is not None
        entry = AuditEntry(
            kind,
            outcome,
            agent=member.agent,
            ehr_id=about.ehr_id if about is not None and is_patient else None,
            patient_id=about.patient_id if about is not None and is_patient else None,
            detail=detail,
            purpose="HOPERAT",
        )
        self.deps.tell(entry)


def _numbers(page: Page) -> str:
    return " ".join(str(record.seq) for record in page.records) or "none"
