"""A job in the hands of a worker: taken, kept, handed back, or taken away from it.

A claim takes a lease and a fence; whoever comes back after the job went to another, or was cancelled, finds its
fence stale, and changes nothing.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import and_, or_, update
from sqlmodel import Session, col, select

from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import Conflict, NotFound, RayhookError, ServiceUnavailable
from rayhook.fhir.text import translatable
from rayhook.inference.job_table import (
    AnalysisJob,
    ClaimedJob,
    JobRow,
    JobState,
    WorkerQueue,
    open_authorization,
    open_reference,
    open_row,
)
from rayhook.inference.results import MAX_MESSAGE, index
from rayhook.inference.study import StudyReference

# Where machines fail one after the other, an honest study may be in hand three times; five deaths are its own doing.
MAX_ATTEMPTS: Final = 5
EXHAUSTED: Final = "attempts_exhausted"
CANCELLED_BY_STAFF: Final = "cancelled_by_staff"
STUDY_WITHDRAWN: Final = "study_withdrawn"
_EXHAUSTED_MESSAGE: Final = translatable("each attempt ended the process that analyses the images")
_RECOVERED_AT_ONCE: Final = 100
UNREADABLE: Final = "job_unreadable"
_UNREADABLE_MESSAGE: Final = translatable("what the analysis was asked for cannot be read")
_UNREADABLE_S: Final = 60.0
_UNREADABLE_AT_ONCE: Final = 20

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Claim:
    """The job that was taken, if any; `died` are those found to have used up their attempts."""

    job: ClaimedJob | None
    died: tuple[JobRow, ...] = ()


def claim_next(
    session: Session,
    keyring: Keyring,
    *,
    queues: Collection[WorkerQueue] = tuple(WorkerQueue),
    lease_s: float,
    worker_id: str | None = None,
    clock: Clock = time.time,
    max_attempts: int = MAX_ATTEMPTS,
) -> Claim:
    """Take the job of `queues` that is due first for `lease_s` seconds: the more urgent, then the older.

    Jobs whose worker was not heard of in time are there to be taken again, or dead after `max_attempts`.
    """
    now = clock()
    died = recover(session, now=now, max_attempts=max_attempts)
    for _ in range(_UNREADABLE_AT_ONCE):
        job = _first_due(session, queues, now)
        if job is None:
            break
        claimed = _take(
            session,
            keyring,
            job,
            lease_s=lease_s,
            worker_id=worker_id,
            now=now,
            max_attempts=max_attempts,
        )
        if claimed is not None:
            return Claim(claimed, died)
        died += (open_row(job),) if job.state == JobState.DEAD else ()
    return Claim(None, died)


def _first_due(session: Session, queues: Collection[WorkerQueue], now: float) -> AnalysisJob | None:
    """Lock the job that is due first. Each queue is in the index's order: of all together the rows would be sorted."""
    firsts = {queue: session.exec(_waiting(col(AnalysisJob.due_at), queue, now)).first() for queue in queues}
    known = sorted((due_at, queue) for queue, due_at in firsts.items() if due_at is not None)
    for _, queue in known:
        query = _waiting(AnalysisJob, queue, now).with_for_update(skip_locked=True)
        job: AnalysisJob | None = session.exec(query, execution_options={"populate_existing": True}).first()
        if job is not None:
            return job
    return None


def _waiting(what: Any, queue: WorkerQueue, now: float) -> Any:
    may_be_taken = or_(col(AnalysisJob.next_attempt_at).is_(None), col(AnalysisJob.next_attempt_at) <= now)
    return (
        select(what)
        .where(AnalysisJob.state == JobState.QUEUED.value, AnalysisJob.queue == queue.value, may_be_taken)
        .order_by(col(AnalysisJob.due_at), col(AnalysisJob.id))
        .limit(1)
    )


