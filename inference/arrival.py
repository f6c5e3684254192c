"""Studies that were told of before anybody asked: an inbox, so that none is lost while its EHR is away.

However often a study is told of, and by whichever way, there is one row for what was named, and one job.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

import msgspec
from sqlalchemy import Column, LargeBinary, delete, func, or_
from sqlalchemy.exc import IntegrityError
from sqlmodel import Field, Session, SQLModel, col, select

from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.inference.job_table import Priority
from rayhook.inference.outbox import AT_ONCE, LEASE_S, Backoff
from rayhook.inference.results import index, seal, unseal

MAX_ATTEMPTS: Final = 80  # three days, nearly all of them an hour apart
BACKOFF: Final = Backoff(5.0)
KEPT_S: Final = 7 * 86_400.0

# Images come one by one, and so do the versions of a study: what is told again within this time is looked at once.
_LONGEST_WAIT_S: Final = 60.0


class ArrivalWay(StrEnum):
    """How we heard of it. Each is a label of the metrics."""

    POLL = "poll"
    STOW = "stow"
    SUBSCRIPTION = "subscription"


class ArrivalState(StrEnum):
    """`ignored`: there is nothing to analyse; `given_up`: nobody could be asked about it, for three days."""

    ENQUEUED = "enqueued"
    GIVEN_UP = "given_up"
    IGNORED = "ignored"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """That a study of an EHR has images, or more of them. It is named by one of the two ids.

    `fhir_base_url` is that of the ImagingStudy, None where any of the EHR's may have it.
    `dicomweb_url` is where the images are known to be, for an EHR that does not say.
    """

    ehr_id: str
    way: ArrivalWay
    imaging_study_id: str | None = None
    study_instance_uid: str | None = None
    fhir_base_url: str | None = None
    dicomweb_url: str | None = None
    token_required: bool = False
    priority: Priority = Priority.ROUTINE

    @property
    def subject(self) -> str:
        if self.imaging_study_id is None:
            return f"study {self.study_instance_uid}"
        return f"{self.fhir_base_url}/ImagingStudy/{self.imaging_study_id}"


class ArrivalRow(SQLModel, table=True):
    """One study that was told of. What names it is sealed, and found by blind index.

    `told` counts how often; what was told while the row was in hand is looked at once more.
    """

    __tablename__ = "arrival"

    id: str = Field(primary_key=True, max_length=32)
    ehr_id: str = Field(max_length=128)
    way: str = Field(max_length=16)
    subject_index: str = Field(max_length=64, unique=True)
    content: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    state: str = Field(max_length=16, index=True)
    told: int = 1
    attempts: int = 0
    fence: int = 0
    next_attempt_at: float | None = Field(default=None, index=True)
    lease_until: float | None = None
    error_code: str | None = Field(default=None, max_length=64)
    first_told_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class ClaimedArrival:
    """An arrival in hand. Under a stale `fence` nothing has an effect."""

    id: str
    arrival: Arrival
    told: int
    attempts: int
    fence: int


def announce(
    session: Session,
    keyring: Keyring,
    arrival: Arrival,
    *,
    settle_s: float,
    clock: Callable[[], float] = time.time,
) -> str:
    """Note that a study arrived, to be looked at once nothing was told of it for `settle_s`; return the row's id."""
    now = clock()
    subject_index = index(keyring, "arrival", arrival.ehr_id, arrival.subject)
    row = _locked(session, ArrivalRow.subject_index, subject_index)
    if row is None:
        row = _new_row(keyring, arrival, subject_index=subject_index, now=now)
        row.next_attempt_at = now + settle_s
        try:
            with session.begin_nested():
                session.add(row)
        except IntegrityError:
            # PostgreSQL: another transaction committed the same study since the look-up above.
            row = _locked(session, ArrivalRow.subject_index, subject_index)
            assert row is not None
        else:
            return row.id
    _tell_again(keyring, row, arrival, settle_s=settle_s, now=now)
    session.add(row)
    session.flush()
    return row.id


def _new_row(keyring: Keyring, arrival: Arrival, *, subject_index: str, now: float) -> ArrivalRow:
    id_ = uuid.uuid4().hex
    return ArrivalRow(
        id=id_,
        ehr_id=arrival.ehr_id,
        way=arrival.way.value,
        subject_index=subject_index,
        content=_sealed(keyring, id_, arrival),
        state=ArrivalState.WAITING.value,
        first_told_at=now,
        updated_at=now,
    )


def _tell_again(keyring: Keyring, row: ArrivalRow, arrival: Arrival, *, settle_s: float, now: float) -> None:
    if row.state != ArrivalState.WAITING:
        row.state, row.attempts, row.error_code = ArrivalState.WAITING.value, 0, None
        row.first_told_at, row.next_attempt_at = now, None
    row.way, row.content = (
        arrival.way.value,
        _sealed(keyring, row.id, _merged(open_arrival(keyring, row), arrival)),
    )
    row.told, row.updated_at = row.told + 1, now
    if row.lease_until is None or row.lease_until <= now:
        row.attempts = 0
        row.next_attempt_at = min(now + settle_s, row.first_told_at + max(_LONGEST_WAIT_S, settle_s))


