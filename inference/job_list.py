"""The jobs of all EHRs as who keeps the service sees them: counted, waiting, without a result. Not of whom."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import and_, func
from sqlmodel import Session, col, select

from rayhook.auth.patient_keys import ERASED_PREFIX
from rayhook.fhir.errors import Conflict, NotFound
from rayhook.inference.job_table import AnalysisJob, JobState, Priority, WorkerQueue

SHOWN: Final = 200

_WITHOUT_RESULT = (
    JobState.CANCELLED.value,
    JobState.DEAD.value,
    JobState.FAILED.value,
    JobState.REFUSED.value,
)
_UNDER_WAY = (JobState.QUEUED.value, JobState.RUNNING.value)
# By who asks for it: what ended the process that analyses it may do so again, what was cancelled had a reason.
_BY_NAME = (JobState.CANCELLED, JobState.DEAD)


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that ended without a result, as far as it says nothing of a patient."""

    id: str
    ehr_id: str
    state: JobState
    code: str
    attempts: int
    may_retry: bool
    request_id: str
    created_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job that waits or is in hand. `code`: what kept it from its end the last time, empty the first."""

    id: str
    ehr_id: str
    state: JobState
    priority: Priority
    queue: WorkerQueue
    code: str
    attempts: int
    next_attempt_at: float | None
    created_at: float


@dataclass(frozen=True, slots=True)
class JobCounts:
    """oldest_waiting_s: how long the oldest job that may be taken has waited."""

    by_state: Mapping[JobState, int]
    by_queue: Mapping[tuple[JobState, WorkerQueue], int]
    oldest_waiting_s: float | None


def count_jobs(session: Session, *, now: float) -> JobCounts:
    """Return how many jobs there are in each state and queue, none among them."""
    query = select(AnalysisJob.state, AnalysisJob.queue, func.count())
    counted = session.exec(query.group_by(AnalysisJob.state, AnalysisJob.queue)).all()
    by_queue = {(JobState(state), WorkerQueue(queue)): count for state, queue, count in counted}
    by_state = {state: sum(by_queue.get((state, queue), 0) for queue in WorkerQueue) for state in JobState}
    waiting = select(func.min(AnalysisJob.updated_at)).where(
        AnalysisJob.state == JobState.QUEUED.value, col(AnalysisJob.next_attempt_at).is_(None)
    )
    since = session.exec(waiting).one()
    return JobCounts(by_state, by_queue, None if since is None else max(0.0, now - since))


def open_jobs(session: Session, *, limit: int = SHOWN) -> list[OpenJob]:
    """Return the jobs in hand, then those that wait, each in the order in which they are taken."""
    query = (
        select(AnalysisJob)
        .where(col(AnalysisJob.state).in_(_UNDER_WAY))
        .order_by(col(AnalysisJob.state).desc(), col(AnalysisJob.due_at), col(AnalysisJob.id))
        .limit(limit)
    )
    return [_open(job) for job in session.exec(query)]


def ended_jobs(session: Session, *, limit: int = SHOWN) -> list[EndedJob]:
    """Return the jobs without a result, the newest first."""
    query = (
        select(AnalysisJob)
        .where(col(AnalysisJob.state).in_(_WITHOUT_RESULT))
        .order_by(col(AnalysisJob.updated_at).desc(), col(AnalysisJob.id))
        .limit(limit)
    )
    return [_ended(job) for job in session.exec(query)]


def retry_job(session: Session, job_id: str, *, clock: Callable[[], float] = time.time) -> EndedJob:
    """Queue one job again and return it as it was.

    Raises NotFound for an unknown one, Conflict for one that is under way, done, or refused for good.
    """
    query = select(AnalysisJob).where(AnalysisJob.id == job_id).with_for_update()
    job = session.exec(query, execution_options={"populate_existing": True}).first()
    if job is None:
        raise NotFound("there is no such job", code="job_unknown")
    if not _may_retry(job):
        raise Conflict("this job cannot be tried again", code="job_not_retryable")
    return _requeued(session, job, clock())


def retry_jobs(session: Session, *, clock: Callable[[], float] = time.time) -> list[EndedJob]:
    """Queue all jobs again that failed for a passing reason, and return them as they were.

    Those that ended the process which analysed them are only tried again one by one.
    """
    query = (
        select(AnalysisJob)
        .where(and_(col(AnalysisJob.state) == JobState.FAILED.value, col(AnalysisJob.retryable)))
        .order_by(col(AnalysisJob.created_at), col(AnalysisJob.id))
        .with_for_update()
    )
    found = session.exec(query, execution_options={"populate_existing": True}).all()
    return [_requeued(session, job, clock()) for job in found]


def _requeued(session: Session, job: AnalysisJob, now: float) -> EndedJob:
    before = _ended(job)
    job.state, job.attempts, job.retries, job.retryable = JobState.QUEUED.value, 0, 0, False
    job.error_code = job.error_message = job.next_attempt_at = None
    job.due_at = Priority(job.priority).due_at(now)
    job.updated_at = now
    session.add(job)
    session.flush()
    return before


def _may_retry(job: AnalysisJob) -> bool:
    """What was refused stays refused, and of who was erased there is nothing to analyse."""
    if job.patient_index.startswith(ERASED_PREFIX):
        return False
    return job.state in _BY_NAME or (job.state == JobState.FAILED and job.retryable)


def _ended(job: AnalysisJob) -> EndedJob:
    return EndedJob(
        id=job.id,
        ehr_id=job.ehr_id,
        state=JobState(job.state),
        code=job.error_code or "",
        attempts=job.attempts,
        may_retry=_may_retry(job),
        request_id=job.request_id,
        created_at=job.created_at,
        ended_at=job.updated_at,
    )


def _open(job: AnalysisJob) -> OpenJob:
    return OpenJob(
        id=job.id,
        ehr_id=job.ehr_id,
        state=JobState(job.state),
        priority=Priority(job.priority),
        queue=WorkerQueue(job.queue),
        code=job.error_code or "",
        attempts=job.attempts,
        next_attempt_at=job.next_attempt_at,
        created_at=job.created_at,
    )