def recover(session: Session, *, now: float, max_attempts: int = MAX_ATTEMPTS) -> tuple[JobRow, ...]:
    """Queue again the jobs whose lease ran out; return those that died of it."""
    query = (
        select(AnalysisJob)
        .where(AnalysisJob.state == JobState.RUNNING.value, col(AnalysisJob.lease_until) <= now)
        .limit(_RECOVERED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    died = []
    for job in session.exec(query, execution_options={"populate_existing": True}).all():
        if job.attempts >= max_attempts:
            end(session, job, JobState.DEAD, now=now, code=EXHAUSTED, message=_EXHAUSTED_MESSAGE)
            died.append(open_row(job))
        else:
            _requeue(session, job, now=now)
    return tuple(died)


def claim(
    session: Session,
    keyring: Keyring,
    job_id: str,
    *,
    lease_s: float,
    worker_id: str | None = None,
    clock: Clock = time.time,
    max_attempts: int = MAX_ATTEMPTS,
) -> ClaimedJob | None:
    """Take this job for `lease_s` seconds; None where it is another's, or ended.

    The attempt is counted here, before any work: a job that kills its worker is dead after `max_attempts`.
    """
    job = locked(session, AnalysisJob.id, job_id)
    now = clock()
    if job is None or not _is_free(job, now):
        return None
    if job.attempts >= max_attempts:
        end(session, job, JobState.DEAD, now=now, code=EXHAUSTED, message=_EXHAUSTED_MESSAGE)
        return None
    return _take(
        session, keyring, job, lease_s=lease_s, worker_id=worker_id, now=now, max_attempts=max_attempts
    )


def _is_free(job: AnalysisJob, now: float) -> bool:
    if job.state == JobState.QUEUED:
        return True
    return job.state == JobState.RUNNING and (job.lease_until is None or job.lease_until <= now)


def _take(
    session: Session,
    keyring: Keyring,
    job: AnalysisJob,
    *,
    lease_s: float,
    worker_id: str | None,
    now: float,
    max_attempts: int,
) -> ClaimedJob | None:
    """Return the job in hand; None for one that cannot be read, which is put off, as the others are not to wait for it.

    A process may be without a new key for a moment; what no process can read is dead after `max_attempts`.
    """
    waited_s = max(0.0, now - max(job.updated_at, job.next_attempt_at or 0.0))
    try:
        reference = open_reference(session, keyring, job)
        authorization = open_authorization(session, keyring, job)
    except ServiceUnavailable:
        raise
    except (RayhookError, msgspec.DecodeError) as error:
        job.attempts += 1
        code = error.code if isinstance(error, RayhookError) else UNREADABLE
        if job.attempts >= max_attempts:
            end(session, job, JobState.DEAD, now=now, code=code, message=_UNREADABLE_MESSAGE)
        else:
            until = now + _UNREADABLE_S
            _requeue(session, job, now=now, until=until, code=code, message=_UNREADABLE_MESSAGE)
        return None
    job.state, job.attempts, job.fence = JobState.RUNNING.value, job.attempts + 1, job.fence + 1
    job.lease_until, job.updated_at = now + lease_s, now
    job.next_attempt_at, job.worker_id = None, worker_id
    session.add(job)
    session.flush()
    return ClaimedJob(
        id=job.id,
        fence=job.fence,
        attempts=job.attempts,
        retries=job.retries,
        reference=reference,
        authorization=authorization,
        request_id=job.request_id,
        waited_s=waited_s,
    )


def renew(session: Session, claimed: ClaimedJob, *, lease_s: float, clock: Clock = time.time) -> bool:
    """Prolong the lease of a long analysis; False where it has gone to another, or was cancelled."""
    held = and_(
        col(AnalysisJob.id) == claimed.id,
        col(AnalysisJob.fence) == claimed.fence,
        col(AnalysisJob.state) == JobState.RUNNING.value,
    )
    renewed = session.execute(update(AnalysisJob).where(held).values(lease_until=clock() + lease_s))
    return bool(renewed.rowcount)  # type: ignore[attr-defined]  # a CursorResult


def hand_back(
    session: Session, claimed: ClaimedJob, *, until: float | None = None, clock: Clock = time.time
) -> bool:
    """Queue the job again as if it had not been taken: its worker stops, and lives, or it is not the job's turn."""
    job = held(session, claimed)
    if job is None:
        return False
    job.attempts -= 1
    _requeue(session, job, now=clock(), until=until)
    return True


def put_off(
    session: Session,
    claimed: ClaimedJob,
    *,
    until: float,
    code: str,
    message: str,
    clock: Clock = time.time,
) -> bool:
    """Queue the job again for `until`, with what kept it from its end this time; its token is kept."""
    job = held(session, claimed)
    if job is None:
        return False
    job.attempts, job.retries = job.attempts - 1, job.retries + 1
    _requeue(session, job, now=clock(), until=until, code=code, message=message)
    return True


def survive(
    session: Session,
    claimed: ClaimedJob,
    *,
    until: float,
    code: str,
    message: str,
    clock: Clock = time.time,
    max_attempts: int = MAX_ATTEMPTS,
) -> JobState | None:
    """Queue the job again after its images ended the engine, or end it as dead; the attempt counts.

    Return which of both, None under a stale fence.
    """
    job = held(session, claimed)
    if job is None:
        return None
    if job.attempts >= max_attempts:
        end(session, job, JobState.DEAD, now=clock(), code=EXHAUSTED, message=_EXHAUSTED_MESSAGE)
        return JobState.DEAD
    _requeue(session, job, now=clock(), until=until, code=code, message=message)
    return JobState.QUEUED


def cancel(
    session: Session, job_id: str, *, code: str = CANCELLED_BY_STAFF, clock: Clock = time.time
) -> JobRow:
    """End a waiting job, or one in hand: its worker finds its fence stale, and writes nothing.

    Raises NotFound for an unknown one, Conflict for one that has ended.
    """
    job = locked(session, AnalysisJob.id, job_id)
    if job is None:
        raise NotFound("there is no such job", code="job_unknown")
    if JobState(job.state).is_final:
        raise Conflict("this job has ended", code="job_ended")
    return _cancel(session, job, code=code, now=clock())


def cancel_study(
    session: Session,
    keyring: Keyring,
    study: StudyReference,
    *,
    code: str = STUDY_WITHDRAWN,
    clock: Clock = time.time,
) -> tuple[JobRow, ...]:
    """End what waits or is in hand of an ImagingStudy that its EHR takes back, in whatever version.

    Another ImagingStudy of the same images, of another patient for one, is not touched.
    """
    query = (
        select(AnalysisJob)
        .where(
            AnalysisJob.study_index == index(keyring, "study", study.ehr_id, study.study_instance_uid),
            col(AnalysisJob.state).in_([JobState.QUEUED.value, JobState.RUNNING.value]),
        )
        .order_by(col(AnalysisJob.id))  # as who prolongs leases takes them: nobody waits for the other
        .with_for_update()
    )
    found = session.exec(query, execution_options={"populate_existing": True}).all()
    same = [job for job in found if _is_of(open_reference(session, keyring, job), study)]
    return tuple(_cancel(session, job, code=code, now=clock()) for job in same)


def _is_of(reference: StudyReference, study: StudyReference) -> bool:
    mine = (reference.fhir_base_url, reference.patient_id, reference.imaging_study_id)
    return mine == (study.fhir_base_url, study.patient_id, study.imaging_study_id)


def _cancel(session: Session, job: AnalysisJob, *, code: str, now: float) -> JobRow:
    job.fence += 1
    end(session, job, JobState.CANCELLED, now=now, code=code, message=_CANCELLED_MESSAGES.get(code))
    return open_row(job)


_CANCELLED_MESSAGES: Final = {
    CANCELLED_BY_STAFF: translatable("the analysis was cancelled by the staff of this service"),
    STUDY_WITHDRAWN: translatable("the EHR has taken the study back"),
}


def held(session: Session, claimed: ClaimedJob) -> AnalysisJob | None:
    """Return the job's row, locked, while it is this claim's."""
    job = locked(session, AnalysisJob.id, claimed.id)
    if job is None or job.state != JobState.RUNNING or job.fence != claimed.fence:
        return None
    return job


def end(
    session: Session,
    job: AnalysisJob,
    state: JobState,
    *,
    now: float,
    code: str | None = None,
    message: str | None = None,
    retryable: bool = False,
) -> None:
    job.state, job.updated_at = state.value, now
    job.lease_until = job.next_attempt_at = job.worker_id = None
    job.error_code, job.retryable = code, retryable
    job.error_message = None if message is None else message[:MAX_MESSAGE]
    job.authorization = None
    session.add(job)
    session.flush()


def _requeue(
    session: Session,
    job: AnalysisJob,
    *,
    now: float,
    until: float | None = None,
    code: str | None = None,
    message: str | None = None,
) -> None:
    job.state, job.updated_at = JobState.QUEUED.value, now
    job.lease_until = job.worker_id = None
    job.next_attempt_at, job.error_code = until, code
    job.error_message = None if message is None else message[:MAX_MESSAGE]
    session.add(job)
    session.flush()


def locked(session: Session, column: Any, value: str) -> AnalysisJob | None:
    """Return the row as it is now, kept from others until the transaction ends (SQLite: the whole database is)."""
    query = select(AnalysisJob).where(column == value).with_for_update()
    return session.exec(query, execution_options={"populate_existing": True}).first()
