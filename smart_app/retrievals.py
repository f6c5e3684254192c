"""How much of the PACS the viewers may take at the same time: all together, and each person.

A retrieval holds a thread and an image in memory for as long as the PACS takes. Hooks need those threads too.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rayhook.fhir.errors import Overloaded
from rayhook.fhir.text import translatable

_WAIT_S: Final = 3.0
_RETRY_AFTER_S: Final = 2


class Retrievals:
    """At most `most` at a time, of one person half of them; as many more may wait, for `wait_s`.

    Safe to share between threads.
    """

    def __init__(self, most: int = 16, *, wait_s: float = _WAIT_S) -> None:
        self._most = most
        self._most_each = max(1, most // 2)
        self._wait_s = wait_s
        self._in_hand: Counter[str] = Counter()
        self._waiting = 0
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, person: str) -> Iterator[None]:
        """Hold one of the places. Raises Overloaded, with the seconds to wait, where none comes free in time."""
        with self._changed:
            if not self._has_room(person):
                self._wait(person)
            self._in_hand[person] += 1
        try:
            yield
        finally:
            with self._changed:
                self._in_hand[person] -= 1
                self._in_hand += Counter()  # without those who hold none
                self._changed.notify_all()

    def _has_room(self, person: str) -> bool:
        return self._in_hand.total() < self._most and self._in_hand[person] < self._most_each

    def _wait(self, person: str) -> None:
        if self._waiting >= self._most:
            raise _overloaded()
        self._waiting += 1
        try:
            if not self._changed.wait_for(lambda: self._has_room(person), self._wait_s):
                raise _overloaded()
        finally:
            self._waiting -= 1


def _overloaded() -> Overloaded:
    return Overloaded(
        translatable("more images are being fetched than may be at the same time: wait a moment"),
        retry_after_s=_RETRY_AFTER_S,
    )
