"""The jobs as the pipeline takes, keeps and ends them, each with its entry in the audit."""

import random
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, TypedDict

import structlog
from sqlmodel import Session

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import (
    EgressDenied,
    EngineUnavailable,
    ModelIntegrityError,
    NotFound,
    RateLimited,
    RayhookError,
    ServiceUnavailable,
    Unprocessable,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from rayhook.inference import claims, jobs
from rayhook.inference.attempt import AGENT, Attempt, end_entry, interrupted_access, put_off_entry
from rayhook.inference.engine import ENGINE_ENDED
from rayhook.inference.job_table import ClaimedJob, JobRow, JobState, WorkerQueue
from rayhook.inference.lease import Hold, Leases

# A later call for the same study queues it again.
_PASSING: Final = (
    EgressDenied,
    ModelIntegrityError,
    NotFound,
    RateLimited,
    ServiceUnavailable,
    UpstreamError,
)
# It is tried again without one.
_SELF_HEALING: Final = (RateLimited, ServiceUnavailable, UpstreamTimeout, UpstreamUnavailable)
# A day: longer than a PACS or an EHR is down for its maintenance, and nobody has to ask again.
_DELAYS_S: Final = (2.0, 5.0, 15.0, 60.0, 300.0, 1200.0, *(3600.0,) * 23)
_DROPPED_PAUSE_S: Final = 2.0  # what the database or the audit did not take is not tried at once
_AFTER_A_DEATH_S: Final = (1.0, 6.0)
_JITTER: Final = 0.2
_random: Final = random.SystemRandom()

log = structlog.get_logger()


class _Told(TypedDict):
    code: str
    message: str
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Docket:
    """queues: those that this process serves.  leases: prolongs those of the jobs in hand; without it, each step does."""

    sessions: Sessions
    keyring: Keyring
    audit: AuditLog
    lease_s: float
    clock: Callable[[], float]
    leases: Leases | None = None
    queues: Collection[WorkerQueue] = tuple(WorkerQueue)
    worker_id: str | None = None

    def take_next(self) -> ClaimedJob | None:
        """Take the job that is due first; those that have used up their attempts are audited as they die."""
        with self.sessions() as session:
            claim = claims.claim_next(
                session,
                self.keyring,
                queues=self.queues,
                lease_s=self.lease_s,
                worker_id=self.worker_id,
                clock=self.clock,
            )
            for row in claim.died:
                self._record_death(session, row)
            session.commit()
        return claim.job

    def take(self, job_id: str) -> ClaimedJob | None:
        """Take this job; one that has used up its attempts is audited as it dies."""
        with self.sessions() as session:
            before = jobs.load_job(session, job_id)
            claimed = claims.claim(
                session,
                self.keyring,
                job_id,
                lease_s=self.lease_s,
                worker_id=self.worker_id,
                clock=self.clock,
            )
            after = jobs.load_job(session, job_id)
            if after is not None and after.state is JobState.DEAD and after != before:
                self._record_death(session, after)
            session.commit()
        return claimed

    @contextmanager
    def holding(self, claimed: ClaimedJob) -> Iterator[Hold]:
        if self.leases is None:
            yield Hold(claimed)
            return
        with self.leases.holding(claimed) as hold:
            try:
                yield hold
            except ServiceUnavailable:
                # The database or the audit is away: nothing can be written of the job, and it ended nobody.
                self.leases.drop(partial(self._put_off_dropped, claimed))
                raise

    def keep(self, attempt: Attempt, *accesses: AuditEntry) -> None:
        """Prolong the lease, and audit what was accessed under it, be it still ours or not."""
        with self.sessions() as session:
            is_ours = claims.renew(session, attempt.claimed, lease_s=self.lease_s, clock=self.clock)
            for entry in accesses:
                self.audit.record(session, entry)
            session.commit()
        if not is_ours:
            raise ServiceUnavailable("the job has gone to another worker", code="lease_lost")

    def end_without_result(
        self, attempt: Attempt, error: RayhookError, *, may_go_on: Callable[[float], bool]
    ) -> None:
        """End the job as refused or failed, which erases the token, or put it off; audit what was accessed before.

        may_go_on: says whether the EHR would still let us read at a time to come.
        """
        with self.sessions() as session:
            for entry in interrupted_access(attempt, error):
                self.audit.record(session, entry)
            ended = self._end(session, attempt.claimed, error, may_go_on)
            if ended is JobState.QUEUED:
                self.audit.record(session, put_off_entry(attempt.claimed, error))
            elif ended is not None:
                self.audit.record(session, end_entry(attempt, error))
            session.commit()
        log.warning(
            "job_ended_without_result",
            code=error.code,
            attempts=attempt.claimed.attempts,
            retries=attempt.claimed.retries,
            state=None if ended is None else ended.value,
        )

    def _end(
        self,
        session: Session,
        claimed: ClaimedJob,
        error: RayhookError,
        may_go_on: Callable[[float], bool],
    ) -> JobState | None:
        """Return the state that the job came to; None where it is not ours to end."""
        told: _Told = {"code": error.code, "message": error.message, "clock": self.clock}
        if isinstance(error, Unprocessable):
            return JobState.REFUSED if jobs.refuse(session, claimed, **told) else None
        now = self.clock()
        if isinstance(error, EngineUnavailable) and error.code == ENGINE_ENDED:
            return claims.survive(session, claimed, until=now + _random.uniform(*_AFTER_A_DEATH_S), **told)
        until = _next_try(error, claimed, now)
        if until is not None and may_go_on(until):
            return JobState.QUEUED if claims.put_off(session, claimed, until=until, **told) else None
        is_passing = isinstance(error, _PASSING)
        return JobState.FAILED if jobs.fail(session, claimed, retryable=is_passing, **told) else None

    def _put_off_dropped(self, claimed: ClaimedJob) -> None:
        error = ServiceUnavailable("the database does not answer", code="database_unavailable")
        until = self.clock() + _DROPPED_PAUSE_S
        with self.sessions() as session:
            if claims.put_off(
                session, claimed, until=until, code=error.code, message=error.message, clock=self.clock
            ):
                self.audit.record(session, put_off_entry(claimed, error))
            session.commit()

    def _record_death(self, session: Session, row: JobRow) -> None:
        log.error("job_dead", job=row.id, attempts=row.attempts)
        entry = AuditEntry(
            AuditKind.INFERENCE_JOB_FAILED,
            Outcome.MAJOR_FAILURE,
            agent=AGENT,
            detail={"job": row.id, "code": row.error_code or "", "attempts": str(row.attempts)},
            request_id=row.request_id,
        )
        self.audit.record(session, entry)


def _next_try(error: RayhookError, claimed: ClaimedJob, now: float) -> float | None:
    if not isinstance(error, _SELF_HEALING) or claimed.retries >= len(_DELAYS_S):
        return None
    return now + _DELAYS_S[claimed.retries] * _random.uniform(1 - _JITTER, 1 + _JITTER)
