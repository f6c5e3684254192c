"""Results that were read a moment ago: a finished job never changes, and finding and opening it is dear."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from rayhook.inference.jobs import JobRow
from rayhook.inference.review import SignedReview
from rayhook.inference.study import StudyResult

_SIZE = 256
_LIFE_S = 60.0


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """A job that is done, with its result but without the image, and with what was signed of it."""

    row: JobRow
    result: StudyResult
    awaits_delivery: bool = False
    review: SignedReview | None = None


class ResultCache:
    """The last few finished jobs by their key, for a minute; safe to share between threads."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._jobs: OrderedDict[str, tuple[FinishedJob, float]] = OrderedDict()
        self._lock = Lock()

    def find(self, key: str) -> FinishedJob | None:
        with self._lock:
            job, ends_at = self._jobs.get(key, (None, 0.0))
            return job if ends_at > self._monotonic() else None

    def keep(self, key: str, job: FinishedJob) -> None:
        with self._lock:
            self._jobs.pop(key, None)
            self._jobs[key] = (job, self._monotonic() + _LIFE_S)
            while len(self._jobs) > _SIZE:
                self._jobs.popitem(last=False)

    def forget(self, key: str) -> None:
        with self._lock:
            self._jobs.pop(key, None)

    def forget_result(self, result_id: str) -> None:
        """Forget the job of a result whose report somebody signed, changed or withdrew."""
        with self._lock:
            for key in [key for key, (job, _) in self._jobs.items() if job.row.result_id == result_id]:
                self._jobs.pop(key)
