"""Which workers there are: each says so in its row, and is forgotten when it stops, or long after it was last heard of."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete, update
from sqlmodel import Session, col, select

from rayhook.inference.job_table import WorkerQueue
from rayhook.inference.worker_table import WorkerRecord

ALIVE_S: Final = 15.0
_FORGOTTEN_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A process that works on jobs. `name` tells an administrator which one it is; `device` what its engine runs on."""

    id: str
    name: str
    queues: tuple[WorkerQueue, ...]
    threads: int
    device: str
    version: str
    started_at: float
    seen_at: float
    is_stopping: bool = False


def note_worker(session: Session, worker: Worker, *, now: float, is_stopping: bool = False) -> None:
    """Say that it lives, and forget those that were not heard of for long."""
    seen = update(WorkerRecord).where(col(WorkerRecord.id) == worker.id)
    if session.execute(seen.values(seen_at=now, is_stopping=is_stopping)).rowcount:  # type: ignore[attr-defined]
        return
    session.execute(delete(WorkerRecord).where(col(WorkerRecord.seen_at) <= now - _FORGOTTEN_S))
    session.add(
        WorkerRecord(
            id=worker.id,
            name=worker.name,
            queues=",".join(queue.value for queue in worker.queues),
            threads=worker.threads,
            device=worker.device,
            version=worker.version,
            is_stopping=is_stopping,
            started_at=worker.started_at,
            seen_at=now,
        )
    )
    session.flush()


def forget_worker(session: Session, worker_id: str) -> None:
    session.execute(delete(WorkerRecord).where(col(WorkerRecord.id) == worker_id))


def living_workers(session: Session, *, now: float) -> list[Worker]:
    """Return those heard of lately, by name."""
    query = select(WorkerRecord).where(col(WorkerRecord.seen_at) > now - ALIVE_S)
    return [_worker(row) for row in session.exec(query.order_by(col(WorkerRecord.name)))]


def _worker(row: WorkerRecord) -> Worker:
    return Worker(
        id=row.id,
        name=row.name,
        queues=tuple(WorkerQueue(queue) for queue in row.queues.split(",") if queue),
        threads=row.threads,
        device=row.device,
        version=row.version,
        started_at=row.started_at,
        seen_at=row.seen_at,
        is_stopping=row.is_stopping,
    )
