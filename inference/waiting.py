"""Waits for jobs to end: of those that end in this process one is told at once, for the others one thread looks."""

import threading
import time
from collections import Counter
from collections.abc import Collection

import structlog
from sqlalchemy import and_, or_
from sqlmodel import Session, col, select

from rayhook.auth.database_types import Sessions
from rayhook.fhir.errors import code_of
from rayhook.inference.job_table import AnalysisJob, JobState

log = structlog.get_logger()

_POLL_S = 0.04
_FINAL = tuple(state.value for state in JobState if state.is_final)


class EndWatch:
    """One query answers for all who wait, however many they are."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._changed = threading.Condition()
        self._awaited: Counter[str] = Counter()
        self._ended: set[str] = set()
        self._thread: threading.Thread | None = None
        self._is_closing = False

    def wait(self, job_id: str, timeout_s: float) -> bool:
        """Return whether the job ends within `timeout_s`, here or in another process."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._awaited[job_id] += 1
        try:
            if self._look([job_id]):
                return True
            with self._changed:
                self._start()
                return self._changed.wait_for(
                    lambda: job_id in self._ended, max(0.0, deadline - time.monotonic())
                )
        finally:
            with self._changed:
                self._awaited[job_id] -= 1
                if not self._awaited[job_id]:
                    del self._awaited[job_id]
                    self._ended.discard(job_id)

    def tell(self, job_id: str) -> None:
        """Wake who waits for this job: it has ended, or is worth a look."""
        with self._changed:
            if job_id not in self._awaited:
                return
        self._note(self._look([job_id]))

    def close(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _start(self) -> None:
        if self._thread is None and not self._is_closing:
            self._thread = threading.Thread(target=self._look_until_closed, name="job-ends", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _look(self, job_ids: Collection[str]) -> list[str]:
        with self._sessions() as session:
            return _ended_among(session, job_ids)

    def _note(self, job_ids: Collection[str]) -> None:
        if job_ids:
            with self._changed:
                self._ended.update(id_ for id_ in job_ids if id_ in self._awaited)
                self._changed.notify_all()

    def _look_until_closed(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing or self._awaited)
                if self._is_closing:
                    return
                awaited = [id_ for id_ in self._awaited if id_ not in self._ended]
            try:
                self._note(self._look(awaited))
            except Exception as error:  # noqa: BLE001 - nobody else looks
                log.warning("job_ends_not_seen", code=code_of(error))
            time.sleep(_POLL_S)


def _ended_among(session: Session, job_ids: Collection[str]) -> list[str]:
    """One that is put off is not worth a wait either."""
    is_put_off = and_(
        col(AnalysisJob.state) == JobState.QUEUED.value, col(AnalysisJob.next_attempt_at).is_not(None)
    )
    query = select(AnalysisJob.id).where(
        col(AnalysisJob.id).in_(list(job_ids)), or_(col(AnalysisJob.state).in_(_FINAL), is_put_off)
    )
    return list(session.exec(query))
