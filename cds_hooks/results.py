"""Results that were read a moment ago: a finished job never changes, and finding and opening it is dear.

What people sign of it does change, in any process: once a second each entry in use is compared with the database.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock

from rayhook.inference.jobs import JobRow
from rayhook.inference.review import SignedReview
from rayhook.inference.study import StudyResult

_SIZE = 256
_LIFE_S = 60.0
_COMPARED_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """A job that is done, with its result but without the image, and with what was signed of it.

    version: of what was signed, as `review_versions` tells it, read before the rest.
    """

    row: JobRow
    result: StudyResult
    awaits_delivery: bool = False
    review: SignedReview | None = None
    version: int = 0


@dataclass(slots=True)
class _Kept:
    job: FinishedJob
    ends_at: float
    compared_at: float


class ResultCache:
    """The last few finished jobs by their key, for a minute; safe to share between threads."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._jobs: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = Lock()

    def find(self, key: str) -> FinishedJob | None:
        with self._lock:
            kept = self._jobs.get(key)
            return kept.job if kept is not None and kept.ends_at > self._monotonic() else None

    def keep(self, key: str, job: FinishedJob) -> None:
        with self._lock:
            self._jobs.pop(key, None)
            now = self._monotonic()
            self._jobs[key] = _Kept(job, now + _LIFE_S, now)
            while len(self._jobs) > _SIZE:
                self._jobs.popitem(last=False)

    def to_compare(self, keys: Iterable[str]) -> frozenset[str]:
        """Return the ids of the results that were not compared with the database for a second."""
        now = self._monotonic()
        with self._lock:
            kept = [self._jobs[key] for key in keys if key in self._jobs]
        due = (one.job.row.result_id for one in kept if now - one.compared_at >= _COMPARED_EVERY_S)
        return frozenset(result_id for result_id in due if result_id is not None)

    def compare(self, result_ids: frozenset[str], versions: Mapping[str, int]) -> None:
        """Forget the jobs of those results of which something else is signed now, or which are gone."""
        now = self._monotonic()
        with self._lock:
            those = [(key, one) for key, one in self._jobs.items() if one.job.row.result_id in result_ids]
            for key, one in those:
                if versions.get(str(one.job.row.result_id)) == one.job.version:
                    one.compared_at = now
                else:
                    self._jobs.pop(key)

    def forget(self, key: str) -> None:
        with self._lock:
            self._jobs.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._jobs.clear()

    def forget_result(self, result_id: str) -> None:
        """Forget the job of a result whose report somebody signed, changed or withdrew."""
        with self._lock:
            for key in [key for key, one in self._jobs.items() if one.job.row.result_id == result_id]:
                self._jobs.pop(key)
