"""One job from claim to delivery: the one function that reads top to bottom."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session

from rayhook.audit.record import AuditLog
from rayhook.auth.backend import BackendTokens
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, EHRRegistry
from rayhook.fhir.correlation import request_id
from rayhook.fhir.errors import (
    EgressDenied,
    RayhookError,
)
from rayhook.fhir.transport import Transport
from rayhook.inference import jobs
from rayhook.inference.analysis import Analyser
from rayhook.inference.attempt import (
    AGENT,
    Attempt,
    result_entry,
)
from rayhook.inference.authority import Authority
from rayhook.inference.dicom_delivery import ObjectDelivery
from rayhook.inference.dicom_table import add_source, due_results
from rayhook.inference.dicomweb import RetrievalLimits
from rayhook.inference.docket import Docket
from rayhook.inference.job_table import Authorization, ClaimedJob, WorkerQueue
from rayhook.inference.lease import Leases
from rayhook.inference.outbox import Errand, Outbox, put_off
from rayhook.inference.received import ReceivedImages
from rayhook.inference.report import build_resources
from rayhook.inference.report_courier import ReportCourier
from rayhook.inference.results import DeliveryState, StoredResult
from rayhook.inference.retrieval import Retrieval
from rayhook.inference.reuse import Looked, Reuse
from rayhook.inference.stages import Stage, timed, timed_each, timing
from rayhook.inference.study import StudyResult

_STORING_S = 180.0  # longer than a PACS is given for its answer, with the objects made before

log = structlog.get_logger()


def _nobody_waits(_job_id: str) -> None:
    pass


def _nobody_counts(_seconds: Mapping[Stage, float]) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Runs jobs.

    Each access to a patient's data is audited in the transaction that prolongs the job's lease, each end of
    a job in the transaction that ends it: where the audit cannot be written, nothing goes on.
    organization: who operates the service, as named in reports.
    backend: our own tokens, for EHRs that give us some.
    leases: prolongs those of the jobs in hand; without it, each step does.  queues: whose jobs are done here.
    received: images that were stored here.  ended: is told a job's id when its end is committed.
    note_times: is told how long the stages of each attempt took.
    """

    registry: EHRRegistry
    sessions: Sessions
    keyring: Keyring
    audit: AuditLog
    transport: Transport
    analyser: Analyser
    organization: str
    backend: BackendTokens | None = None
    limits: RetrievalLimits = field(default_factory=RetrievalLimits)
    lease_s: float = 120.0
    clock: Callable[[], float] = time.time
    leases: Leases | None = None
    queues: Collection[WorkerQueue] = tuple(WorkerQueue)
    worker_id: str | None = None
    received: ReceivedImages | None = None
    ended: Callable[[str], None] = _nobody_waits
    note_times: Callable[[Mapping[Stage, float]], None] = _nobody_counts

    def run(self, job_id: str) -> None:
        """Do the job if it is free. Every end is recorded; after a crash the lease runs out and it is done again.

        Raises ServiceUnavailable where the database or the audit cannot be written.
        """
        claimed = self._docket.take(job_id)
        if claimed is not None:
            self._do(claimed)

    def run_next(self, _woken_for: str = "") -> str | None:
        """Do the job that is due first, be it the one that we were woken for or another, and return its id.

        Raises as run does.
        """
        claimed = self._docket.take_next()
        if claimed is None:
            return None
        self._do(claimed)
        return claimed.id

    def _do(self, claimed: ClaimedJob) -> None:
        correlation = request_id.set(claimed.request_id)
        try:
            with self._docket.holding(claimed) as hold, timing() as times:
                times.add(Stage.QUEUE, claimed.waited_s)
                self._run(Attempt(claimed, self._living(claimed.authorization), hold))
            self.note_times(times.seconds())
        finally:
            request_id.reset(correlation)

    def deliver_again(self, result_id: str, authorization: Authorization) -> None:
        """Hand a finished report to an EHR that does not have it yet, with a token that came since.

        Conditional creates make it harmless to do so twice.
        """
        with self.sessions() as session:
            stored = jobs.load_result(session, self.keyring, result_id)
        if stored is None:
            return
        living = self._living(authorization)
        try:
            ehr = self._find_ehr(stored.ehr_id)
            if stored.delivery is not DeliveryState.DELIVERED:
                self._reports.deliver_again(ehr, result_id, living, is_asked=True)
            self._store_again(ehr, stored, living)
            self._link_again(ehr, stored, living, is_asked=True)
        except RayhookError as error:
            log.warning("late_delivery_failed", code=error.code)

    def deliver_due(self) -> None:
        """Try again, with tokens of our own, what an EHR did not get: reports, and links to stored objects.

        What a signature makes for the PACS is made here where the process that should have ended before.
        Where it gives us none, a report whose process ended before it was sent is told so, once.
        """
        for errand in (Errand.REPORT, Errand.SIGNED, Errand.LINKS):
            for result_id in self._outbox.due(errand):
                try:
                    self._deliver_due(errand, result_id)
                except RayhookError as error:
                    # The others are due all the same; this one is, once its lease is over.
                    log.warning("late_delivery_failed", errand=errand.value, code=error.code)

    def _deliver_due(self, errand: Errand, result_id: str) -> None:
        with self.sessions() as session:
            stored = jobs.load_result(session, self.keyring, result_id)
        ehr = None if stored is None else self.registry.by_id(stored.ehr_id)
        if stored is None or ehr is None:
            with self.sessions() as session:
                put_off(session, result_id, errand, now=self.clock(), is_due=False)
                session.commit()
        elif errand is Errand.REPORT:
            self._reports.deliver_again(ehr, result_id, None, is_asked=False)
        elif errand is Errand.SIGNED:
            if self._outbox.claim(result_id, errand, is_asked=False):
                self.store_signed(stored, None)
        else:
            self._link_again(ehr, stored, None, is_asked=False)

    def _run(self, attempt: Attempt) -> None:
        reference = attempt.claimed.reference
        try:
            ehr = self._find_ehr(reference.ehr_id)
            identifiers = self._retrieval.patient_identifiers(attempt, ehr)
            self._retrieval.locate(attempt, ehr)
            if not self._reuse.take_turn(attempt):
                return
            files = partial(timed_each, Stage.FETCH, partial(self._retrieval.files, attempt, ehr))
            looked = self._reuse.look(attempt, files, identifiers)
            if looked.result_id is not None:
                self._end_reused(attempt, looked.result_id)
                return
            with closing(looked.images) as images:
                result = self.analyser.study(
                    images, expected_study_uid=reference.study_instance_uid, patient_identifiers=identifiers
                )
            attempt.hold.check()
            with timed(Stage.WRITE):
                manifest = self.analyser.manifest_of(result.model)
                resources = build_resources(
                    reference,
                    result,
                    manifest,
                    organization=self.organization,
                    is_in_sr="sr" in ehr.dicom_results,
                )
                result_id = self._store(attempt, ehr, result, resources, looked)
        except RayhookError as error:
            self._docket.end_without_result(attempt, error, may_go_on=partial(self._may_go_on, attempt))
            self.ended(attempt.claimed.id)
            return
        if result_id is None:
            return
        attempt.hold.is_over = True
        self.ended(attempt.claimed.id)
        with timed(Stage.WRITE):
            delivery = self._reports.deliver(attempt, ehr, result_id, result, resources=resources)
            self._objects().deliver(
                ehr, reference, result_id, result, attempt.authorization, written=delivery.written
            )

    def store_signed(self, stored: StoredResult, authorization: Authorization | None) -> None:
        """Bring a signed report to the PACS as a verified one, or what takes a withdrawn one back."""
        ehr = self.registry.by_id(stored.ehr_id)
        if ehr is not None:
            self._objects().deliver_signed(ehr, stored, authorization)
            self._outbox.release(stored.id, Errand.SIGNED)

    def store_due(self) -> None:
        """Try again to store the DICOM objects that a PACS did not take when it was in trouble."""
        with self.sessions() as session:
            due = due_results(session, now=self.clock())
        for result_id, ehr_id in due:
            try:
                with self.sessions() as session:
                    stored = jobs.load_result(session, self.keyring, result_id)
                ehr = self.registry.by_id(ehr_id)
                if stored is not None and ehr is not None:
                    self._store_again(ehr, stored, None)
            except RayhookError as error:
                # As of reports: the others are due all the same.
                log.warning("late_delivery_failed", errand=Errand.OBJECTS.value, code=error.code)

    def _store_again(self, ehr: EHR, stored: StoredResult, authorization: Authorization | None) -> None:
        """Store what the PACS lacks, unless another process is at it."""
        if not ehr.dicom_results:
            return
        if not self._outbox.lock(stored.id, Errand.OBJECTS, lease_s=_STORING_S):
            return
        try:
            self._objects().deliver_again(ehr, stored, authorization)
        finally:
            self._outbox.release(stored.id, Errand.OBJECTS)

    def _link_again(
        self, ehr: EHR, stored: StoredResult, authorization: Authorization | None, *, is_asked: bool
    ) -> None:
        if self._outbox.claim(stored.id, Errand.LINKS, is_asked=is_asked):
            self._objects().link_again(ehr, stored, authorization)

    def _may_go_on(self, attempt: Attempt, then: float) -> bool:
        """Say whether the EHR would still have a token for the job: its own user's, or ours."""
        reference = attempt.claimed.reference
        ehr = self.registry.by_id(reference.ehr_id)
        if ehr is None or self._authority.has_own(ehr):
            return ehr is not None
        if not reference.token_required and reference.dicomweb_url:
            return True
        lent = attempt.claimed.authorization
        return lent is not None and lent.expires_at > then

    @property
    def _docket(self) -> Docket:
        return Docket(
            sessions=self.sessions,
            keyring=self.keyring,
            audit=self.audit,
            lease_s=self.lease_s,
            clock=self.clock,
            leases=self.leases,
            queues=self.queues,
            worker_id=self.worker_id,
        )

    @property
    def _retrieval(self) -> Retrieval:
        return Retrieval(
            transport=self.transport,
            authority=self._authority,
            docket=self._docket,
            limits=self.limits,
            received=self.received,
            clock=self.clock,
        )

    @property
    def _reuse(self) -> Reuse:
        return Reuse(
            sessions=self.sessions,
            keyring=self.keyring,
            audit=self.audit,
            models=self.analyser.identities,
            clock=self.clock,
        )

    @property
    def _outbox(self) -> Outbox:
        return Outbox(self.sessions, self.clock)

    @property
    def _reports(self) -> ReportCourier:
        return ReportCourier(
            sessions=self.sessions,
            keyring=self.keyring,
            audit=self.audit,
            transport=self.transport,
            authority=self._authority,
            clock=self.clock,
        )

    def _objects(self) -> ObjectDelivery:
        return ObjectDelivery(
            transport=self.transport,
            sessions=self.sessions,
            keyring=self.keyring,
            audit=self.audit,
            analyser=self.analyser,
            organization=self.organization,
            agent=AGENT,
            authority=self._authority,
            clock=self.clock,
        )

    @property
    def _authority(self) -> Authority:
        return Authority(self.backend, self.clock)

    def _living(self, authorization: Authorization | None) -> Authorization | None:
        return authorization if authorization and authorization.expires_at > self.clock() else None

    def _find_ehr(self, ehr_id: str) -> EHR:
        ehr = self.registry.by_id(ehr_id)
        if ehr is None:
            raise EgressDenied("the EHR of this job is not registered any more", code="ehr_unknown")
        return ehr

    def _store(
        self,
        attempt: Attempt,
        ehr: EHR,
        result: StudyResult,
        resources: Sequence[dict[str, Any]],
        looked: Looked,
    ) -> str | None:
        """End the job with its result, which erases the token; None where there is none of this job's own."""
        content = self._reuse.content_key(attempt.claimed.reference, looked.digests)
        try:
            with self.sessions() as session:
                known = self._reuse.find(session, content)
                if known is None:
                    result_id = self._complete(session, attempt, ehr, result, resources)
                    if result_id is not None:
                        self._reuse.note(session, attempt, content, result_id, result)
                    session.commit()
        except IntegrityError:
            # PostgreSQL: a job that was thought dead has just stored what the same images came to.
            with self.sessions() as session:
                known = self._reuse.find(session, content)
            if known is None:
                raise
        if known is not None:
            self._end_reused(attempt, known)
            return None
        log.info(
            "study_ended",
            status=result.status.value,
            images=len(result.instances),
            stored=result_id is not None,
        )
        return result_id

    def _complete(
        self,
        session: Session,
        attempt: Attempt,
        ehr: EHR,
        result: StudyResult,
        resources: Sequence[dict[str, Any]],
    ) -> str | None:
        result_id = jobs.complete(session, self.keyring, attempt.claimed, result, resources, clock=self.clock)
        if result_id is not None:
            if ehr.dicom_results and result.source_header:
                add_source(session, self.keyring, result_id, result.source_header)
            self.audit.record(session, result_entry(attempt, result))
        return result_id

    def _end_reused(self, attempt: Attempt, result_id: str) -> None:
        """End the job with a result that there is already, and bring that to whom it did not reach yet."""
        is_ours = self._reuse.end(attempt, result_id)
        log.info("study_known_already", stored=is_ours)
        if is_ours:
            self.ended(attempt.claimed.id)
            if attempt.authorization is not None:
                self.deliver_again(result_id, attempt.authorization)
