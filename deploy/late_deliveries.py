"""What an EHR or a PACS did not take is tried again, whichever process has it to do."""

import threading
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from rayhook.fhir.errors import code_of

log = structlog.get_logger(__name__)

_EVERY_S: Final = 5.0


def deliver_until(couriers: Sequence[Callable[[], object]], stopping: threading.Event) -> None:
    """Let each courier do what is due, again and again; of several processes at it, each errand is one's."""
    while not stopping.wait(_EVERY_S):
        for courier in couriers:
            try:
                courier()
            except Exception as error:  # noqa: BLE001 - the others have errands of their own
                log.error("late_delivery_failed", code=code_of(error))  # noqa: TRY400
