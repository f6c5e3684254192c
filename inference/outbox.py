"""What an EHR or its PACS still lacks of a result: one row an errand, kept until it arrived, done by one process at a time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import or_
from sqlalchemy.exc import IntegrityError
from sqlmodel import Field, Session, SQLModel, col, select

from rayhook.auth.database_types import Sessions

LEASE_S: Final = 60.0
MAX_ATTEMPTS: Final = 80  # three days, nearly all of them an hour apart
AT_ONCE: Final = 20

_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class Backoff:
    """Each attempt that failed doubles the pause before the next."""

    first_s: float
    longest_s: float = 3600.0

    def pause_s(self, attempts: int) -> float:
        pause_s: float = self.first_s * 2 ** min(max(0, attempts - 1), _DOUBLINGS)
        return min(pause_s, self.longest_s)


BACKOFF: Final = Backoff(15.0)


class Errand(StrEnum):
    """What is to be brought: the report, DocumentReferences of stored objects, the objects themselves.

    `signed`: what a signature or a withdrawal makes for the PACS, once the EHR has it.
    """

    LINKS = "links"
    OBJECTS = "objects"
    REPORT = "report"
    SIGNED = "signed"


class OutboxRow(SQLModel, table=True):
    """One errand. Without `next_attempt_at` it waits for whoever brings a token."""

    __tablename__ = "result_outbox"

    result_id: str = Field(primary_key=True, foreign_key="analysis_result.id", max_length=32)
    errand: str = Field(primary_key=True, max_length=16)
    attempts: int = 0
    next_attempt_at: float | None = Field(default=None, index=True)
    lease_until: float | None = None


def begin_errand(session: Session, result_id: str, errand: Errand, *, now: float) -> None:
    """Note the errand as in hand, with the change that makes it one: after a crash its lease runs out."""
    row = session.get(OutboxRow, (result_id, errand.value), populate_existing=True)
    if row is None:
        row = OutboxRow(result_id=result_id, errand=errand.value)
    row.attempts += 1
    row.next_attempt_at = row.lease_until = now + LEASE_S
    session.add(row)
    session.flush()


def end_errand(session: Session, result_id: str, errand: Errand) -> None:
    """Forget the errand: it is done, or nothing will bring it about."""
    row = _locked(session, result_id, errand)
    if row is not None:
        session.delete(row)
        session.flush()


def put_off(session: Session, result_id: str, errand: Errand, *, now: float, is_due: bool) -> None:
    """Give back what could not be done. is_due: whether another try may come by itself, with a token of our own."""
    row = _locked(session, result_id, errand)
    if row is None:
        return
    is_left = is_due and row.attempts < MAX_ATTEMPTS
    row.next_attempt_at = now + BACKOFF.pause_s(row.attempts) if is_left else None
    row.lease_until = None
    session.add(row)
    session.flush()


def awaits_errand(session: Session, result_id: str, errand: Errand, *, now: float) -> bool:
    """Return whether the errand is undone, in nobody's hands, and not given up."""
    row = session.get(OutboxRow, (result_id, errand.value), populate_existing=True)
    return row is not None and row.attempts < MAX_ATTEMPTS and _is_free(row, now)


@dataclass(frozen=True, slots=True)
class Outbox:
    """Hands errands out, each to one process at a time."""

    sessions: Sessions
    clock: Callable[[], float] = time.time

    def due(self, errand: Errand) -> list[str]:
        """Return the results whose errand may be tried now, the longest due first."""
        now = self.clock()
        lease = col(OutboxRow.lease_until)
        query = (
            select(OutboxRow.result_id)
            .where(OutboxRow.errand == errand.value, col(OutboxRow.next_attempt_at) <= now)
            .where(or_(lease.is_(None), lease <= now), col(OutboxRow.attempts) < MAX_ATTEMPTS)
            .order_by(col(OutboxRow.next_attempt_at), col(OutboxRow.result_id))
            .limit(AT_ONCE)
        )
        with self.sessions() as session:
            return list(session.exec(query))

    def claim(self, result_id: str, errand: Errand, *, is_asked: bool, lease_s: float = LEASE_S) -> bool:
        """Take the errand; False where another has it, it is done, or its time has not come.

        is_asked: whether somebody came with a token, so that it need not be due.
        """
        now = self.clock()
        with self.sessions() as session:
            row = _locked(session, result_id, errand)
            is_due = row is not None and row.next_attempt_at is not None and row.next_attempt_at <= now
            if row is None or not _is_free(row, now) or not (is_asked or is_due):
                return False
            row.attempts, row.lease_until = row.attempts + 1, now + lease_s
            session.add(row)
            session.commit()
        return True

    def lock(self, result_id: str, errand: Errand, *, lease_s: float) -> bool:
        """Take an errand whose own rows say when it is due; False where another has it."""
        try:
            with self.sessions() as session:
                if _locked(session, result_id, errand) is None:
                    session.add(OutboxRow(result_id=result_id, errand=errand.value))
                session.commit()
        except IntegrityError:  # another process made the row since the look-up
            return False
        return self.claim(result_id, errand, is_asked=True, lease_s=lease_s)

    def release(self, result_id: str, errand: Errand) -> None:
        with self.sessions() as session:
            end_errand(session, result_id, errand)
            session.commit()


def _is_free(row: OutboxRow, now: float) -> bool:
    return row.lease_until is None or row.lease_until <= now


def _locked(session: Session, result_id: str, errand: Errand) -> OutboxRow | None:
    query = (
        select(OutboxRow)
        .where(OutboxRow.result_id == result_id, OutboxRow.errand == errand.value)
        .with_for_update()
    )
    return session.exec(query, execution_options={"populate_existing": True}).first()
