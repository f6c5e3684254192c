"""When this process stood still: a failed test tells of it, for a deadline that passed then says nothing of the code.

A thread that sleeps a quarter of a second and wakes after six has been kept from running: by the machine, or by code
that holds the interpreter. One that does is the collection of garbage: over the millions of objects that TensorFlow
and ten thousand tests leave, it takes seconds on a busy machine. So what is left is not looked through again.
"""

import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

import pytest

NAP_S = 0.25
TOLD_FROM_S = 1.0


class StallWatch:
    """Remembers the last stalls: when each ended, on the monotonic clock, and how long it was, in seconds."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._seen: deque[tuple[float, float]] = deque(maxlen=100)
        self._collected: deque[tuple[float, float]] = deque(maxlen=100)
        self._collecting_since = 0.0

    def start(self) -> None:
        gc.callbacks.append(self.note_collection)
        threading.Thread(target=self._watch, name="stall-watch", daemon=True).start()

    def nap(self) -> None:
        before = self._clock()
        self._sleep(NAP_S)
        now = self._clock()
        late_s = now - before - NAP_S
        if late_s >= TOLD_FROM_S:
            self._seen.append((now, late_s))

    def note_collection(self, phase: str, _: Mapping[str, int]) -> None:
        """Take part in `gc.callbacks`."""
        now = self._clock()
        if phase == "start":
            self._collecting_since = now
        elif now - self._collecting_since >= TOLD_FROM_S:
            self._collected.append((now, now - self._collecting_since))

    def since(self, moment: float) -> list[float]:
        """Return how long each stall was that ended after a moment."""
        return [late_s for ended, late_s in tuple(self._seen) if ended >= moment]

    def tell(self, report: pytest.TestReport) -> None:
        """Say in a failed test's report how long its process stood still meanwhile, and what for."""
        began = self._clock() - report.duration - NAP_S
        told = [f"{late_s:.1f} s" for late_s in self.since(began)]
        told += [
            f"collecting garbage for {long_s:.1f} s" for at, long_s in tuple(self._collected) if at >= began
        ]
        if told:
            report.sections.append(("This process stood still", ", ".join(told)))

    def _watch(self) -> None:
        while True:
            self.nap()


def forget_what_is_left() -> None:
    """Collect what is garbage now, and leave what is not out of every later collection."""
    gc.collect()
    gc.freeze()
