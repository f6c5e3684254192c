"""Reading the audit back, opened, for those who may."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, select
from sqlmodel import Session

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.models import AUDIT_ENTITY, AUDIT_EVENT
from rayhook.audit.record import audit_index
from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import InvalidRequest, RayhookError

_BATCH = 500
_EVENT = AUDIT_EVENT.c


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One event as a person reads it; `context` is what BALP asks for beside it, by the names of AuditEntry."""

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
    client_id: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)
    hash: str = ""


@dataclass(frozen=True, slots=True)
class AuditSearch:
    """What to look for; all that is given has to fit. `since` is included, `until` is not.

    `patient_id`, `agent` and `entity` are found by their blind index, which is of one EHR: they need `ehr_id`,
    except for agents and entities that are no EHR's, such as accounts of the staff.
    """

    ehr_id: str | None = None
    patient_id: str | None = None
    agent: str | None = None
    entity: str | None = None
    client_id: str | None = None
    request_id: str | None = None
    kinds: tuple[AuditKind, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self, keyring: Keyring) -> list[ColumnElement[bool]]:
        """Raise InvalidRequest for a patient without the EHR that it belongs to."""
        if self.patient_id is not None and self.ehr_id is None:
            raise InvalidRequest("a patient is searched for within one EHR", expression="ehr_id")
        found = [*self._people(keyring), *self._plain()]
        if self.since is not None:
            found.append(_EVENT.recorded_at >= timestamp(self.since))
        if self.until is not None:
            found.append(_EVENT.recorded_at < timestamp(self.until))
        return found

    def _people(self, keyring: Keyring) -> Iterator[ColumnElement[bool]]:
        for column, purpose, value in (
            (_EVENT.patient_index, "patient", self.patient_id),
            (_EVENT.agent_index, "agent", self.agent),
        ):
            if value is not None:
                yield column == audit_index(keyring, value, purpose=purpose, ehr_id=self.ehr_id)
        if self.entity is not None:
            index = audit_index(keyring, self.entity, purpose="entity", ehr_id=self.ehr_id)
            yield _EVENT.seq.in_(select(AUDIT_ENTITY.c.seq).where(AUDIT_ENTITY.c.entity_index == index))

    def _plain(self) -> Iterator[ColumnElement[bool]]:
        # An agent or entity without an EHR is one of ours: the index says so already.
        for column, value in (
            (_EVENT.ehr_id, self.ehr_id),
            (_EVENT.client_id, self.client_id),
            (_EVENT.request_id, self.request_id),
        ):
            if value is not None:
                yield column == value
        if self.kinds:
            yield _EVENT.kind.in_([kind.value for kind in self.kinds])
        if self.outcomes:
            yield _EVENT.outcome.in_([outcome.value for outcome in self.outcomes])


@dataclass(frozen=True, slots=True)
class Page:
    """Records, the newest first; `before` asks for those that come next, None where these were the last."""

    records: tuple[AuditRecord, ...]
    before: int | None


def search(
    session: Session, keyring: Keyring, wanted: AuditSearch, *, limit: int, before: int | None = None
) -> Page:
    """Return one page of the newest events that fit, of numbers below `before`."""
    query = _query(keyring, wanted).order_by(_EVENT.seq.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(_EVENT.seq < before)
    rows = session.execute(query).mappings().all()
    records = tuple(opened(keyring, row) for row in rows[:limit])
    return Page(records, records[-1].seq if len(rows) > limit else None)


def find_event(session: Session, keyring: Keyring, event_hash: str) -> AuditRecord | None:
    """Return the event of that hash, by which its AuditEvent is named."""
    row = session.execute(select(AUDIT_EVENT).where(_EVENT.hash == event_hash)).mappings().first()
    return None if row is None else opened(keyring, row)


def walk(
    session: Session, keyring: Keyring, wanted: AuditSearch, *, after: int = 0, limit: int | None = None
) -> Iterator[AuditRecord]:
    """Yield the events that fit, the oldest first, from the one after number `after`."""
    query = _query(keyring, wanted).where(_EVENT.seq > after).order_by(_EVENT.seq)
    if limit is not None:
        query = query.limit(limit)
    for row in session.execute(query, execution_options={"yield_per": _BATCH}).mappings():
        yield opened(keyring, row)


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
    wanted = AuditSearch(ehr_id=ehr_id, patient_id=patient_id, kinds=() if kind is None else (kind,))
    return list(search(session, keyring, wanted, limit=limit).records)


def timestamp(moment: datetime) -> str:
    """Return the moment as the log writes it. Raises InvalidRequest for one without a time zone."""
    if moment.tzinfo is None:
        raise InvalidRequest("a moment needs its time zone", expression="date")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _query(keyring: Keyring, wanted: AuditSearch) -> Select[Any]:
    return select(AUDIT_EVENT).where(*wanted.conditions(keyring))


def opened(keyring: Keyring, row: Mapping[str, Any], *, is_lenient: bool = False) -> AuditRecord:
    """Return the event opened. What cannot be opened any more is empty where `is_lenient`, and raises otherwise."""

    def read(column: str) -> str | None:
        try:
            return _open(keyring, row, column)
        except RayhookError:
            if is_lenient:
                return None
            raise

    return AuditRecord(
        seq=row["seq"],
        recorded_at=datetime.fromisoformat(row["recorded_at"]),
        kind=AuditKind(row["kind"]),
        outcome=Outcome(row["outcome"]),
        ehr_id=row["ehr_id"],
        request_id=row["request_id"],
        agent=read("agent_sealed"),
        patient_id=read("patient_sealed"),
        entities=tuple(json.loads(read("entities_sealed") or "[]")),
        detail=json.loads(read("detail_sealed") or "{}"),
        client_id=row["client_id"],
        context=json.loads(read("context_sealed") or "{}"),
        hash=row["hash"],
    )


def _open(keyring: Keyring, row: Mapping[str, Any], column: str) -> str | None:
    ciphertext: bytes | None = row[column]
    if ciphertext is None:
        return None
    return keyring.open(ciphertext, table=AUDIT_EVENT.name, column=column, row=str(row["seq"])).decode()
