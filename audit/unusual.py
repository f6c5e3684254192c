"""What the rules for unusual access found, and what became of it: open, under review, closed, each step told to the log."""

import json
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import RowMapping, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session

from rayhook.audit.events import AuditKind
from rayhook.audit.models import AUDIT_EVENT, AUDIT_REVIEW_ITEM, AUDIT_WATCH
from rayhook.audit.record import AuditEntry, AuditLog, audit_index
from rayhook.audit.review import AuditRecord, is_readable, opened, sealed_values, timestamp
from rayhook.audit.watch import Alert, Rule, Thresholds, Watch
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import audited, ready_keys, seal, unseal
from rayhook.fhir.errors import Erased, InvalidRequest, NotFound
from rayhook.fhir.text import translatable

_AGENT: Final = "rayhook"
_BATCH: Final = 1000
_FIRST: Final = 10_000  # of a log that was never watched, so many of the newest events are looked at
_REACH_BACK: Final = timedelta(hours=2)
_NEEDS_NOTE: Final = translatable("write what you found before you close it")
_ITEM = AUDIT_REVIEW_ITEM.c


class ReviewState(StrEnum):
    OPEN = "open"
    UNDER_REVIEW = "under_review"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """`seq` is the event at which the rule was met, `events` those that it counted; `changed_by` whose `note` it is."""

    id: str
    rule: Rule
    seq: int
    raised_at: datetime
    state: ReviewState
    ehr_id: str | None
    agent: str | None
    patient_id: str | None
    events: tuple[int, ...]
    note: str
    changed_at: datetime | None
    changed_by: str | None


class Watching:
    """Goes on through the log from where it was, in one thread at a time; several processes find each thing once."""

    def __init__(
        self, sessions: Sessions, reading: Sessions, keyring: Keyring, audit: AuditLog, thresholds: Thresholds
    ) -> None:
        self._sessions = sessions
        self._reading = reading
        self._keyring = keyring
        self._audit = audit
        self._watch = Watch(thresholds)
        self._position: int | None = None
        self._lock = threading.Lock()

    def step(self) -> int:
        """Look at all events since the last time; return how many items were raised."""
        with self._lock:
            raised = 0
            if self._position is None:
                self._position = self._begin()
            while records := self._next(self._position):
                alerts = [alert for record in records[1] for alert in self._watch.look(record)]
                raised += self._store(alerts, records[0])
                self._position = records[0]
            return raised

    def _begin(self) -> int:
        """Return where the watch goes on, after it has seen again what it has to remember."""
        with self._reading() as session:
            position = session.execute(select(AUDIT_WATCH.c.position)).scalar()
            if position is None:
                size = session.execute(select(func.max(AUDIT_EVENT.c.seq))).scalar() or 0
                return max(0, size - _FIRST)
            last = session.execute(
                select(AUDIT_EVENT.c.recorded_at)
                .where(AUDIT_EVENT.c.seq <= position)
                .order_by(AUDIT_EVENT.c.seq.desc())
                .limit(1)
            ).scalar()
            if last is None:
                return int(position)
            since = timestamp(datetime.fromisoformat(last) - _REACH_BACK)
            query = select(AUDIT_EVENT).where(
                AUDIT_EVENT.c.recorded_at >= since, AUDIT_EVENT.c.seq <= position
            )
            for row in session.execute(query.order_by(AUDIT_EVENT.c.seq)).mappings():
                if is_readable(row):
                    for _told_before in self._watch.look(
                        opened(session, self._keyring, row, is_lenient=True)
                    ):
                        pass
        return int(position)

    def _next(self, position: int) -> tuple[int, list[AuditRecord]] | None:
        """Return the last number read, and what could be read; None where nothing is new."""
        with self._reading() as session:
            query = (
                select(AUDIT_EVENT)
                .where(AUDIT_EVENT.c.seq > position)
                .order_by(AUDIT_EVENT.c.seq)
                .limit(_BATCH)
            )
            rows = session.execute(query).mappings().all()
            if not rows:
                return None
            ready_keys(session, self._keyring, sealed_values(rows))
            return rows[-1]["seq"], [
                opened(session, self._keyring, row, is_lenient=True) for row in rows if is_readable(row)
            ]

    def _store(self, alerts: Sequence[Alert], position: int) -> int:
        """An item's own event moves the log's end: a step without alerts writes nothing, or it would never end."""
        if not alerts:
            self._advance_now_and_then(position)
            return 0
        raised = 0
        with self._sessions() as session:
            for alert in alerts:
                raised += self._raise(session, alert)
            _put_position(session, position)
            session.commit()
        return raised

    def _advance_now_and_then(self, position: int) -> None:
        """What was seen without an alert is seen again after a restart, up to a batch of it: that is cheaper."""
        with self._reading() as session:
            stored = session.execute(select(AUDIT_WATCH.c.position)).scalar()
        if stored is None or position - stored >= _BATCH:
            with self._sessions() as session:
                _put_position(session, position)
                session.commit()

    def _raise(self, session: Session, alert: Alert) -> int:
        id_ = uuid.uuid4().hex
        content = {
            "ehr": alert.ehr_id,
            "agent": alert.agent,
            "patient": alert.patient_id,
            "events": alert.events,
        }
        index = None
        if alert.patient_id is not None:
            index = audit_index(self._keyring, alert.patient_id, purpose="patient", ehr_id=alert.ehr_id)
        values = {
            "id": id_,
            "patient_index": index,
            "rule": alert.rule.value,
            "seq": alert.seq,
            "raised_at": timestamp(alert.raised_at),
            "state": ReviewState.OPEN.value,
            "subject_sealed": _sealed(
                session, self._keyring, index, json.dumps(content), ("subject_sealed", id_)
            ),
        }
        insert_ = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
        statement = insert_(AUDIT_REVIEW_ITEM).on_conflict_do_nothing().values(values).returning(_ITEM.id)
        if session.execute(statement).first() is None:
            return 0
        detail = {"rule": alert.rule.value, "event": str(alert.seq), "item": id_}
        self._audit.record(
            session,
            AuditEntry(
                AuditKind.AUDIT_REVIEW_RAISED,
                agent=_AGENT,
                ehr_id=alert.ehr_id,
                patient_id=alert.patient_id if alert.ehr_id else None,
                detail=detail,
                purpose="HOPERAT",
            ),
        )
        return 1


