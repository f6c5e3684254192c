"""The row of a job, and what can be read from it with the keyring and without."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec
from sqlalchemy import Column, Index, LargeBinary
from sqlmodel import Field, Session, SQLModel

from rayhook.auth.keys import Keyring
from rayhook.inference.results import MAX_MESSAGE
from rayhook.inference.sealed_row import SealedRow
from rayhook.inference.study import StudyReference


class JobState(StrEnum):
    """`failed` may be tried again where the row says so; `dead` used up its attempts without an answer."""

    CANCELLED = "cancelled"
    DEAD = "dead"
    DONE = "done"
    FAILED = "failed"
    QUEUED = "queued"
    REFUSED = "refused"
    RUNNING = "running"

    @property
    def is_final(self) -> bool:
        return self not in {JobState.QUEUED, JobState.RUNNING}


class Priority(StrEnum):
    """How urgent a job is, the most urgent first. Spec: FHIR R4 request-priority."""

    STAT = "stat"
    ASAP = "asap"
    URGENT = "urgent"
    ROUTINE = "routine"

    @property
    def rank(self) -> int:
        return list(Priority).index(self)

    def due_at(self, asked_at: float) -> float:
        """Return when a job asked for then is due: workers take the one that is due first.

        So the more urgent goes first, then the older, and nothing waits for ever behind what is more urgent.
        """
        return asked_at + _PATIENCE_S[self]

    def at_least(self, other: "Priority") -> "Priority":
        return min(self, other, key=lambda priority: priority.rank)


_HOUR_S: Final = 3600.0
_PATIENCE_S: Final = {
    Priority.STAT: 0.0,
    Priority.ASAP: 24 * _HOUR_S,
    Priority.URGENT: 26 * _HOUR_S,
    Priority.ROUTINE: 48 * _HOUR_S,
}


class WorkerQueue(StrEnum):
    """Which kind of worker a job waits for."""

    CPU = "cpu"
    GPU = "gpu"


class AnalysisJob(SQLModel, table=True):
    """One analysis to do. Who and what it is about is sealed, and found by blind index.

    due_at: the order of work.  next_attempt_at: a queued job is not taken before.
    attempts: claims from which no worker came back.  retries: ends for a passing reason, one after the other.
    """

    __tablename__ = "analysis_job"
    __table_args__ = (Index("ix_analysis_job_due", "state", "queue", "due_at"),)

    id: str = Field(primary_key=True, max_length=32)
    key: str = Field(max_length=64, unique=True)
    state: str = Field(max_length=16, index=True)
    attempts: int = 0
    fence: int = 0
    lease_until: float | None = None
    ehr_id: str = Field(max_length=128)
    patient_index: str = Field(max_length=64, index=True)
    study_index: str = Field(max_length=64, index=True)
    reference: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    authorization: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    request_id: str = Field(max_length=64)
    error_code: str | None = Field(default=None, max_length=64)
    error_message: str | None = Field(default=None, max_length=MAX_MESSAGE)
    retryable: bool = False
    result_id: str | None = Field(default=None, max_length=32)
    created_at: float
    updated_at: float
    priority: str = Field(
        default=Priority.ROUTINE.value, max_length=8, sa_column_kwargs={"server_default": "routine"}
    )
    queue: str = Field(
        default=WorkerQueue.CPU.value, max_length=8, sa_column_kwargs={"server_default": "cpu"}
    )
    due_at: float = Field(default=0.0, sa_column_kwargs={"server_default": "0"})
    next_attempt_at: float | None = None
    retries: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    worker_id: str | None = Field(default=None, max_length=32)


@dataclass(frozen=True, slots=True)
class Authorization:
    """The EHR's token for one job: sealed while the job waits, erased when it ends."""

    access_token: str = field(repr=False)
    scope: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class JobRow:
    """What a job's row says openly."""

    id: str
    key: str
    state: JobState
    attempts: int
    error_code: str | None
    error_message: str | None
    retryable: bool
    result_id: str | None
    request_id: str
    created_at: float
    updated_at: float
    priority: Priority = Priority.ROUTINE
    queue: WorkerQueue = WorkerQueue.CPU
    next_attempt_at: float | None = None

    @property
    def may_begin(self) -> bool:
        """Say whether asking again begins it: it failed for a passing reason, or waits to try again by itself."""
        return self.is_put_off or (self.state is JobState.FAILED and self.retryable)

    @property
    def is_put_off(self) -> bool:
        return self.state is JobState.QUEUED and self.next_attempt_at is not None


@dataclass(frozen=True, slots=True)
class StoredJob:
    row: JobRow
    reference: StudyReference


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job in hand. `fence` rises with every claim: the highest one is the only one that counts.

    waited_s: since it could be taken.
    """

    id: str
    fence: int
    attempts: int
    reference: StudyReference
    authorization: Authorization | None
    request_id: str
    retries: int = 0
    waited_s: float = 0.0


def open_row(job: AnalysisJob) -> JobRow:
    return JobRow(
        id=job.id,
        key=job.key,
        state=JobState(job.state),
        attempts=job.attempts,
        error_code=job.error_code,
        error_message=job.error_message,
        retryable=job.retryable,
        result_id=job.result_id,
        request_id=job.request_id,
        created_at=job.created_at,
        updated_at=job.updated_at,
        priority=Priority(job.priority),
        queue=WorkerQueue(job.queue),
        next_attempt_at=job.next_attempt_at,
    )


def open_reference(session: Session, keyring: Keyring, job: AnalysisJob) -> StudyReference:
    return msgspec.json.decode(
        SealedRow(session, keyring, AnalysisJob, job.id).open("reference", job.reference), type=StudyReference
    )


def open_authorization(session: Session, keyring: Keyring, job: AnalysisJob) -> Authorization | None:
    if job.authorization is None:
        return None
    plaintext = SealedRow(session, keyring, AnalysisJob, job.id).open("authorization", job.authorization)
    return msgspec.json.decode(plaintext, type=Authorization)


def seal_authorization(
    session: Session, keyring: Keyring, job: AnalysisJob, authorization: Authorization | None
) -> bytes | None:
    if authorization is None:
        return None
    plaintext = msgspec.json.encode(authorization)
    return SealedRow(session, keyring, AnalysisJob, job.id).seal(
        "authorization", plaintext, patient_index=job.patient_index
    )
