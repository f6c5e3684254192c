"""Work that goes on beside the service, each piece in a thread of its own."""

import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_STOP_S: Final = 5.0
_AGAIN_S: Final = 5.0

Work = Callable[[threading.Event], None]


@contextmanager
def in_threads(
    work: Mapping[str, Work], *, again_s: float = _AGAIN_S, stop_s: float | None = _STOP_S
) -> Iterator[None]:
    """Run each piece of work, by its thread's name, until the event it was given is set; then wait `stop_s` for it.

    One that ends with an error that it has no answer to is begun anew after `again_s`: nobody else would do it.
    """
    stopping = threading.Event()
    threads = [
        threading.Thread(target=_keep_up, args=(name, step, stopping, again_s), name=name, daemon=True)
        for name, step in work.items()
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join(timeout=stop_s)


def _keep_up(name: str, step: Work, stopping: threading.Event, again_s: float) -> None:
    while True:
        try:
            step(stopping)
        except Exception as error:  # noqa: BLE001 - whatever it was, the work has to go on
            # Not its text, nor its traceback's: what nobody expected may quote a patient.
            log.error("background_work_failed", work=name, error_type=type(error).__name__, at=_place(error))  # noqa: TRY400
        else:
            return
        if stopping.wait(again_s):
            return


def _place(error: Exception) -> str:
    """Return the line of code that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"
