"""What was fetched or decoded a moment ago, bounded in bytes and in age, in this process's memory only."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class _Kept(Generic[_Value]):
    value: _Value
    size: int
    until: float


class RecentlyUsed(Generic[_Value]):
    """Keeps the values used last, `max_size` of them together at most. Safe to share between threads.

    What several threads want at the same time is made by one of them, one after the other where that fails.
    """

    def __init__(self, *, max_size: int, life_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_size = max_size
        self._life_s = life_s
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, _Kept[_Value]] = OrderedDict()
        self._size = 0
        self._making: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable) -> _Value | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or kept.until <= self._clock():
                return None
            self._kept.move_to_end(key)
            return kept.value

    def put(self, key: Hashable, value: _Value, *, size: int = 1) -> None:
        """Keep the value; one that is larger than everything together may be is not kept."""
        with self._lock:
            self._drop(key)
            if size > self._max_size:
                return
            self._kept[key] = _Kept(value, size, self._clock() + self._life_s)
            self._size += size
            while self._size > self._max_size:
                self._drop(next(iter(self._kept)))

    def get_or_make(
        self, key: Hashable, make: Callable[[], _Value], *, size: Callable[[_Value], int] = lambda _: 1
    ) -> _Value:
        with self._lock:
            turn = self._making.setdefault(key, threading.Lock())
        with turn:
            found = self.get(key)
            if found is not None:
                return found
            try:
                made = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            self.put(key, made, size=size(made))
            return made

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._size = 0

    def _drop(self, key: Hashable) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._size -= kept.size
