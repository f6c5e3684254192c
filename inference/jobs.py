"""Jobs and results: the database is the truth of what is asked, in hand and done; a message only wakes a worker.

A job is queued → running → done | refused | failed | dead. A claim takes a lease and a fence; whoever comes back
after the lease went to another finds its fence stale, and changes nothing.
"""

import hashlib
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
import rfc8785
from sqlalchemy import and_, or_
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from rayhook.auth.keys import Keyring
from rayhook.inference.intake import Intake
from rayhook.inference.job_table import (
    AnalysisJob,
    Authorization,
    ClaimedJob,
    JobRow,
    JobState,
    Priority,
    StoredJob,
    open_authorization,
    open_reference,
    open_row,
    seal_authorization,
)
from rayhook.inference.results import (
    MAX_MESSAGE,
    AnalysisResult,
    DeliveryState,
    StoredResult,
    add_result,
    index,
    load_result,
    patient_index,
    results_for_patient,
    seal,
    set_delivery,
)
from rayhook.inference.study import ModelIdentity, StudyReference, StudyResult

__all__ = [
    "AnalysisJob",
    "AnalysisResult",
    "Authorization",
    "ClaimedJob",
    "DeliveryState",
    "JobRow",
    "JobState",
    "Priority",
    "StoredJob",
    "StoredResult",
    "claim",
    "complete",
    "enqueue",
    "fail",
    "find",
    "job_key",
    "jobs_for_patient",
    "load_job",
    "load_result",
    "overdue",
    "refuse",
    "renew",
    "results_for_patient",
    "set_delivery",
    "waiting",
]

MAX_ATTEMPTS: Final = 3
QUEUED_GRACE_S: Final = 5.0
_SWEEP_LIMIT = 1000
_ANY: Final = Intake()

Clock = Callable[[], float]


def job_key(reference: StudyReference, models: Iterable[ModelIdentity]) -> str:
    """Return the identity of one analysis: the same study, as far as the EHR has it, under the same models.

    Their order counts: it decides which of two models takes an image that fits both.
    """
    content = {
        "ehr_id": reference.ehr_id,
        "fhir_base_url": reference.fhir_base_url,
        "imaging_study_id": reference.imaging_study_id,
        "models": [[model.id, model.version, model.weights_sha256] for model in models],
        "patient_id": reference.patient_id,
        "source_version": reference.source_version,
        "study_instance_uid": reference.study_instance_uid,
    }
    return hashlib.sha256(rfc8785.dumps(content)).hexdigest()


def enqueue(
    session: Session,
    keyring: Keyring,
    reference: StudyReference,
    authorization: Authorization | None,
    *,
    key: str,
    request_id: str,
    priority: Priority = Priority.ROUTINE,
    intake: Intake = _ANY,
    clock: Clock = time.time,
) -> tuple[JobRow, bool]:
    """Return the job of `key`, and whether there is something new to send to the queue after the commit.

    A job that failed for a passing reason is queued again; one still in hand gets the token that lasts longer, and
    the higher priority. Raises QueueFull where a new one may not wait.
    """
    job = _locked(session, AnalysisJob.key, key)
    if job is None:
        intake.admit(session, priority)
        job = _new_job(keyring, reference, authorization, key=key, request_id=request_id, now=clock())
        job.priority, job.queue = priority.value, intake.queue_of(reference).value
        job.due_at = priority.due_at(job.created_at)
        try:
            with session.begin_nested():
                session.add(job)
        except IntegrityError:
            # PostgreSQL: another transaction committed the same key since the look-up above.
            job = _locked(session, AnalysisJob.key, key)
            assert job is not None
        else:
            return open_row(job), True
    return _renewed(
        session, keyring, job, authorization, priority=priority, request_id=request_id, now=clock()
    )


