"""The jobs of all EHRs as who keeps the service sees them: counted, and those without a result by code. Not of whom."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import and_, func, or_
from sqlmodel import Session, col, select

from rayhook.fhir.errors import Conflict, NotFound
from rayhook.inference.job_table import AnalysisJob, JobState

SHOWN: Final = 200

_WITHOUT_RESULT = (JobState.DEAD.value, JobState.FAILED.value, JobState.REFUSED.value)


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


def count_jobs(session: Session) -> dict[JobState, int]:
    """Return how many jobs there are in each state, none among them."""
    counted = session.exec(select(AnalysisJob.state, func.count()).group_by(AnalysisJob.state)).all()
    return {state: dict(counted).get(state.value, 0) for state in JobState}


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
    """Queue all jobs again that may be, and return them as they were."""
    is_passing = and_(col(AnalysisJob.state) == JobState.FAILED.value, col(AnalysisJob.retryable))
    query = (
        select(AnalysisJob)
        .where(or_(col(AnalysisJob.state) == JobState.DEAD.value, is_passing))
        .order_by(col(AnalysisJob.created_at), col(AnalysisJob.id))
        .with_for_update()
    )
    found = session.exec(query, execution_options={"populate_existing": True}).all()
    return [_requeued(session, job, clock()) for job in found]


def _requeued(session: Session, job: AnalysisJob, now: float) -> EndedJob:
    before = _ended(job)
    job.state, job.attempts, job.retryable = JobState.QUEUED.value, 0, False
    job.error_code = job.error_message = None
    job.updated_at = now
    session.add(job)
    session.flush()
    return before


def _may_retry(job: AnalysisJob) -> bool:
    """A job that no worker survived may have met a bad day; what was refused stays refused."""
    return job.state == JobState.DEAD or (job.state == JobState.FAILED and job.retryable)


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
