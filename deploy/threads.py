"""Work that goes on beside the service, each piece in a thread of its own."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

_STOP_S = 5.0


@contextmanager
def in_threads(work: Mapping[str, Callable[[threading.Event], None]]) -> Iterator[None]:
    """Run each piece of work, by its thread's name, until the event it was given is set; then wait 5 s for it."""
    stopping = threading.Event()
    threads = [
        threading.Thread(target=step, args=(stopping,), name=name, daemon=True) for name, step in work.items()
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join(timeout=_STOP_S)
