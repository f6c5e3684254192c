"""Handing the log on to receivers outside, in order, at least once, whatever happens in between.

What has been taken is a number in the database: an outage, a restart or a second process loses nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import func, insert, select, update
from sqlmodel import Session

from rayhook.audit.checkpoint import Checkpoint, TreeHead
from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.models import AUDIT_CHECKPOINT, AUDIT_DELIVERY, AUDIT_EVENT
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.review import AuditRecord, opened, sealed_values, timestamp
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import ready_keys

_BATCH: Final = 100
_AGENT: Final = "rayhook"

Item_contra = TypeVar("Item_contra", contravariant=True)


class DeliveryFailed(Exception):
    """The receiver did not take what was sent; `code` says why, and nothing of what was sent."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Receiver(Protocol[Item_contra]):
    """Who takes items: returns how many of the first ones it has now, or raises DeliveryFailed."""

    @property
    def target(self) -> str: ...

    def send(self, items: Sequence[Item_contra]) -> int: ...


@dataclass(frozen=True, slots=True)
class DeliveryStatus:
    """`behind` items wait for `target`; `failures` tries in a row have failed, the last with `error`."""

    target: str
    position: int
    behind: int
    failures: int
    error: str | None
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Step:
    """One try: `sent` items were taken, and `is_done` where nothing waits any more."""

    sent: int
    is_done: bool
    failures: int


class Delivery:
    """Sends what is due to one receiver, a batch at a time; only one process at a time should call it."""

    def __init__(self, sessions: Sessions, reading: Sessions, keyring: Keyring, audit: AuditLog) -> None:
        self._sessions = sessions
        self._reading = reading
        self._keyring = keyring
        self._audit = audit

    def send_events(self, receiver: Receiver[AuditRecord]) -> Step:
        with self._reading() as session:
            position = _position(session, receiver.target)
            query = (
                select(AUDIT_EVENT)
                .where(AUDIT_EVENT.c.seq > position)
                .order_by(AUDIT_EVENT.c.seq)
                .limit(_BATCH)
            )
            rows = session.execute(query).mappings().all()
            ready_keys(session, self._keyring, sealed_values(rows))
            records = [opened(session, self._keyring, row, is_lenient=True) for row in rows]
        return self._send(receiver, records, [record.seq for record in records])

    def send_checkpoints(self, receiver: Receiver[Checkpoint]) -> Step:
        with self._reading() as session:
            position = _position(session, receiver.target)
            query = (
                select(AUDIT_CHECKPOINT)
                .where(AUDIT_CHECKPOINT.c.id > position)
                .order_by(AUDIT_CHECKPOINT.c.id)
                .limit(_BATCH)
            )
            rows = session.execute(query).mappings().all()
        checkpoints = [
            Checkpoint(TreeHead(row["size"], row["root"], row["head"], row["signed_at"]), row["signature"])
            for row in rows
        ]
        return self._send(receiver, checkpoints, [row["id"] for row in rows])

    def _send(self, receiver: Receiver[Any], items: Sequence[Any], numbers: Sequence[int]) -> Step:
        if not items:
            return Step(0, is_done=True, failures=0)
        try:
            taken = receiver.send(items)
        except DeliveryFailed as failure:
            return Step(0, is_done=False, failures=self._fail(receiver.target, failure.code))
        self._advance(receiver.target, numbers[taken - 1])
        return Step(taken, is_done=len(items) < _BATCH and taken == len(items), failures=0)

    def _advance(self, target: str, position: int) -> None:
        with self._sessions() as session:
            before = _row(session, target)
            _put(session, target, position=position, failures=0, error=None)
            if before is not None and before["failures"] > 0:
                detail = {"target": target, "failures": str(before["failures"])}
                self._audit.record(
                    session, AuditEntry(AuditKind.AUDIT_DELIVERY_RESUMED, agent=_AGENT, detail=detail)
                )
            session.commit()

    def _fail(self, target: str, code: str) -> int:
        with self._sessions() as session:
            before = _row(session, target)
            failures = 1 + (0 if before is None else before["failures"])
            position = 0 if before is None else before["position"]
            _put(session, target, position=position, failures=failures, error=code)
            if failures == 1:
                entry = AuditEntry(
                    AuditKind.AUDIT_DELIVERY_INTERRUPTED,
                    Outcome.SERIOUS_FAILURE,
                    agent=_AGENT,
                    detail={"target": target, "code": code},
                )
                self._audit.record(session, entry)
            session.commit()
        return int(failures)


def delivery_statuses(session: Session) -> list[DeliveryStatus]:
    """Return how far each receiver is, for the page and the metrics."""
    last = {
        "events": session.execute(select(func.max(AUDIT_EVENT.c.seq))).scalar() or 0,
        "checkpoints": session.execute(select(func.max(AUDIT_CHECKPOINT.c.id))).scalar() or 0,
    }
    query = select(AUDIT_DELIVERY).order_by(AUDIT_DELIVERY.c.target)
    return [
        DeliveryStatus(
            target=row["target"],
            position=row["position"],
            behind=max(0, last[row["target"].partition(":")[0]] - row["position"]),
            failures=row["failures"],
            error=row["error"],
            changed_at=datetime.fromisoformat(row["changed_at"]),
        )
        for row in session.execute(query).mappings()
    ]


def _position(session: Session, target: str) -> int:
    row = _row(session, target)
    return 0 if row is None else row["position"]


def _row(session: Session, target: str) -> Any:
    return session.execute(select(AUDIT_DELIVERY).where(AUDIT_DELIVERY.c.target == target)).mappings().first()


def _put(session: Session, target: str, **values: Any) -> None:
    values["changed_at"] = timestamp(datetime.now(UTC))
    changed = session.execute(
        update(AUDIT_DELIVERY).where(AUDIT_DELIVERY.c.target == target).values(**values)
    )
    if changed.rowcount == 0:  # type: ignore[attr-defined]  # an UPDATE's result has it
        session.execute(insert(AUDIT_DELIVERY).values(target=target, **values))
