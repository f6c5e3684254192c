"""Reading the audit back, opened, for those who may."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session, col, select

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.models import AUDIT_EVENT, AuditEventRow
from rayhook.audit.record import audit_index
from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class AuditRecord:
    seq: int
    recorded_at: datetime
    kind: AuditKind
    outcome: Outcome
    ehr_id: str | None
    request_id: str
    agent: str | None
    patient_id: str | None
    entities: tuple[str, ...]
    detail: Mapping[str, str]


def recent(
    session: Session,
    keyring: Keyring,
    *,
    limit: int,
    ehr_id: str | None = None,
    patient_id: str | None = None,
    kind: AuditKind | None = None,
) -> list[AuditRecord]:
    """Return the newest events, the newest first.

    Raises InvalidRequest for a `patient_id` without the `ehr_id` that it belongs to.
    """
    query = select(AuditEventRow).order_by(col(AuditEventRow.seq).desc()).limit(limit)
    if patient_id is not None:
        if ehr_id is None:
            raise InvalidRequest("a patient is searched for within one EHR", expression="ehr_id")
        index = audit_index(keyring, patient_id, purpose="patient", ehr_id=ehr_id)
        query = query.where(AuditEventRow.patient_index == index)
    if ehr_id is not None:
        query = query.where(AuditEventRow.ehr_id == ehr_id)
    if kind is not None:
        query = query.where(AuditEventRow.kind == kind.value)
    return [_opened(keyring, row) for row in session.exec(query)]


def _opened(keyring: Keyring, row: AuditEventRow) -> AuditRecord:
    return AuditRecord(
        seq=row.seq,
        recorded_at=datetime.fromisoformat(row.recorded_at),
        kind=AuditKind(row.kind),
        outcome=Outcome(row.outcome),
        ehr_id=row.ehr_id,
        request_id=row.request_id,
        agent=_open(keyring, row, "agent_sealed"),
        patient_id=_open(keyring, row, "patient_sealed"),
        entities=tuple(json.loads(_open(keyring, row, "entities_sealed") or "[]")),
        detail=json.loads(_open(keyring, row, "detail_sealed") or "{}"),
    )


def _open(keyring: Keyring, row: AuditEventRow, column: str) -> str | None:
    ciphertext: bytes | None = getattr(row, column)
    if ciphertext is None:
        return None
    return keyring.open(ciphertext, table=AUDIT_EVENT.name, column=column, row=str(row.seq)).decode()
