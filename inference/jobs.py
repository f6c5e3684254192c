"""Jobs and results: the database is the truth of what is asked, in hand and done; a message only wakes a worker.

A job is queued → running → done | refused | failed | dead, or cancelled from either of the first two; `claims` takes
it from queued to running, and back where it is put off or its worker stops.
"""

import hashlib
import time
import uuid
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

import msgspec
import rfc8785
from sqlalchemy import and_, or_
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import patient_index
from rayhook.fhir.errors import NotFound
from rayhook.inference.claims import Clock, cancel, cancel_study, claim, claim_next, end, held, locked, renew
from rayhook.inference.intake import Intake
from rayhook.inference.job_table import (
    AnalysisJob,
    Authorization,
    ClaimedJob,
    JobRow,
    JobState,
    Priority,
    StoredJob,
    WorkerQueue,
    open_authorization,
    open_reference,
    open_row,
    seal_authorization,
)
from rayhook.inference.results import (
    AnalysisResult,
    DeliveryState,
    StoredResult,
    add_result,
    index,
    load_result,
    results_for_patient,
    set_delivery,
)
from rayhook.inference.sealed_row import SealedRow
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
    "WorkerQueue",
    "cancel",
    "cancel_study",
    "claim",
    "claim_next",
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
    "reuse",
    "set_delivery",
    "stored_job",
    "waiting",
]

QUEUED_GRACE_S: Final = 2.0
_SWEEP_LIMIT: Final = 1000
_ANY: Final = Intake()


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
    job = locked(session, AnalysisJob.key, key)
    if job is None:
        intake.admit(session, priority)
        job = _new_job(
            session, keyring, reference, authorization, key=key, request_id=request_id, now=clock()
        )
        job.priority, job.queue = priority.value, intake.queue_of(reference).value
        job.due_at = priority.due_at(job.created_at)
        try:
            with session.begin_nested():
                session.add(job)
        except IntegrityError:
            # PostgreSQL: another transaction committed the same key since the look-up above.
            job = locked(session, AnalysisJob.key, key)
            assert job is not None
        else:
            return open_row(job), True
    return _renewed(
        session, keyring, job, authorization, priority=priority, request_id=request_id, now=clock()
    )


def _new_job(
    session: Session,
    keyring: Keyring,
    reference: StudyReference,
    authorization: Authorization | None,
    *,
    key: str,
    request_id: str,
    now: float,
) -> AnalysisJob:
    id_ = uuid.uuid4().hex
    patient = patient_index(keyring, reference.ehr_id, reference.patient_id)
    plaintext = msgspec.json.encode(reference)
    job = AnalysisJob(
        id=id_,
        key=key,
        state=JobState.QUEUED.value,
        ehr_id=reference.ehr_id,
        patient_index=patient,
        study_index=index(keyring, "study", reference.ehr_id, reference.study_instance_uid),
        reference=SealedRow(session, keyring, AnalysisJob, id_).seal(
            "reference", plaintext, patient_index=patient
        ),
        request_id=request_id,
        created_at=now,
        updated_at=now,
    )
    job.authorization = seal_authorization(session, keyring, job, authorization)
    return job


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
    if state is JobState.FAILED and is_requeued:
        job.priority, job.due_at = priority.value, priority.due_at(now)
    elif not state.is_final and priority.rank < Priority(job.priority).rank:
        job.priority, job.due_at = priority.value, priority.due_at(job.created_at)
    is_erased = state is JobState.FAILED and is_requeued
    if is_erased or (
        not state.is_final and _outlasts(authorization, open_authorization(session, keyring, job))
    ):
        job.authorization = seal_authorization(session, keyring, job, authorization)
    session.add(job)
    session.flush()
    return open_row(job), is_requeued


def _outlasts(new: Authorization | None, old: Authorization | None) -> bool:
    return new is not None and (old is None or new.expires_at > old.expires_at)


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
    job = held(session, claimed)
    if job is None:
        return None
    now = clock()
    job.result_id = add_result(
        session, keyring, claimed.reference, result, resources, job_id=claimed.id, now=now
    )
    end(session, job, JobState.DONE, now=now)
    return job.result_id


def reuse(session: Session, claimed: ClaimedJob, result_id: str, *, clock: Clock = time.time) -> bool:
    """End the job with a result that another came to; False, with no effect, under a stale fence."""
    job = held(session, claimed)
    if job is None:
        return False
    job.result_id = result_id
    end(session, job, JobState.DONE, now=clock())
    return True


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
    job = held(session, claimed)
    if job is None:
        return False
    end(session, job, JobState.FAILED, now=clock(), code=code, message=message, retryable=retryable)
    return True


def refuse(
    session: Session, claimed: ClaimedJob, *, code: str, message: str, clock: Clock = time.time
) -> bool:
    """End the job: these images are not to be analysed, and asking again will not change that."""
    job = held(session, claimed)
    if job is None:
        return False
    end(session, job, JobState.REFUSED, now=clock(), code=code, message=message)
    return True


def find(session: Session, key: str) -> JobRow | None:
    job = session.exec(select(AnalysisJob).where(AnalysisJob.key == key)).first()
    return None if job is None else open_row(job)


def load_job(session: Session, job_id: str) -> JobRow | None:
    job = session.get(AnalysisJob, job_id, populate_existing=True)
    return None if job is None else open_row(job)


def stored_job(session: Session, keyring: Keyring, job_id: str) -> StoredJob:
    """Return a job with what it is about. Raises NotFound for an unknown one."""
    job = session.get(AnalysisJob, job_id)
    if job is None:
        raise NotFound("there is no such job", code="job_unknown")
    return StoredJob(open_row(job), open_reference(session, keyring, job))


def overdue(
    session: Session,
    clock: Clock = time.time,
    *,
    queues: Collection[WorkerQueue] = tuple(WorkerQueue),
    limit: int = _SWEEP_LIMIT,
) -> list[str]:
    """Return the jobs that nobody seems to work on: leases that ran out, and messages that were lost."""
    now = clock()
    is_due = or_(
        and_(col(AnalysisJob.next_attempt_at).is_(None), col(AnalysisJob.updated_at) <= now - QUEUED_GRACE_S),
        col(AnalysisJob.next_attempt_at) <= now,
    )
    is_lost = and_(col(AnalysisJob.state) == JobState.QUEUED.value, is_due)
    is_abandoned = and_(col(AnalysisJob.state) == JobState.RUNNING.value, col(AnalysisJob.lease_until) <= now)
    query = (
        select(AnalysisJob.id)
        .where(or_(is_lost, is_abandoned), col(AnalysisJob.queue).in_([queue.value for queue in queues]))
        .order_by(col(AnalysisJob.due_at))
    )
    return list(session.exec(query.limit(limit)))


def waiting(session: Session) -> list[str]:
    """Return the ids of the jobs that nobody has begun, in the order in which they will be taken."""
    query = select(AnalysisJob.id).where(AnalysisJob.state == JobState.QUEUED.value)
    return list(session.exec(query.order_by(col(AnalysisJob.due_at)).limit(_SWEEP_LIMIT)))


def jobs_for_patient(session: Session, keyring: Keyring, ehr_id: str, patient_id: str) -> list[StoredJob]:
    """Return the patient's jobs, the newest first."""
    query = (
        select(AnalysisJob)
        .where(AnalysisJob.patient_index == patient_index(keyring, ehr_id, patient_id))
        .order_by(col(AnalysisJob.created_at).desc(), col(AnalysisJob.id))
    )
    return [StoredJob(open_row(job), open_reference(session, keyring, job)) for job in session.exec(query)]
