"""From "study X of EHR Y has images" to its job: the one way, whoever told of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHRRegistry
from rayhook.fhir.correlation import request_id
from rayhook.fhir.errors import (
    InvalidRequest,
    NotFound,
    QueueFull,
    RateLimited,
    RayhookError,
    ServiceUnavailable,
    UpstreamError,
)
from rayhook.fhir.references import oid_uri
from rayhook.inference.arrival import BACKOFF, MAX_ATTEMPTS, Arrival, ArrivalState, ClaimedArrival, Inbox
from rayhook.inference.arrival_lookup import AGENT, ArrivalLookup, Finding
from rayhook.inference.intake import Intake
from rayhook.inference.jobs import enqueue, job_key
from rayhook.inference.study import ModelIdentity, StudyReference
from rayhook.inference.withdrawal import cancel_withdrawn

_QUEUE_FULL_S: Final = 15.0
_PASSING: Final = (NotFound, RateLimited, ServiceUnavailable, UpstreamError)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalCourier:
    """Queues the analysis of what arrived, as a hook would have done: the same key, so that a hook finds it.

    send: wakes a worker for a job's id.
    """

    registry: EHRRegistry
    sessions: Sessions
    reading: Sessions
    keyring: Keyring
    audit: AuditLog
    lookup: ArrivalLookup
    models: tuple[ModelIdentity, ...]
    send: Callable[[str], None]
    intake: Intake = field(default_factory=Intake)
    clock: Callable[[], float] = time.time

    def run_due(self) -> int:
        """Look at what is due, and return how many arrivals that were."""
        inbox = Inbox(self.sessions, self.reading, self.keyring, self.clock)
        due = inbox.due()
        for arrival_id in due:
            claimed = inbox.claim(arrival_id)
            if claimed is not None:
                self._run(inbox, claimed)
        return len(due)

    def _run(self, inbox: Inbox, claimed: ClaimedArrival) -> None:
        token = request_id.set(claimed.id)
        try:
            with self.sessions() as session:
                # A full queue has no room after the EHR was asked either.
                self.intake.admit(session, claimed.arrival.priority)
            self._end(inbox, claimed, self._find(claimed.arrival))
        except QueueFull as error:
            inbox.put_off(claimed, pause_s=_QUEUE_FULL_S, code=error.code, is_attempt=False)
        except RayhookError as error:
            log.warning("arrival_not_resolved", code=error.code, attempts=claimed.attempts)
            if isinstance(error, _PASSING) and claimed.attempts < MAX_ATTEMPTS:
                inbox.put_off(claimed, pause_s=BACKOFF.pause_s(claimed.attempts), code=error.code)
            else:
                self._give_up(inbox, claimed, error)
        finally:
            request_id.reset(token)

    def _find(self, arrival: Arrival) -> Finding:
        ehr = self.registry.by_id(arrival.ehr_id)
        if ehr is None:
            raise InvalidRequest("the EHR of this study is not registered any more", code="ehr_unknown")
        return self.lookup.find(ehr, arrival)

    def _end(self, inbox: Inbox, claimed: ClaimedArrival, found: Finding) -> None:
        """Queue the jobs, and end the arrival, in one transaction with the audit of what was read for it."""
        state = ArrivalState.ENQUEUED if found.requests else ArrivalState.IGNORED
        new = []
        with self.sessions() as session:
            for entry in found.accesses:
                self.audit.record(session, entry)
            cancel_withdrawn(session, self.keyring, self.audit, found.withdrawn, clock=self.clock)
            for one in found.requests:
                row, is_new = enqueue(
                    session,
                    self.keyring,
                    one.reference,
                    None,
                    key=job_key(one.reference, self.models),
                    request_id=request_id.get(),
                    priority=one.priority,
                    intake=self.intake,
                    clock=self.clock,
                )
                if is_new:
                    new.append(row.id)
                    self.audit.record(session, _enqueued(one.reference, claimed.arrival))
            inbox.end(session, claimed, state, code=found.reason)
            session.commit()
        for job_id in new:
            self.send(job_id)
        log.info("arrival_ended", way=claimed.arrival.way.value, state=state.value, jobs=len(new))

    def _give_up(self, inbox: Inbox, claimed: ClaimedArrival, error: RayhookError) -> None:
        arrival = claimed.arrival
        entry = AuditEntry(
            AuditKind.INFERENCE_ARRIVAL_GIVEN_UP,
            Outcome.SERIOUS_FAILURE,
            ehr_id=arrival.ehr_id,
            agent=AGENT,
            entities=_named(arrival),
            detail={"code": error.code, "way": arrival.way.value, "attempts": str(claimed.attempts)},
        )
        with self.sessions() as session:
            if inbox.end(session, claimed, ArrivalState.GIVEN_UP, code=error.code):
                self.audit.record(session, entry)
            session.commit()


def _named(arrival: Arrival) -> tuple[str, ...]:
    if arrival.imaging_study_id is not None:
        return (f"ImagingStudy/{arrival.imaging_study_id}",)
    return (oid_uri(arrival.study_instance_uid or ""),)


def _enqueued(reference: StudyReference, arrival: Arrival) -> AuditEntry:
    return AuditEntry(
        AuditKind.INFERENCE_JOB_ENQUEUED,
        ehr_id=reference.ehr_id,
        agent=AGENT,
        patient_id=reference.patient_id,
        entities=(f"ImagingStudy/{reference.imaging_study_id}", oid_uri(reference.study_instance_uid)),
        detail={"way": arrival.way.value},
    )
