"""How long a call may wait for a result, given how many others are in hand and how long the last ones took to end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

# What one call costs beside its wait: the calls in hand do this one after the other, as the audit has one end.
_CALL_S: Final = 0.015
_SHORTEST_S: Final = 0.1
# What may follow a wait of full length, and still be within half a second with it.
_ENDING_S: Final = 0.05
_FADES_BY: Final = 0.95


class Turn:
    """One call in hand; `waited` marks the end of its wait."""

    def __init__(self) -> None:
        self.waited_at: float | None = None

    def waited(self, now: float) -> None:
        self.waited_at = now


class CallsInHand:
    """Counts the calls that are being answered; safe to share between threads.

    It keeps the longest time that a call took to end after its wait, faded by every call since: on a busy machine
    calls then wait less.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._count = 0
        self._ending_s = 0.0
        self._lock = Lock()

    @contextmanager
    def call(self) -> Iterator[Turn]:
        turn = Turn()
        with self._lock:
            self._count += 1
        try:
            yield turn
        finally:
            now = self._monotonic()
            with self._lock:
                self._count -= 1
                if turn.waited_at is not None:
                    self._ending_s = max(now - turn.waited_at, self._ending_s * _FADES_BY)

    def wait_s(self, longest_s: float) -> float:
        """Return the time to wait, so that all who wait now can still answer within the limit."""
        ending_s = max(_CALL_S * (self._count - 1), self._ending_s - _ENDING_S)
        return max(_SHORTEST_S, longest_s - max(0.0, ending_s))
