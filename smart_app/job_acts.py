"""What may be done to the jobs of all EHRs, each act in one transaction with its audit events."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlmodel import Session

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.inference.claims import cancel
from rayhook.inference.job_list import (
    EndedJob,
    JobCounts,
    OpenJob,
    count_jobs,
    ended_jobs,
    open_jobs,
    retry_job,
    retry_jobs,
)
from rayhook.inference.job_table import StoredJob
from rayhook.inference.jobs import stored_job
from rayhook.inference.workers import Worker, living_workers


@dataclass(frozen=True, slots=True)
class JobOverview:
    """`jobs` are the newest without a result, `under_way` those that wait or are in hand."""

    counts: JobCounts
    under_way: tuple[OpenJob, ...]
    jobs: tuple[EndedJob, ...]
    workers: tuple[Worker, ...]


@dataclass(frozen=True, slots=True)
class JobActs:
    """`agent` is who acts: an administrator, or the command line.

    send: wakes a worker of this process; without one, a running service finds the job by itself within seconds.
    """

    sessions: Sessions
    keyring: Keyring
    audit: AuditLog
    send: Callable[[str], None] | None = None
    clock: Callable[[], float] = time.time

    def overview(self, *, agent: str) -> JobOverview:
        with self.sessions() as session:
            now = self.clock()
            found = JobOverview(
                count_jobs(session, now=now),
                tuple(open_jobs(session)),
                tuple(ended_jobs(session)),
                tuple(living_workers(session, now=now)),
            )
            shown = len(found.jobs) + len(found.under_way)
            entry = AuditEntry(AuditKind.INFERENCE_JOB_LISTED, agent=agent, detail={"jobs": str(shown)})
            self.audit.record(session, entry)
            session.commit()
        return found

    def retry(self, job_id: str, *, agent: str) -> EndedJob:
        """Raise as inference.job_list.retry_job does."""
        return self._retried(lambda session: [retry_job(session, job_id, clock=self.clock)], agent)[0]

    def retry_all(self, *, agent: str) -> list[EndedJob]:
        return self._retried(lambda session: retry_jobs(session, clock=self.clock), agent)

    def cancel(self, job_id: str, *, agent: str) -> None:
        """End a job that waits or is in hand. Raise as inference.claims.cancel does."""
        with self.sessions() as session:
            cancel(session, job_id, clock=self.clock)
            stored = stored_job(session, self.keyring, job_id)
            self.audit.record(session, cancel_entry(stored, agent))
            session.commit()

    def _retried(self, act: Callable[[Session], Iterable[EndedJob]], agent: str) -> list[EndedJob]:
        with self.sessions() as session:
            jobs = list(act(session))
            for job in jobs:
                self.audit.record(session, _retry_entry(job, agent))
            if not jobs:
                self.audit.record(
                    session, AuditEntry(AuditKind.INFERENCE_JOB_RETRIED, agent=agent, detail={"jobs": "0"})
                )
            session.commit()
        if self.send is not None:
            for job in jobs:
                self.send(job.id)
        return jobs


def cancel_entry(stored: StoredJob, agent: str) -> AuditEntry:
    reference = stored.reference
    return AuditEntry(
        AuditKind.INFERENCE_JOB_CANCELLED,
        ehr_id=reference.ehr_id,
        agent=agent,
        patient_id=reference.patient_id,
        entities=(
            f"ImagingStudy/{reference.imaging_study_id}",
            f"urn:oid:{reference.study_instance_uid}",
        ),
        detail={"job": stored.row.id, "code": stored.row.error_code or ""},
    )


def _retry_entry(job: EndedJob, agent: str) -> AuditEntry:
    return AuditEntry(
        AuditKind.INFERENCE_JOB_RETRIED,
        ehr_id=job.ehr_id,
        agent=agent,
        detail={"job": job.id, "state": job.state.value, "code": job.code},
    )
