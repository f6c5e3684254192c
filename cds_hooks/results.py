"""Results that were read once: a result never changes, and opening its seal is the dearest part of an answer."""

from collections import OrderedDict
from dataclasses import replace
from threading import Lock

from sqlmodel import Session

from rayhook.auth.keys import Keyring
from rayhook.inference.results import load_result
from rayhook.inference.study import StudyResult

_SIZE = 256


class ResultCache:
    """The last few results that cards were made of, without their images; safe to share between threads."""

    def __init__(self) -> None:
        self._results: OrderedDict[str, StudyResult] = OrderedDict()
        self._lock = Lock()

    def find(self, result_id: str) -> StudyResult | None:
        with self._lock:
            found = self._results.get(result_id)
            if found is not None:
                self._results.move_to_end(result_id)
            return found

    def load(self, session: Session, keyring: Keyring, result_id: str) -> StudyResult | None:
        stored = load_result(session, keyring, result_id)
        if stored is None:
            return None
        result = replace(stored.result, key_image=None)
        with self._lock:
            self._results[result_id] = result
            while len(self._results) > _SIZE:
                self._results.popitem(last=False)
        return result
