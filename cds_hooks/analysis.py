"""From studies to answers: finished results at once, the rest queued and waited for as long as the call allows."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, replace

import structlog
from sqlmodel import Session

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.auth.registry import EHR
from rayhook.auth.scopes import ScopeSet
from rayhook.cds_hooks.answers import StudyAnswer, Topic, topic_of
from rayhook.cds_hooks.dependencies import CDSDependencies
from rayhook.cds_hooks.models import FHIRAuthorization
from rayhook.cds_hooks.results import FinishedJob
from rayhook.fhir.correlation import request_id
from rayhook.fhir.errors import QueueFull, RayhookError
from rayhook.fhir.r4 import ImagingStudySummary
from rayhook.inference.delivery import awaits_delivery
from rayhook.inference.dicom_table import awaits_objects
from rayhook.inference.image_source import (
    ImageSource,
    LateEndpoints,
    is_registered,
    located,
    study_reference,
)
from rayhook.inference.jobs import (
    Authorization,
    JobRow,
    JobState,
    Priority,
    enqueue,
    find,
    job_key,
    load_job,
)
from rayhook.inference.outbox import Errand, awaits_errand
from rayhook.inference.report import may_write
from rayhook.inference.results import load_result
from rayhook.inference.review import load_review, review_versions, reviewed_result
from rayhook.inference.study import StudyReference

log = structlog.get_logger()

NO_STUDY_UID = "no_study_instance_uid"
NO_ENDPOINT = "no_dicomweb_endpoint"
NO_TOKEN = "no_access_token"  # noqa: S105 - a reason, not a token
ADDRESS_REFUSED = "dicomweb_address_not_registered"

_TOPICS = {
    JobState.CANCELLED: Topic.CANCELLED,
    JobState.DEAD: Topic.GIVEN_UP,
    JobState.FAILED: Topic.FAILED,
    JobState.QUEUED: Topic.IN_PROGRESS,
    JobState.REFUSED: Topic.REFUSED,
    JobState.RUNNING: Topic.IN_PROGRESS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyJob:
    """A study, what its analysis is to be told, and the job's row if there is one.

    `reference` is None for a study without a Study Instance UID; its `dicomweb_url` is empty until it is needed.
    `finished` spares the row of a job that is known to be done. `obstacle` says why an analysis cannot be begun.
    """

    study: ImagingStudySummary
    reference: StudyReference | None
    key: str = ""
    row: JobRow | None = None
    finished: FinishedJob | None = None
    obstacle: str | None = None

    @property
    def is_to_begin(self) -> bool:
        """Say whether there is no job yet, or one that failed for a passing reason and is to be tried at once."""
        if self.finished is not None:
            return False
        return self.row is None or self.row.may_begin


def look_up(
    dependencies: CDSDependencies,
    studies: Iterable[ImagingStudySummary],
    *,
    ehr: EHR,
    base_url: str,
    patient_id: str,
) -> tuple[StudyJob, ...]:
    """Return the studies with the jobs that exist already."""
    jobs = [_study_job(dependencies, study, ehr, base_url, patient_id) for study in studies]
    _compare(dependencies, [job.key for job in jobs])
    cached = {job.key: dependencies.results.find(job.key) for job in jobs}
    if all(cached.values()):
        return tuple(replace(job, finished=cached[job.key]) for job in jobs)
    with dependencies.reading() as session:
        return tuple(replace(job, row=find(session, job.key)) if job.reference else job for job in jobs)


def _compare(dependencies: CDSDependencies, keys: Sequence[str]) -> None:
    """Forget what somebody signed, changed or withdrew in another process since."""
    due = dependencies.results.to_compare(keys)
    if due:
        with dependencies.reading() as session:
            versions = review_versions(session, due)
        dependencies.results.compare(due, versions)


def _study_job(
    dependencies: CDSDependencies, study: ImagingStudySummary, ehr: EHR, base_url: str, patient_id: str
) -> StudyJob:
    reference = study_reference(study, ehr_id=ehr.id, base_url=base_url, patient_id=patient_id)
    if reference is None:
        return StudyJob(study=study, reference=None)
    return StudyJob(study=study, reference=reference, key=job_key(reference, dependencies.models))


def start(
    dependencies: CDSDependencies,
    jobs: Sequence[StudyJob],
    sources: Mapping[str, ImageSource],
    *,
    ehr: EHR,
    authorization: FHIRAuthorization | None,
    priority: Priority = Priority.ASAP,
) -> tuple[StudyJob, ...]:
    """Queue every job that is to begin and whose images may be fetched: it is on its way when this returns."""
    lent = _lent(authorization, dependencies.clock())
    jobs = [_counted(dependencies, job, ehr) for job in jobs]
    with dependencies.sessions() as session:
        begun = [
            _begin(
                dependencies, session, job, sources.get(job.study.id), ehr=ehr, lent=lent, priority=priority
            )
            for job in jobs
        ]
        session.commit()
    for job, is_new in begun:
        if is_new and job.row is not None:
            dependencies.queue.send(job.row.id)
    return tuple(job for job, _ in begun)


def _counted(dependencies: CDSDependencies, job: StudyJob, ehr: EHR) -> StudyJob:
    """Counted before the transaction: the counter may be elsewhere, and SQLite has one writer."""
    if not job.is_to_begin or job.reference is None:
        return job
    has_room = dependencies.new_analyses.has_room(ehr, job.reference.patient_id)
    return job if has_room else replace(job, obstacle=QueueFull.code)


def start_beside(
    dependencies: CDSDependencies,
    jobs: Sequence[StudyJob],
    sources: Mapping[str, ImageSource],
    *,
    ehr: EHR,
    authorization: FHIRAuthorization | None,
    priority: Priority,
) -> None:
    """Queue jobs that nobody waits for, beside the answer: what they find is there when the order is read."""

    def begin() -> None:
        try:
            start(dependencies, jobs, sources, ehr=ehr, authorization=authorization, priority=priority)
        except RayhookError as error:
            log.warning("earlier_studies_not_queued", code=error.code)

    if jobs:
        dependencies.pool.submit(copy_context().run, begin)


def _begin(
    dependencies: CDSDependencies,
    session: Session,
    job: StudyJob,
    source: ImageSource,
    *,
    ehr: EHR,
    lent: Authorization | None,
    priority: Priority,
) -> tuple[StudyJob, bool]:
    """Return the job as it now stands, and whether a worker has to be told of it."""
    if not job.is_to_begin or job.obstacle is not None:
        return job, False
    if job.reference is None:
        return replace(job, obstacle=NO_STUDY_UID), False
    obstacle = _obstacle(source, ehr=ehr, lent=lent)
    if obstacle == ADDRESS_REFUSED:
        dependencies.audit.record(session, _address_refused(job.reference))
    if obstacle is not None or source is None:
        return replace(job, obstacle=obstacle), False
    reference = located(job.reference, source)
    try:
        row, is_new = enqueue(
            session,
            dependencies.keyring,
            reference,
            lent,
            key=job.key,
            request_id=request_id.get(),
            priority=priority,
            intake=dependencies.intake,
            clock=dependencies.clock,
        )
    except QueueFull as error:
        return replace(job, obstacle=error.code), False
    if is_new:
        dependencies.audit.record(session, _enqueued(reference))
    return replace(job, row=row), is_new


def _obstacle(source: ImageSource, *, ehr: EHR, lent: Authorization | None) -> str | None:
    """Return why the images cannot be fetched from there, None if they can or if that is still to be seen."""
    if source is None:
        return NO_ENDPOINT
    if isinstance(source, LateEndpoints):
        return None if lent is not None else NO_TOKEN
    if not is_registered(source.address, ehr):
        return ADDRESS_REFUSED
    return NO_TOKEN if source.requires_access_token and lent is None else None


def _lent(authorization: FHIRAuthorization | None, now: float) -> Authorization | None:
    if authorization is None:
        return None
    return Authorization(authorization.access_token, authorization.scope, now + authorization.expires_in)


def answers(
    dependencies: CDSDependencies, jobs: Sequence[StudyJob], *, ends_at: float
) -> tuple[StudyAnswer, ...]:
    """Wait for what is under way, until `ends_at` (monotonic) at the latest, and say what is known of each study."""
    for job in jobs:
        if job.row is not None and not job.row.state.is_final:
            dependencies.queue.wait(job.row.id, max(0.0, ends_at - time.monotonic()))
    return tuple(_answer(dependencies, job) for job in jobs)


def finished(dependencies: CDSDependencies, jobs: Sequence[StudyJob]) -> tuple[StudyAnswer, ...]:
    """Say what is known of those studies whose analysis has ended; nothing is begun and nothing waited for."""
    ended = (job for job in jobs if job.finished or (job.row and job.row.state is JobState.DONE))
    return tuple(_answer(dependencies, job) for job in ended)


def deliver_late(
    dependencies: CDSDependencies, jobs: Iterable[StudyJob], authorization: FHIRAuthorization | None
) -> None:
    """Send the reports that the EHR still lacks, beside the answer, if this call's token may write them."""
    lent = _lent(authorization, dependencies.clock())
    if lent is None or not may_write(ScopeSet.parse(lent.scope)):
        return
    for job in jobs:
        finished = dependencies.results.find(job.key)
        if finished is not None and finished.awaits_delivery and finished.row.result_id is not None:
            dependencies.results.forget(job.key)
            dependencies.pool.submit(
                copy_context().run, dependencies.deliver_again, finished.row.result_id, lent
            )


