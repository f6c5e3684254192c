"""The leases of the jobs in hand, kept from a thread of its own while whoever does them is busy."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from sqlmodel import Session

from rayhook.auth.database_types import Sessions
from rayhook.fhir.errors import ServiceUnavailable, code_of
from rayhook.inference.claims import hand_back, renew
from rayhook.inference.job_table import ClaimedJob

log = structlog.get_logger()

_BEATS_PER_LEASE = 3


class Hold:
    """One job in hand. `is_lost` once it has gone to another, was cancelled, or was handed back.

    `is_over` once we ended it: there is no lease to keep while its report is brought to the EHR.
    """

    def __init__(self, claimed: ClaimedJob) -> None:
        self.claimed = claimed
        self.is_lost = False
        self.is_over = False

    def check(self) -> None:
        """Raise ServiceUnavailable where the job is not ours any more: nothing more may be done for it."""
        if self.is_lost:
            raise ServiceUnavailable("the job has gone to another worker", code="lease_lost")


class Leases:
    """Of one process. A process that ends without a word lets them run out, and its jobs are taken again.

    sessions: may commit before the disk has it, as a lost beat is only a shorter lease.
    present: is called with each beat, in its transaction: says that this worker lives.
    """

    def __init__(
        self,
        sessions: Sessions,
        *,
        lease_s: float,
        clock: Callable[[], float] = time.time,
        present: Callable[[Session], None] | None = None,
    ) -> None:
        self.lease_s = lease_s
        self._sessions = sessions
        self._clock = clock
        self._present = present
        self._holds: set[Hold] = set()
        self._dropped: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._beat_until_closed, name="job-leases", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_closing.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def in_hand(self) -> int:
        return len(self._holds)

    @contextmanager
    def holding(self, claimed: ClaimedJob) -> Iterator[Hold]:
        hold = Hold(claimed)
        with self._lock:
            self._holds.add(hold)
        try:
            yield hold
        finally:
            with self._lock:
                self._holds.discard(hold)

    def drop(self, put_off: Callable[[], None]) -> None:
        """Let go of a job whose end could not be written. `put_off` is called with every beat until it succeeds.

        It opens a transaction of its own: one that held the audit's end and waited for a job could wait for ever.
        """
        with self._lock:
            self._dropped.append(put_off)

    def beat(self) -> None:
        """Prolong the lease of every job in hand; those that are not ours any more are told so."""
        self._put_off_dropped()
        with self._lock:
            holds = [hold for hold in self._holds if not (hold.is_lost or hold.is_over)]
        with self._sessions() as session:
            # In the order of their ids: two processes never wait for each other.
            for hold in sorted(holds, key=lambda hold: hold.claimed.id):
                if (
                    not renew(session, hold.claimed, lease_s=self.lease_s, clock=self._clock)
                    and not hold.is_over
                ):
                    hold.is_lost = True
                    log.warning("job_given_up", job=hold.claimed.id)
            if self._present is not None:
                self._present(session)
            session.commit()

    def _put_off_dropped(self) -> None:
        with self._lock:
            dropped = list(self._dropped)
        for put_off in dropped:
            try:
                put_off()
            except Exception as error:  # noqa: BLE001 - the jobs in hand need their beat, and this one is tried again
                log.warning("job_not_put_off", code=code_of(error))
            else:
                with self._lock:
                    self._dropped.remove(put_off)

    def hand_back(self) -> int:
        """Queue the jobs in hand again, for another worker to do; return how many."""
        with self._lock:
            holds = [hold for hold in self._holds if not hold.is_lost]
        with self._sessions() as session:
            handed = [hold for hold in holds if hand_back(session, hold.claimed, clock=self._clock)]
            session.commit()
        for hold in holds:
            hold.is_lost = True
        return len(handed)

    def _beat_until_closed(self) -> None:
        while not self._is_closing.wait(self.lease_s / _BEATS_PER_LEASE):
            if not self._holds and not self._dropped and self._present is None:
                continue
            try:
                self.beat()
            except Exception as error:  # noqa: BLE001 - nobody else keeps the leases
                # The database is away, for the other workers too: the next beat finds what became of the jobs.
                log.warning("job_leases_not_renewed", code=code_of(error))