def _merged(before: Arrival, arrival: Arrival) -> Arrival:
    """One way knows where the images are, another how urgent the study is."""
    merged = replace(arrival, priority=arrival.priority.at_least(before.priority))
    if arrival.dicomweb_url is None:
        merged = replace(merged, dicomweb_url=before.dicomweb_url, token_required=before.token_required)
    return merged


def open_arrival(keyring: Keyring, row: ArrivalRow) -> Arrival:
    plaintext = unseal(keyring, ArrivalRow, "content", row.id, row.content)
    return msgspec.json.decode(plaintext, type=Arrival)


@dataclass(frozen=True, slots=True)
class Inbox:
    """Hands arrivals out, each to one process at a time. `reading` sessions do not wait for writers."""

    sessions: Sessions
    reading: Sessions
    keyring: Keyring
    clock: Callable[[], float] = time.time

    def due(self) -> list[str]:
        """Return the arrivals to be looked at now, the longest due first."""
        now = self.clock()
        lease = col(ArrivalRow.lease_until)
        query = (
            select(ArrivalRow.id)
            .where(ArrivalRow.state == ArrivalState.WAITING.value, col(ArrivalRow.next_attempt_at) <= now)
            .where(or_(lease.is_(None), lease <= now))
            .order_by(col(ArrivalRow.next_attempt_at), col(ArrivalRow.id))
            .limit(AT_ONCE)
        )
        with self.reading() as session:
            return list(session.exec(query))

    def claim(self, arrival_id: str) -> ClaimedArrival | None:
        """Take the arrival; None where another has it, it is done, or its time has not come."""
        now = self.clock()
        with self.sessions() as session:
            row = _locked(session, ArrivalRow.id, arrival_id)
            is_due = (
                row is not None
                and row.state == ArrivalState.WAITING
                and row.next_attempt_at is not None
                and row.next_attempt_at <= now
                and (row.lease_until is None or row.lease_until <= now)
            )
            if row is None or not is_due:
                return None
            row.attempts, row.fence, row.lease_until = row.attempts + 1, row.fence + 1, now + LEASE_S
            session.add(row)
            session.commit()
            return ClaimedArrival(
                row.id, open_arrival(self.keyring, row), told=row.told, attempts=row.attempts, fence=row.fence
            )

    def end(
        self, session: Session, claimed: ClaimedArrival, state: ArrivalState, *, code: str | None = None
    ) -> bool:
        """End the arrival, or leave it to be looked at again where it was told of since; False where it is another's."""
        row = _held(session, claimed)
        if row is None:
            return False
        now = self.clock()
        row.lease_until, row.updated_at, row.error_code = None, now, code
        if row.told == claimed.told:
            row.state, row.next_attempt_at = state.value, None
        else:
            row.attempts, row.first_told_at, row.next_attempt_at = 0, now, now
        session.add(row)
        session.flush()
        return True

    def put_off(self, claimed: ClaimedArrival, *, pause_s: float, code: str, is_attempt: bool = True) -> None:
        """Give the arrival back for later. is_attempt: whether it counts, so that one day there is an end of it."""
        with self.sessions() as session:
            row = _held(session, claimed)
            if row is None:
                return
            now = self.clock()
            row.lease_until, row.error_code, row.updated_at = None, code, now
            row.next_attempt_at = now + pause_s
            if not is_attempt:
                row.attempts -= 1
            session.add(row)
            session.commit()

    def forget_old(self, kept_s: float = KEPT_S) -> None:
        """Remove what came to its end long ago."""
        with self.sessions() as session:
            session.execute(
                delete(ArrivalRow).where(
                    col(ArrivalRow.state) != ArrivalState.WAITING.value,
                    col(ArrivalRow.updated_at) <= self.clock() - kept_s,
                )
            )
            session.commit()


def count_arrivals(session: Session) -> dict[tuple[ArrivalWay, ArrivalState], int]:
    query = select(ArrivalRow.way, ArrivalRow.state, func.count()).group_by(
        col(ArrivalRow.way), col(ArrivalRow.state)
    )
    return {(ArrivalWay(way), ArrivalState(state)): count for way, state, count in session.exec(query)}


def _sealed(keyring: Keyring, id_: str, arrival: Arrival) -> bytes:
    return seal(keyring, ArrivalRow, "content", id_, msgspec.json.encode(arrival))


def _held(session: Session, claimed: ClaimedArrival) -> ArrivalRow | None:
    row = _locked(session, ArrivalRow.id, claimed.id)
    return row if row is not None and row.fence == claimed.fence and row.lease_until is not None else None


def _locked(session: Session, column: Any, value: str) -> ArrivalRow | None:
    """Return the row as it is now, kept from others until the transaction ends (SQLite: the whole database is)."""
    query = select(ArrivalRow).where(column == value).with_for_update()
    return session.exec(query, execution_options={"populate_existing": True}).first()