def _answer(dependencies: CDSDependencies, job: StudyJob) -> StudyAnswer:
    if job.finished is not None:
        return _told(job.study, job.finished)
    row = job.row
    if row is not None and not row.state.is_final:
        with dependencies.reading() as session:
            row = load_job(session, row.id)
    if job.obstacle == QueueFull.code:
        return StudyAnswer(study=job.study, topic=Topic.NOT_BEGUN, code=job.obstacle)
    if row is None:
        return StudyAnswer(study=job.study, topic=Topic.UNREACHABLE, code=job.obstacle)
    if row.state is not JobState.DONE:
        return StudyAnswer(study=job.study, topic=_topic(row), code=row.error_code)
    finished = _finished(dependencies, job.key, row)
    if finished is None:
        return StudyAnswer(study=job.study, topic=Topic.FAILED, code="result_missing")
    return _told(job.study, finished)


def _told(study: ImagingStudySummary, finished: FinishedJob) -> StudyAnswer:
    return StudyAnswer(
        study=study,
        topic=topic_of(finished.result, finished.review),
        result_id=finished.row.result_id,
        result=finished.result,
        review=finished.review,
    )


def _topic(row: JobRow) -> Topic:
    if row.is_put_off:
        return Topic.FAILED
    return (
        Topic.OUT_OF_SCOPE if row.error_code == Topic.OUT_OF_SCOPE.replace("-", "_") else _TOPICS[row.state]
    )


