"""Erasing a patient: asked for by one person, confirmed by another, then done at once and for good.

What the log says of the patient stays readable until its own time is over, unless the audit key is to go too; that
the erasure happened is in the log in any case, without the patient's name.

Spec: 45 CFR 164.310(d)(2)(i), 164.316(b)(2)(i); OWASP ASVS 5.0.0 V2.3.5
"""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import func
from sqlmodel import Session, col, select

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry, AuditLog, audit_index
from rayhook.audit.retention import RetentionPolicy, is_patient_held
from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import (
    audited,
    clinical,
    destroy_keys,
    lock_keys,
    patient_index,
    retire_keys,
    seal,
    sealing_keys,
    unseal,
)
from rayhook.fhir.errors import Conflict, Erased, InvalidRequest, NotFound
from rayhook.fhir.text import translatable
from rayhook.inference.erased_rows import ErasedCount, ErasedPatient, erase_rows
from rayhook.inference.erasure_table import ErasureState, PatientErasureRow
from rayhook.inference.job_table import AnalysisJob
from rayhook.inference.results import AnalysisResult

_DAY_S = 86_400.0
_TABLE = str(PatientErasureRow.__tablename__)
_NEEDS_REASON = translatable("write the reason")
_NEEDS_PATIENT = translatable("name the patient by the EHR's id")
_SAME_PERSON = translatable("another person than the one who asked has to confirm an erasure")
_HELD = translatable("the patient is under a legal hold: nothing may be erased")
_UNDER_WAY = translatable("an erasure of this patient waits to be confirmed already")
_DECIDED = translatable("this erasure was decided already")