def review_items(session: Session, keyring: Keyring, *, limit: int = 200) -> list[ReviewItem]:
    """Return the items: those open first, then those under review, then the closed, each the newest first."""
    query = select(AUDIT_REVIEW_ITEM).order_by(
        _ITEM.state != "open", _ITEM.state == "closed", _ITEM.seq.desc()
    )
    return [_opened(session, keyring, row) for row in session.execute(query.limit(limit)).mappings()]


def count_items(session: Session) -> dict[tuple[Rule, ReviewState], int]:
    query = select(_ITEM.rule, _ITEM.state, func.count()).group_by(_ITEM.rule, _ITEM.state)
    return {(Rule(rule), ReviewState(state)): count for rule, state, count in session.execute(query)}


def count_open(session: Session) -> int:
    return sum(count for (_, state), count in count_items(session).items() if state is ReviewState.OPEN)


def change_item(
    session: Session,
    keyring: Keyring,
    audit: AuditLog,
    *,
    id_: str,
    state: ReviewState,
    note: str,
    agent: str,
    now: datetime,
) -> None:
    """Raises NotFound, and InvalidRequest where an item is to be closed without a note."""
    found = session.execute(select(AUDIT_REVIEW_ITEM).where(_ITEM.id == id_)).mappings().first()
    if found is None:
        raise NotFound("there is no such review item", code="review_not_found")
    if state is ReviewState.CLOSED and not note.strip():
        raise InvalidRequest(_NEEDS_NOTE, code="note_missing", expression="note")
    session.execute(
        update(AUDIT_REVIEW_ITEM)
        .where(_ITEM.id == id_)
        .values(
            state=state.value,
            note_sealed=_sealed(session, keyring, found["patient_index"], note.strip(), ("note_sealed", id_)),
            changed_at=timestamp(now),
            changed_by_sealed=_sealed(session, keyring, None, agent, ("changed_by_sealed", id_)),
        )
    )
    detail = {
        "item": id_,
        "rule": found["rule"],
        "from": found["state"],
        "to": state.value,
        "note": note.strip(),
    }
    audit.record(
        session, AuditEntry(AuditKind.AUDIT_REVIEW_CHANGED, agent=agent, detail=detail, purpose="HOPERAT")
    )


def _opened(session: Session, keyring: Keyring, row: RowMapping) -> ReviewItem:
    subject: dict[str, Any] = json.loads(_open(session, keyring, row, "subject_sealed") or "{}")
    changed_at = row["changed_at"]
    return ReviewItem(
        id=row["id"],
        rule=Rule(row["rule"]),
        seq=row["seq"],
        raised_at=datetime.fromisoformat(row["raised_at"]),
        state=ReviewState(row["state"]),
        ehr_id=subject.get("ehr"),
        agent=subject.get("agent"),
        patient_id=subject.get("patient"),
        events=tuple(subject.get("events", ())),
        note=_open(session, keyring, row, "note_sealed") or "",
        changed_at=None if changed_at is None else datetime.fromisoformat(changed_at).astimezone(UTC),
        changed_by=_open(session, keyring, row, "changed_by_sealed"),
    )


def _sealed(
    session: Session, keyring: Keyring, patient_index: str | None, text: str, place: tuple[str, str]
) -> bytes:
    """Seal for a column and row, under the key of the patient whom the item is about, if it is about one."""
    table = AUDIT_REVIEW_ITEM.name
    subject, (column, id_) = audited(patient_index), place
    return seal(session, keyring, subject, text.encode(), table=table, column=column, row=id_)


def _open(session: Session, keyring: Keyring, row: RowMapping, column: str) -> str | None:
    """Return None also for what was erased."""
    sealed: bytes | None = row[column]
    if sealed is None:
        return None
    try:
        place = {"table": AUDIT_REVIEW_ITEM.name, "column": column, "row": row["id"]}
        return unseal(session, keyring, sealed, **place).decode()
    except Erased:
        return None


def _put_position(session: Session, position: int) -> None:
    changed = session.execute(update(AUDIT_WATCH).values(position=position))
    if changed.rowcount == 0:  # type: ignore[attr-defined]  # an UPDATE's result has it
        session.execute(insert(AUDIT_WATCH).values(id=1, position=position))
