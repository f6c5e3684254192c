"""The doorbell: wakes a worker for a job whose row is committed, and waits for the row to end.

Nothing is lost with a message: the sweep rings again for every row that nobody works on.
"""

import random
import threading
import time
from collections.abc import Callable, Collection
from typing import Protocol

import dramatiq
import structlog
from dramatiq.brokers.stub import StubBroker

from rayhook.auth.database_types import Sessions
from rayhook.fhir.errors import code_of
from rayhook.inference.job_table import WorkerQueue
from rayhook.inference.jobs import load_job, overdue
from rayhook.inference.waiting import EndWatch

_log = structlog.get_logger()

_STOP_TIMEOUT_S = 30.0
_STOPS_EVERY_S = 0.05
_WORKER_WAKES_MS = 100
_SWEPT_A_THREAD = 2
_JITTER = 0.3
_random = random.SystemRandom()  # its own: whoever seeds the shared one is not to find it used

Run = Callable[[str], str | None]


class Doorbell(Protocol):
    """What reaches the workers of other processes: Redis in production; without one, this process works alone."""

    def ring(self, job_id: str, queue: WorkerQueue) -> None:
        """Wake a worker of the queue; never waits, and never raises."""

    def listen(self, answer: Callable[[str], None], queues: Collection[WorkerQueue]) -> None:
        """Call `answer` for what others ring for; it returns when somebody here is free to go."""

    def close(self) -> None: ...


class AnalysisQueue:
    """An in-process Dramatiq broker with its worker threads and the sweep.

    `sessions` are only read from. A message holds the job's id and nothing else; it is never retried by the
    broker, as attempts are counted in the row. Who is woken goes on until no job of its queues is left, so that
    one message of many is enough.
    doorbell: wakes the workers of other processes too.  queues: those that this process works on, if it does.
    """

    def __init__(
        self,
        sessions: Sessions,
        *,
        doorbell: Doorbell | None = None,
        queues: Collection[WorkerQueue] = tuple(WorkerQueue),
        works_here: bool = True,
        sweep_interval_s: float = 2.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sessions = sessions
        self._doorbell = doorbell
        self._queues = tuple(queues)
        self._works_here = works_here
        self._sweep_interval_s = sweep_interval_s
        self._clock = clock
        self._broker = StubBroker(middleware=[])
        self._actor = dramatiq.actor(broker=self._broker, queue_name="analysis", actor_name="analyse")(
            self._work
        )
        self._run: Run | None = None
        self._threads = 0
        self._worker: dramatiq.Worker | None = None
        self._sweeper: threading.Thread | None = None
        self._is_closing = threading.Event()
        self._watch = EndWatch(sessions)
        self._changed = threading.Condition()
        self._busy = 0
        self._rung_lock = threading.Lock()
        self._rung: set[str] = set()

    def send(self, job_id: str) -> None:
        """Wake a worker, here or elsewhere. Call after the commit of the job's row."""
        if self._doorbell is None:
            if self._works_here:
                self._wake(job_id)
            return
        with self._sessions() as session:
            row = load_job(session, job_id)
        if row is None:
            return
        if row.queue in self._queues and self._busy < self._threads:
            self._wake(job_id)
        else:
            self._doorbell.ring(job_id, row.queue)

    def wait(self, job_id: str, timeout_s: float) -> bool:
        """Return whether the job ends within `timeout_s`, here or in another process."""
        return self._watch.wait(job_id, timeout_s)

    def ended(self, job_id: str) -> None:
        """Wake who waits for a job: its end is committed."""
        self._watch.tell(job_id)

    def start(self, run: Run, threads: int) -> None:
        """Begin to work: `run` is woken with a job's id, in one of `threads` threads.

        It returns the id of the job that it did, be it that or one that comes before it; None where it did none.
        """
        self._run, self._threads = run, threads
        self._worker = dramatiq.Worker(self._broker, worker_threads=threads, worker_timeout=_WORKER_WAKES_MS)
        self._worker.start()
        self._sweeper = threading.Thread(target=self._sweep_until_closed, name="job-sweep", daemon=True)
        self._sweeper.start()
        if self._doorbell is not None:
            self._doorbell.listen(self._answer, self._queues)

    def close(self, timeout_s: float = _STOP_TIMEOUT_S, hand_back: Callable[[], int] | None = None) -> None:
        """Take nothing more, let the jobs in hand end, and stop; what waits stays queued in its rows.

        hand_back: is called where they do not end in `timeout_s`; they have a moment then to notice.
        """
        self._is_closing.set()
        with self._changed:
            self._changed.notify_all()
        if self._doorbell is not None:
            self._doorbell.close()
        if self._sweeper is not None:
            self._sweeper.join()
        if self._worker is not None:
            self._stop(self._worker, timeout_s, hand_back)
        self._broker.close()
        self._watch.close()

    def _stop(self, worker: dramatiq.Worker, timeout_s: float, hand_back: Callable[[], int] | None) -> None:
        deadline = time.monotonic() + timeout_s
        for thread in worker.workers:
            thread.stop()
        while self._busy and time.monotonic() < deadline:
            time.sleep(_STOPS_EVERY_S)
        if self._busy and hand_back is not None:
            _log.warning("jobs_handed_back", count=hand_back())
        worker.stop(timeout=1000)

    def sweep(self) -> int:
        """Wake this process for the rows that nobody works on; return how many of them it was woken for."""
        limit = {"limit": _SWEPT_A_THREAD * self._threads} if self._threads else {}
        with self._sessions() as session:
            job_ids = overdue(session, self._clock, queues=self._queues, **limit)
        for job_id in job_ids:
            self._wake(job_id)
        return len(job_ids)

    def _wake(self, job_id: str) -> None:
        """A second message for a waiting job is dropped."""
        with self._rung_lock:
            if job_id in self._rung:
                return
            self._rung.add(job_id)
        self._actor.send(job_id)

    def _answer(self, job_id: str) -> None:
        """Take a message from outside when there is a free thread: before, it may be another's."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy < self._threads or self._is_closing.is_set())
        if not self._is_closing.is_set():
            self._wake(job_id)

    def _work(self, job_id: str) -> None:
        assert self._run is not None
        with self._rung_lock:
            self._rung.discard(job_id)
        self._count_busy(1)
        try:
            while not self._is_closing.is_set():
                done = self._run(job_id)
                self._watch.tell(done or job_id)
                if done is None:
                    return
        finally:
            self._count_busy(-1)

    def _count_busy(self, change: int) -> None:
        with self._changed:
            self._busy += change
            self._changed.notify_all()

    def _sweep_until_closed(self) -> None:
        while not self._is_closing.is_set():
            try:
                self.sweep()
            except Exception as error:  # noqa: BLE001 - nobody else sweeps
                # The database is away: the next round finds the same rows.
                _log.warning("job_sweep_failed", code=code_of(error))
            # Many workers do not look at the same moment.
            self._is_closing.wait(self._sweep_interval_s * _random.uniform(1 - _JITTER, 1 + _JITTER))
