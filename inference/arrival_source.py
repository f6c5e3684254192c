"""What is known of each source of arrivals: how far it was heard, and which process looks after it just now."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec
import rfc8785
from sqlalchemy import BigInteger, Column, LargeBinary, func, or_
from sqlalchemy.exc import IntegrityError
from sqlmodel import Field, Session, SQLModel, col, select

from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.inference.event_number import EventNumbers
from rayhook.inference.results import seal, unseal

MAX_NAME: Final = 128


class SourceKind(StrEnum):
    """`name` of a source is the id of the Subscription in the EHR, or that of the PACS in the registry."""

    POLL = "poll"
    SUBSCRIPTION = "subscription"


class ArrivalSourceRow(SQLModel, table=True):
    """One Subscription, or one PACS that is polled.

    `events` is JSON of EventNumbers.  `seen` is sealed: the studies of a PACS as they were last time.
    `caught_up_at` is the time up to which nothing was missed, `heard_at` that of the last word.
    """

    __tablename__ = "arrival_source"

    id: str = Field(primary_key=True, max_length=32)
    ehr_id: str = Field(max_length=128)
    kind: str = Field(max_length=16)
    name: str = Field(max_length=MAX_NAME)
    fhir_base_url: str | None = Field(default=None, max_length=2048)
    complete: int | None = Field(default=None, sa_column=Column(BigInteger))
    told: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    ahead: str = Field(default="[]", max_length=16_384)
    is_lost: bool = False
    seen: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    caught_up_at: float | None = None
    heard_at: float | None = None
    ends_at: float | None = None
    attempts: int = 0
    fence: int = 0
    next_attempt_at: float | None = Field(default=None, index=True)
    lease_until: float | None = None
    error_code: str | None = Field(default=None, max_length=64)


@dataclass(frozen=True, slots=True)
class Source:
    """What names one source."""

    ehr_id: str
    kind: SourceKind
    name: str

    @property
    def id(self) -> str:
        return hashlib.sha256(rfc8785.dumps([self.ehr_id, self.kind.value, self.name])).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class ClaimedSource:
    """A source in hand, as it was when it was taken. Under a stale `fence` nothing has an effect."""

    source: Source
    fence: int
    attempts: int
    fhir_base_url: str | None
    events: EventNumbers
    caught_up_at: float | None
    heard_at: float | None
    ends_at: float | None
    seen: dict[str, int | None]


def events_of(row: ArrivalSourceRow) -> EventNumbers:
    ahead = msgspec.json.decode(row.ahead, type=tuple[int, ...])
    return EventNumbers(row.complete, ahead, row.told, row.is_lost)


def set_events(row: ArrivalSourceRow, events: EventNumbers) -> None:
    row.complete, row.told, row.is_lost = events.complete, events.told, events.is_lost
    row.ahead = msgspec.json.encode(events.ahead).decode("ascii")


def locked_source(session: Session, source: Source) -> ArrivalSourceRow | None:
    """Return the row as it is now, kept from others until the transaction ends (SQLite: the whole database is)."""
    query = select(ArrivalSourceRow).where(ArrivalSourceRow.id == source.id).with_for_update()
    return session.exec(query, execution_options={"populate_existing": True}).first()


def opened_source(session: Session, source: Source) -> ArrivalSourceRow:
    """Return the row, locked, and make it where there is none."""
    row = locked_source(session, source)
    if row is not None:
        return row
    row = ArrivalSourceRow(id=source.id, ehr_id=source.ehr_id, kind=source.kind.value, name=source.name)
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:  # another process made the row since the look-up
        found = locked_source(session, source)
        assert found is not None
        return found
    return row


def sources_of(session: Session, ehr_id: str, kind: SourceKind) -> list[ArrivalSourceRow]:
    query = select(ArrivalSourceRow).where(
        ArrivalSourceRow.ehr_id == ehr_id, ArrivalSourceRow.kind == kind.value
    )
    return list(session.exec(query.order_by(col(ArrivalSourceRow.name))))


def silent_s(session: Session, kind: SourceKind, *, now: float) -> float:
    """Return the time since the longest silent source of a kind was heard, of those that are looked after."""
    query = select(func.min(ArrivalSourceRow.heard_at)).where(
        ArrivalSourceRow.kind == kind.value, col(ArrivalSourceRow.next_attempt_at).is_not(None)
    )
    heard_at = session.exec(query).one()
    return 0.0 if heard_at is None else max(0.0, now - heard_at)


@dataclass(frozen=True, slots=True)
class Sources:
    """Hands sources out to be looked after, each to one process at a time. `reading` sessions do not wait for writers."""

    sessions: Sessions
    reading: Sessions
    keyring: Keyring
    clock: Callable[[], float] = time.time

    def due(self, kind: SourceKind) -> list[Source]:
        now = self.clock()
        lease = col(ArrivalSourceRow.lease_until)
        query = (
            select(ArrivalSourceRow)
            .where(ArrivalSourceRow.kind == kind.value, col(ArrivalSourceRow.next_attempt_at) <= now)
            .where(or_(lease.is_(None), lease <= now))
            .order_by(col(ArrivalSourceRow.next_attempt_at), col(ArrivalSourceRow.id))
        )
        with self.reading() as session:
            return [Source(row.ehr_id, SourceKind(row.kind), row.name) for row in session.exec(query)]

    def claim(self, source: Source, *, lease_s: float) -> ClaimedSource | None:
        """Take the source; None where another has it, or its time has not come."""
        now = self.clock()
        with self.sessions() as session:
            row = locked_source(session, source)
            is_due = row is not None and row.next_attempt_at is not None and row.next_attempt_at <= now
            if row is None or not is_due or (row.lease_until is not None and row.lease_until > now):
                return None
            row.attempts, row.fence, row.lease_until = row.attempts + 1, row.fence + 1, now + lease_s
            session.add(row)
            session.commit()
            return ClaimedSource(
                source=source,
                fence=row.fence,
                attempts=row.attempts,
                fhir_base_url=row.fhir_base_url,
                events=events_of(row),
                caught_up_at=row.caught_up_at,
                heard_at=row.heard_at,
                ends_at=row.ends_at,
                seen=self._opened(row),
            )

    def held(self, session: Session, claimed: ClaimedSource) -> ArrivalSourceRow | None:
        """Return the row, locked; None where it has gone to another, or is gone."""
        row = locked_source(session, claimed.source)
        return row if row is not None and row.fence == claimed.fence else None

    def release(
        self,
        session: Session,
        row: ArrivalSourceRow,
        *,
        next_attempt_at: float | None,
        error_code: str | None = None,
    ) -> None:
        """Give the source back; without an error its attempts count from the beginning again."""
        row.lease_until, row.next_attempt_at, row.error_code = None, next_attempt_at, error_code
        if error_code is None:
            row.attempts = 0
        session.add(row)
        session.flush()

    def put_off(self, claimed: ClaimedSource, *, next_attempt_at: float | None, error_code: str) -> None:
        """Give back a source that could not be looked after; without a next time, nobody does any more."""
        with self.sessions() as session:
            row = self.held(session, claimed)
            if row is not None:
                self.release(session, row, next_attempt_at=next_attempt_at, error_code=error_code)
            session.commit()

    def seal_seen(self, row: ArrivalSourceRow, seen: dict[str, int | None]) -> None:
        row.seen = seal(self.keyring, ArrivalSourceRow, "seen", row.id, msgspec.json.encode(seen))

    def _opened(self, row: ArrivalSourceRow) -> dict[str, int | None]:
        if row.seen is None:
            return {}
        plaintext = unseal(self.keyring, ArrivalSourceRow, "seen", row.id, row.seen)
        return msgspec.json.decode(plaintext, type=dict[str, int | None])