MoreRows = Callable[[Session, ErasedPatient, Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class ErasurePatient:
    ehr_id: str
    patient_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """One erasure as it is listed; `patient_id` and `reason` are None once nobody can read them any more."""

    id: str
    ehr_id: str
    patient_id: str | None
    reason: str | None
    takes_audit: bool
    state: ErasureState
    asked_by: str
    asked_at: float
    decided_by: str | None
    decided_at: float | None

    @property
    def is_waiting(self) -> bool:
        return self.state is ErasureState.ASKED

    @property
    def is_done(self) -> bool:
        return self.state is ErasureState.DONE


@dataclass(frozen=True, slots=True)
class Done:
    """What an erasure took: the ids of the destroyed keys, and what there was of rows."""

    key_ids: tuple[str, ...]
    count: ErasedCount


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasures:
    """Everything in the caller's transaction: the act, its audit event, and the keys stand or fall together.

    more_rows: erase what the tables of outer packages have of the patient.
    """

    keyring: Keyring
    audit: AuditLog
    retention: RetentionPolicy
    more_rows: tuple[MoreRows, ...] = ()
    clock: Callable[[], float] = field(default=time.time)

    def holdings(self, session: Session, patient: ErasurePatient) -> tuple[int, int]:
        """Return how many jobs and results there are of the patient: none, and the id may be mistyped."""
        index = patient_index(self.keyring, patient.ehr_id, patient.patient_id)
        jobs = select(func.count()).where(AnalysisJob.patient_index == index)
        results = select(func.count()).where(AnalysisResult.patient_index == index)
        return session.exec(jobs).one(), session.exec(results).one()

    def ask(
        self, session: Session, patient: ErasurePatient, *, reason: str, takes_audit: bool, agent: str
    ) -> str:
        """Note that somebody wants a patient erased; return the erasure's id.

        Raises InvalidRequest without a patient or reason, Conflict under a legal hold or where one waits already.
        """
        if not patient.patient_id.strip() or not patient.ehr_id:
            raise InvalidRequest(_NEEDS_PATIENT, code="patient_missing", expression="patient")
        if not reason.strip():
            raise InvalidRequest(_NEEDS_REASON, code="reason_missing", expression="reason")
        self._require_free(session, patient, agent)
        if self.waiting_for(session, patient) is not None:
            raise Conflict(_UNDER_WAY, code="erasure_waits")
        id_ = uuid.uuid4().hex
        row = PatientErasureRow(
            id=id_,
            ehr_id=patient.ehr_id,
            state=ErasureState.ASKED.value,
            takes_audit=takes_audit,
            subject_sealed=self._sealed(session, patient, patient.patient_id, ("subject_sealed", id_)),
            reason_sealed=self._sealed(session, patient, reason.strip(), ("reason_sealed", id_)),
            asked_by_sealed=self._sealed(session, None, agent, ("asked_by_sealed", id_)),
            asked_at=self.clock(),
        )
        session.add(row)
        session.flush()
        detail = {"erasure": id_, "audit": _yes_or_no(takes_audit), "reason": reason.strip()}
        entry = AuditEntry(AuditKind.AUTH_ERASURE_REQUESTED, agent=agent, detail=detail)
        self._record(session, entry, patient)
        return id_

    def confirm(self, session: Session, id_: str, *, agent: str) -> Done:
        """Erase: destroy the clinical key, and the audit key at once or when retention is over.

        Raises NotFound, and Conflict for who asked for it, for one that was decided, and under a legal hold. After
        the commit tell `Done.key_ids` to whoever keeps keys or what they opened.
        """
        row = self._waiting_row(session, id_)
        patient = self._patient(session, row)
        if self._opened(session, row, "asked_by_sealed") == agent:
            self._refuse(session, patient, agent, id_, "same_person")
            raise Conflict(_SAME_PERSON, code="same_person")
        self._require_free(session, patient, agent, id_)
        now = self.clock()
        row.state, row.decided_at = ErasureState.DONE.value, now
        row.decided_by_sealed = self._sealed(session, None, agent, ("decided_by_sealed", id_))
        session.add(row)
        session.flush()
        key_ids, count = self._erase(session, patient, row, now)
        detail = {
            "erasure": id_,
            "audit": _yes_or_no(row.takes_audit),
            "keys": " ".join(key_ids),
            "results": str(len(count.results)),
            "jobs_cancelled": str(count.jobs_cancelled),
            "sessions_closed": str(count.sessions_closed),
            "asked_by": self._opened(session, row, "asked_by_sealed") or "",
        }
        kind = AuditKind.AUTH_PATIENT_KEY_DESTROYED
        self._record(session, AuditEntry(kind, agent=agent, detail=detail, names_patient=False), patient)
        return Done(tuple(key_ids), count)

    def waiting_for(self, session: Session, patient: ErasurePatient) -> Erasure | None:
        query = select(PatientErasureRow).where(
            PatientErasureRow.ehr_id == patient.ehr_id, PatientErasureRow.state == ErasureState.ASKED.value
        )
        found = (self._listed(session, row) for row in session.exec(query))
        return next((one for one in found if one.patient_id == patient.patient_id), None)

    def patient_of(self, session: Session, id_: str) -> ErasurePatient:
        """Return whom a waiting erasure is of; raises as `withdraw` does."""
        return self._patient(session, self._waiting_row(session, id_))

    def withdraw(self, session: Session, id_: str, *, agent: str) -> None:
        """Raises NotFound, and Conflict for one that was decided."""
        row = self._waiting_row(session, id_)
        row.state, row.decided_at = ErasureState.WITHDRAWN.value, self.clock()
        row.decided_by_sealed = self._sealed(session, None, agent, ("decided_by_sealed", id_))
        session.add(row)
        session.flush()
        patient = self._patient(session, row)
        entry = AuditEntry(AuditKind.AUTH_ERASURE_WITHDRAWN, agent=agent, detail={"erasure": id_})
        self._record(session, entry, patient)

    def listed(self, session: Session, *, limit: int = 200) -> list[Erasure]:
        """Return the erasures: those that wait first, then the newest first."""
        asked = ErasureState.ASKED.value
        query = (
            select(PatientErasureRow)
            .order_by(col(PatientErasureRow.state) != asked, col(PatientErasureRow.asked_at).desc())
            .limit(limit)
        )
        return [self._listed(session, row) for row in session.exec(query)]

    def _erase(
        self, session: Session, patient: ErasurePatient, row: PatientErasureRow, now: float
    ) -> tuple[list[str], ErasedCount]:
        index = patient_index(self.keyring, patient.ehr_id, patient.patient_id)
        subject, log = clinical(index), audited(self._audit_index(patient))
        # First of all: what others are writing for the patient is to be among the rows.
        lock_keys(session, subject)
        [key] = sealing_keys(session, self.keyring, [subject])
        erased = ErasedPatient(index, key)
        count = erase_rows(session, self.keyring, erased)
        for more in self.more_rows:
            more(session, erased, count.results)
        key_ids = destroy_keys(session, subject, erasure_id=row.id, now=now)
        if row.takes_audit:
            key_ids += destroy_keys(session, log, erasure_id=row.id, now=now)
        else:
            due_at = now + self.retention.longest_days * _DAY_S
            retire_keys(session, log, erasure_id=row.id, now=now, due_at=due_at)
        return key_ids, count

    def _require_free(
        self, session: Session, patient: ErasurePatient, agent: str, id_: str | None = None
    ) -> None:
        if is_patient_held(session, self._audit_index(patient)):
            self._refuse(session, patient, agent, id_, "patient_held")
            raise Conflict(_HELD, code="patient_held")

    def _refuse(
        self, session: Session, patient: ErasurePatient, agent: str, id_: str | None, code: str
    ) -> None:
        """Tell the log, whatever becomes of the caller's transaction: it is rolled back, and only this is committed."""
        session.rollback()
        detail = {"code": code} | ({} if id_ is None else {"erasure": id_})
        kind, outcome = AuditKind.AUTH_ERASURE_REFUSED, Outcome.SERIOUS_FAILURE
        self._record(session, AuditEntry(kind, outcome, agent=agent, detail=detail), patient)
        session.commit()

    def _waiting_row(self, session: Session, id_: str) -> PatientErasureRow:
        query = select(PatientErasureRow).where(PatientErasureRow.id == id_).with_for_update()
        row = session.exec(query, execution_options={"populate_existing": True}).first()
        if row is None:
            raise NotFound("there is no such erasure", code="erasure_not_found")
        if row.state != ErasureState.ASKED:
            raise Conflict(_DECIDED, code="erasure_decided")
        return row

    def _patient(self, session: Session, row: PatientErasureRow) -> ErasurePatient:
        patient_id = self._opened(session, row, "subject_sealed")
        if patient_id is None:
            raise Erased
        return ErasurePatient(row.ehr_id, patient_id)

    def _audit_index(self, patient: ErasurePatient) -> str:
        return audit_index(self.keyring, patient.patient_id, purpose="patient", ehr_id=patient.ehr_id)

    def _record(self, session: Session, entry: AuditEntry, patient: ErasurePatient) -> None:
        about = replace(entry, ehr_id=patient.ehr_id, patient_id=patient.patient_id, purpose="HOPERAT")
        self.audit.record(session, about)

    def _sealed(
        self, session: Session, patient: ErasurePatient | None, value: str, place: tuple[str, str]
    ) -> bytes:
        subject = audited(None if patient is None else self._audit_index(patient))
        column, id_ = place
        return seal(session, self.keyring, subject, value.encode(), table=_TABLE, column=column, row=id_)

    def _opened(self, session: Session, row: PatientErasureRow, column: str) -> str | None:
        sealed: bytes | None = getattr(row, column)
        if sealed is None:
            return None
        try:
            return unseal(session, self.keyring, sealed, table=_TABLE, column=column, row=row.id).decode()
        except Erased:
            return None

    def _listed(self, session: Session, row: PatientErasureRow) -> Erasure:
        return Erasure(
            id=row.id,
            ehr_id=row.ehr_id,
            patient_id=self._opened(session, row, "subject_sealed"),
            reason=self._opened(session, row, "reason_sealed"),
            takes_audit=row.takes_audit,
            state=ErasureState(row.state),
            asked_by=self._opened(session, row, "asked_by_sealed") or "",
            asked_at=row.asked_at,
            decided_by=self._opened(session, row, "decided_by_sealed"),
            decided_at=row.decided_at,
        )


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"
