"""Which jobs are taken in: as many as may wait, each for the workers that are meant for its images."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import func
from sqlmodel import Session, col, select

from rayhook.fhir.errors import QueueFull
from rayhook.inference.job_table import AnalysisJob, JobState, Priority, WorkerQueue
from rayhook.inference.study import StudyReference


def _nobody_counts(_priority: Priority) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Intake:
    """limit: jobs that may wait; None: any number.  reserve: room beyond it that only `stat` jobs have.

    gpu_modalities: studies with one of them wait for a worker of the queue `gpu`.
    refused: is told the priority of each that may not wait.
    """

    limit: int | None = None
    reserve: int = 0
    gpu_modalities: frozenset[str] = frozenset()
    refused: Callable[[Priority], None] = _nobody_counts

    def queue_of(self, reference: StudyReference) -> WorkerQueue:
        return WorkerQueue.GPU if self.gpu_modalities & set(reference.modalities) else WorkerQueue.CPU

    def admit(self, session: Session, priority: Priority) -> None:
        """Raise QueueFull where another job of this priority may not wait."""
        if self.limit is None:
            return
        room = self.limit + (self.reserve if priority is Priority.STAT else 0)
        waiting = select(AnalysisJob.id).where(col(AnalysisJob.state) == JobState.QUEUED.value).limit(room)
        if session.exec(select(func.count()).select_from(waiting.subquery())).one() >= room:
            self.refused(priority)
            raise QueueFull("as many analyses wait as may: ask again later")