def _new_job(
    keyring: Keyring,
    reference: StudyReference,
    authorization: Authorization | None,
    *,
    key: str,
    request_id: str,
    now: float,
) -> AnalysisJob:
    id_ = uuid.uuid4().hex
    return AnalysisJob(
        id=id_,
        key=key,
        state=JobState.QUEUED.value,
        ehr_id=reference.ehr_id,
        patient_index=patient_index(keyring, reference.ehr_id, reference.patient_id),
        study_index=index(keyring, "study", reference.ehr_id, reference.study_instance_uid),
        reference=seal(keyring, AnalysisJob, "reference", id_, msgspec.json.encode(reference)),
        authorization=seal_authorization(keyring, id_, authorization),
        request_id=request_id,
        created_at=now,
        updated_at=now,
    )


def _renewed(
    session: Session,
    keyring: Keyring,
    job: AnalysisJob,
    authorization: Authorization | None,
    *,
    priority: Priority,
    request_id: str,
    now: float,
) -> tuple[JobRow, bool]:
    state = JobState(job.state)
    is_requeued = open_row(job).may_begin
    if is_requeued:
        job.state, job.retryable = JobState.QUEUED.value, False
        job.attempts, job.retries = (0, 0) if state is JobState.FAILED else (job.attempts, job.retries)
        job.next_attempt_at = None
        job.error_code = job.error_message = None
        job.request_id, job.updated_at = request_id, now
        job.priority, job.due_at = priority.value, priority.due_at(now)
    elif not state.is_final and priority.rank < Priority(job.priority).rank:
        job.priority, job.due_at = priority.value, priority.due_at(job.created_at)
    is_erased = state is JobState.FAILED and is_requeued
    if is_erased or (not state.is_final and _outlasts(authorization, open_authorization(keyring, job))):
        job.authorization = seal_authorization(keyring, job.id, authorization)
    session.add(job)
    session.flush()
    return open_row(job), is_requeued


def _outlasts(new: Authorization | None, old: Authorization | None) -> bool:
    return new is not None and (old is None or new.expires_at > old.expires_at)


def claim(
    session: Session,
    keyring: Keyring,
    job_id: str,
    *,
    lease_s: float,
    clock: Clock = time.time,
    max_attempts: int = MAX_ATTEMPTS,
) -> ClaimedJob | None:
    """Take the job for `lease_s` seconds; None where it is another's, or ended.

    The attempt is counted here, before any work: a job that kills its worker is dead after `max_attempts`.
    """
    job = _locked(session, AnalysisJob.id, job_id)
    now = clock()
    if job is None or not _is_free(job, now):
        return None
    if job.attempts >= max_attempts:
        _end(
            session,
            job,
            JobState.DEAD,
            now=now,
            code="attempts_exhausted",
            message="no worker survived the job",
        )
        return None
    job.state, job.attempts, job.fence = JobState.RUNNING.value, job.attempts + 1, job.fence + 1
    job.lease_until, job.updated_at = now + lease_s, now
    session.add(job)
    session.flush()
    return ClaimedJob(
        id=job.id,
        fence=job.fence,
        attempts=job.attempts,
        reference=open_reference(keyring, job),
        authorization=open_authorization(keyring, job),
        request_id=job.request_id,
    )


def _is_free(job: AnalysisJob, now: float) -> bool:
    if job.state == JobState.QUEUED:
        return True
    return job.state == JobState.RUNNING and (job.lease_until is None or job.lease_until <= now)


def renew(session: Session, claimed: ClaimedJob, *, lease_s: float, clock: Clock = time.time) -> bool:
    """Prolong the lease of a long analysis; False where it has gone to another."""
    job = _held(session, claimed)
    if job is None:
        return False
    job.lease_until = clock() + lease_s
    session.add(job)
    session.flush()
    return True


def complete(
    session: Session,
    keyring: Keyring,
    claimed: ClaimedJob,
    result: StudyResult,
    resources: Sequence[dict[str, Any]],
    *,
    clock: Clock = time.time,
) -> str | None:
    """Store the result and end the job; return the result's id, or None, with no effect, under a stale fence."""
    job = _held(session, claimed)
    if job is None:
        return None
    now = clock()
    job.result_id = add_result(
        session, keyring, claimed.reference, result, resources, job_id=claimed.id, now=now
    )
    _end(session, job, JobState.DONE, now=now)
    return job.result_id


