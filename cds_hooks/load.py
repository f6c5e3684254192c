"""How long a call may wait for a result, given how many others are in hand."""

from threading import Lock
from types import TracebackType
from typing import Final, Self

# What one call costs beside its wait: the calls in hand do this one after the other, as the audit has one end.
_CALL_S: Final = 0.012
_SHORTEST_S: Final = 0.1


class CallsInHand:
    """Counts the calls that are being answered; safe to share between threads."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = Lock()

    def __enter__(self) -> Self:
        with self._lock:
            self._count += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._count -= 1

    def wait_s(self, longest_s: float) -> float:
        """Return the time to wait, so that all who wait now can still answer within the limit."""
        return max(_SHORTEST_S, longest_s - _CALL_S * (self._count - 1))