def _finished(dependencies: CDSDependencies, key: str, row: JobRow) -> FinishedJob | None:
    cached = dependencies.results.find(key)
    if cached is not None:
        return cached
    with dependencies.reading() as session:
        stored = load_result(session, dependencies.keyring, row.result_id or "")
        now = dependencies.clock()
        # Before what is signed: a signature in between is found at the next comparison.
        version = review_versions(session, [row.result_id or ""]).get(row.result_id or "", 0)
        lacks_objects = awaits_objects(session, row.result_id or "", now=now)
        lacks_links = awaits_errand(session, row.result_id or "", Errand.LINKS, now=now)
        if stored is None:
            return None
        review = load_review(session, dependencies.keyring, stored.id, stored.result)
    awaits = awaits_delivery(stored, now=now) or lacks_objects or lacks_links
    result = reviewed_result(replace(stored.result, key_image=None), review)
    finished = FinishedJob(row, result, awaits, review, version)
    dependencies.results.keep(key, finished)
    return finished


def _enqueued(reference: StudyReference) -> AuditEntry:
    return AuditEntry(
        AuditKind.INFERENCE_JOB_ENQUEUED,
        ehr_id=reference.ehr_id,
        agent="rayhook",
        patient_id=reference.patient_id,
        entities=(f"ImagingStudy/{reference.imaging_study_id}", f"urn:oid:{reference.study_instance_uid}"),
    )


def _address_refused(reference: StudyReference) -> AuditEntry:
    return AuditEntry(
        AuditKind.TRANSPORT_ADDRESS_REFUSED,
        Outcome.MINOR_FAILURE,
        ehr_id=reference.ehr_id,
        agent="rayhook",
        patient_id=reference.patient_id,
        entities=(f"ImagingStudy/{reference.imaging_study_id}",),
        detail={"reason": ADDRESS_REFUSED},
    )
