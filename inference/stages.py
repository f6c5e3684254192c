"""How long the stages of one study took, in the words of whoever waits for it: nothing of the study itself."""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

_Item = TypeVar("_Item")


class Stage(StrEnum):
    """What a study goes through, in this order.

    queue: from when its job could be taken until it was.  fetch: waiting for the next image, as later ones are
    fetched while earlier ones are decoded.  forward: in the engine, beside the stages before it.
    explain: series, key image and heat map.  write: reports, database, EHR and PACS.
    """

    QUEUE = "queue"
    FETCH = "fetch"
    DECODE = "decode"
    PREPROCESS = "preprocess"
    FORWARD = "forward"
    EXPLAIN = "explain"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class StageTimes:
    """The seconds of one study's stages; its threads may add to them at once."""

    _seconds: dict[Stage, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, stage: Stage, seconds: float) -> None:
        with self._lock:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def seconds(self) -> Mapping[Stage, float]:
        with self._lock:
            return dict(self._seconds)


_current: ContextVar[StageTimes | None] = ContextVar("stage_times", default=None)


@contextmanager
def timing() -> Iterator[StageTimes]:
    """Keep the times of one study; threads that work on it have to run in a copy of this context."""
    times = StageTimes()
    token = _current.set(times)
    try:
        yield times
    finally:
        _current.reset(token)


@contextmanager
def timed(stage: Stage) -> Iterator[None]:
    """Add the block's time to the study at hand, if there is one."""
    times = _current.get()
    if times is None:
        yield
        return
    started = time.perf_counter()
    try:
        yield
    finally:
        times.add(stage, time.perf_counter() - started)


def timed_each(stage: Stage, begin: Callable[[], Generator[_Item]]) -> Generator[_Item]:
    """Yield the items, adding the time that each is waited for; what takes them is not counted."""
    with timed(stage):
        items = begin()
    with closing(items):
        while True:
            with timed(stage):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
