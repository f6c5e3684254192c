"""What may be done to the jobs of all EHRs, each act in one transaction with its audit events."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sqlmodel import Session

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.database_types import Sessions
from rayhook.inference.job_list import EndedJob, count_jobs, ended_jobs, retry_job, retry_jobs
from rayhook.inference.job_table import JobState


@dataclass(frozen=True, slots=True)
class JobOverview:
    """`jobs` are the newest without a result."""

    counts: Mapping[JobState, int]
    jobs: tuple[EndedJob, ...]


@dataclass(frozen=True, slots=True)
class JobActs:
    """`agent` is who acts: an administrator, or the command line.

    send: wakes a worker of this process; without one, a running service finds the job by itself within seconds.
    """

    sessions: Sessions
    audit: AuditLog
    send: Callable[[str], None] | None = None
    clock: Callable[[], float] = time.time

    def overview(self, *, agent: str) -> JobOverview:
        with self.sessions() as session:
            found = JobOverview(count_jobs(session), tuple(ended_jobs(session)))
            entry = AuditEntry(
                AuditKind.INFERENCE_JOB_LISTED, agent=agent, detail={"jobs": str(len(found.jobs))}
            )
            self.audit.record(session, entry)
            session.commit()
        return found

    def retry(self, job_id: str, *, agent: str) -> EndedJob:
        """Raise as inference.job_list.retry_job does."""
        return self._retried(lambda session: [retry_job(session, job_id, clock=self.clock)], agent)[0]

    def retry_all(self, *, agent: str) -> list[EndedJob]:
        return self._retried(lambda session: retry_jobs(session, clock=self.clock), agent)

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


def _retry_entry(job: EndedJob, agent: str) -> AuditEntry:
    return AuditEntry(
        AuditKind.INFERENCE_JOB_RETRIED,
        ehr_id=job.ehr_id,
        agent=agent,
        detail={"job": job.id, "state": job.state.value, "code": job.code},
    )