def fail(
    session: Session,
    claimed: ClaimedJob,
    *,
    code: str,
    message: str,
    retryable: bool,
    clock: Clock = time.time,
) -> bool:
    """End the job without an answer; `retryable`: the next call for the same study queues it again."""
    job = _held(session, claimed)
    if job is None:
        return False
    _end(session, job, JobState.FAILED, now=clock(), code=code, message=message, retryable=retryable)
    return True


def refuse(
    session: Session, claimed: ClaimedJob, *, code: str, message: str, clock: Clock = time.time
) -> bool:
    """End the job: these images are not to be analysed, and asking again will not change that."""
    job = _held(session, claimed)
    if job is None:
        return False
    _end(session, job, JobState.REFUSED, now=clock(), code=code, message=message)
    return True


def _held(session: Session, claimed: ClaimedJob) -> AnalysisJob | None:
    job = _locked(session, AnalysisJob.id, claimed.id)
    if job is None or job.state != JobState.RUNNING or job.fence != claimed.fence:
        return None
    return job


def _end(
    session: Session,
    job: AnalysisJob,
    state: JobState,
    *,
    now: float,
    code: str | None = None,
    message: str | None = None,
    retryable: bool = False,
) -> None:
    job.state, job.updated_at, job.lease_until = state.value, now, None
    job.error_code, job.retryable = code, retryable
    job.error_message = None if message is None else message[:MAX_MESSAGE]
    job.authorization = None
    session.add(job)
    session.flush()


def find(session: Session, key: str) -> JobRow | None:
    job = session.exec(select(AnalysisJob).where(AnalysisJob.key == key)).first()
    return None if job is None else open_row(job)


def load_job(session: Session, job_id: str) -> JobRow | None:
    job = session.get(AnalysisJob, job_id, populate_existing=True)
    return None if job is None else open_row(job)


def overdue(session: Session, clock: Clock = time.time) -> list[str]:
    """Return the jobs that nobody seems to work on: leases that ran out, and messages that were lost."""
    now = clock()
    is_lost = and_(
        col(AnalysisJob.state) == JobState.QUEUED.value, col(AnalysisJob.updated_at) <= now - QUEUED_GRACE_S
    )
    is_abandoned = and_(col(AnalysisJob.state) == JobState.RUNNING.value, col(AnalysisJob.lease_until) <= now)
    query = select(AnalysisJob.id).where(or_(is_lost, is_abandoned)).order_by(col(AnalysisJob.created_at))
    return list(session.exec(query.limit(_SWEEP_LIMIT)))


def waiting(session: Session) -> list[str]:
    """Return the ids of the jobs that nobody has begun, the oldest first."""
    query = select(AnalysisJob.id).where(AnalysisJob.state == JobState.QUEUED.value)
    return list(session.exec(query.order_by(col(AnalysisJob.created_at)).limit(_SWEEP_LIMIT)))


def jobs_for_patient(session: Session, keyring: Keyring, ehr_id: str, patient_id: str) -> list[StoredJob]:
    """Return the patient's jobs, the newest first."""
    query = (
        select(AnalysisJob)
        .where(AnalysisJob.patient_index == patient_index(keyring, ehr_id, patient_id))
        .order_by(col(AnalysisJob.created_at).desc(), col(AnalysisJob.id))
    )
    return [StoredJob(open_row(job), open_reference(keyring, job)) for job in session.exec(query)]


def _locked(session: Session, column: Any, value: str) -> AnalysisJob | None:
    """Return the row as it is now, kept from others until the transaction ends (SQLite: the whole database is)."""
    query = select(AnalysisJob).where(column == value).with_for_update()
    return session.exec(query, execution_options={"populate_existing": True}).first()
