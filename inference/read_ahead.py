"""Fetching ahead of the reader, so that a server's deadline is spent on the server alone."""

import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context


def read_ahead(files: Generator[bytes], *, max_bytes: int) -> Generator[bytes]:
    """Yield `files`, which a thread fetches while at most max_bytes of them wait to be taken.

    Raises what `files` raises, after what came before it. `files` is closed when this is.
    """
    shelf = _Shelf(max_bytes)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as pool:
        filling = pool.submit(copy_context().run, shelf.fill, files)
        try:
            yield from shelf.take()
            filling.result()
        finally:
            shelf.close()


class _Shelf:
    """What has been fetched and not yet taken."""

    def __init__(self, max_bytes: int) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._has_all = False
        self._is_closed = False

    def fill(self, files: Generator[bytes]) -> None:
        with closing(files):
            try:
                for data in files:
                    if not self._put(data):
                        return
            finally:
                with self._changed:
                    self._has_all = True
                    self._changed.notify_all()

    def take(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._has_all)
                if not self._waiting:
                    return
                data = self._waiting.popleft()
                self._bytes -= len(data)
                self._changed.notify_all()
            yield data

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _put(self, data: bytes) -> bool:
        """Wait for room; return False if nobody takes any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or not self._waiting or self._has_room(data))
            if self._is_closed:
                return False
            self._waiting.append(data)
            self._bytes += len(data)
            self._changed.notify_all()
            return True

    def _has_room(self, data: bytes) -> bool:
        return self._bytes + len(data) <= self._max_bytes
