"""The doorbell: wakes a worker for a job whose row is committed, and waits for the row to end.

Nothing is lost with a message: the sweep rings again for every row that nobody works on.
"""

import threading
import time
from collections.abc import Callable

import dramatiq
import structlog
from dramatiq.brokers.stub import StubBroker

from rayhook.auth.database_types import Sessions
from rayhook.fhir.errors import RayhookError
from rayhook.inference.jobs import load_job, overdue

_log = structlog.get_logger()

_POLL_S = 0.1  # only for jobs that end in another process: one that ends here is signalled at once
_STOP_TIMEOUT_MS = 30_000
_WORKER_WAKES_MS = 100


class AnalysisQueue:
    """An in-process Dramatiq broker with its worker threads and the sweep.

    `sessions` are only read from. A message holds the job's id and nothing else; it is never retried by the
    broker, as attempts are counted in the row.
    """

    def __init__(
        self, sessions: Sessions, *, sweep_interval_s: float = 5.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._sessions = sessions
        self._sweep_interval_s = sweep_interval_s
        self._clock = clock
        self._broker = StubBroker(middleware=[])
        self._actor = dramatiq.actor(broker=self._broker, queue_name="analysis", actor_name="analyse")(
            self._work
        )
        self._run: Callable[[str], None] | None = None
        self._worker: dramatiq.Worker | None = None
        self._sweeper: threading.Thread | None = None
        self._is_closing = threading.Event()
        self._ended = threading.Condition()
        self._runs_ended = 0
        self._rung_lock = threading.Lock()
        self._rung: set[str] = set()

    def send(self, job_id: str) -> None:
        """Wake a worker. Call after the commit of the job's row; a second message for a waiting job is dropped."""
        with self._rung_lock:
            if job_id in self._rung:
                return
            self._rung.add(job_id)
        self._actor.send(job_id)

    def wait(self, job_id: str, timeout_s: float) -> bool:
        """Return whether the job ends within `timeout_s`, here or in another process."""
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self._runs_ended
            if self._has_ended(job_id):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with self._ended:
                self._ended.wait_for(lambda: self._runs_ended != seen, min(left, _POLL_S))  # noqa: B023 - called at once

    def start(self, run: Callable[[str], None], threads: int) -> None:
        """Begin to work: `run` gets each job's id, in one of `threads` threads."""
        self._run = run
        self._worker = dramatiq.Worker(self._broker, worker_threads=threads, worker_timeout=_WORKER_WAKES_MS)
        self._worker.start()
        self._sweeper = threading.Thread(target=self._sweep_until_closed, name="job-sweep", daemon=True)
        self._sweeper.start()

    def close(self) -> None:
        """Let the jobs in hand end, and stop; what waits stays queued in its rows."""
        self._is_closing.set()
        if self._sweeper is not None:
            self._sweeper.join()
        if self._worker is not None:
            self._worker.stop(timeout=_STOP_TIMEOUT_MS)
        self._broker.close()

    def sweep(self) -> int:
        """Send every row again that nobody works on; return how many there were."""
        with self._sessions() as session:
            job_ids = overdue(session, self._clock)
        for job_id in job_ids:
            self.send(job_id)
        return len(job_ids)

    def _work(self, job_id: str) -> None:
        assert self._run is not None
        with self._rung_lock:
            self._rung.discard(job_id)
        try:
            self._run(job_id)
        finally:
            with self._ended:
                self._runs_ended += 1
                self._ended.notify_all()

    def _has_ended(self, job_id: str) -> bool:
        with self._sessions() as session:
            row = load_job(session, job_id)
        return row is not None and row.state.is_final

    def _sweep_until_closed(self) -> None:
        while not self._is_closing.is_set():
            try:
                self.sweep()
            except RayhookError as error:
                # The database is away: the next round finds the same rows.
                _log.warning("job_sweep_failed", code=error.code)
            self._is_closing.wait(self._sweep_interval_s)
