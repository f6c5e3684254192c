"""What takes in studies before anybody asks for them: wired once, and run beside the service."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from rayhook.deploy.analysis import Analysis, Outside
from rayhook.deploy.received_images import received_images
from rayhook.deploy.threads import in_threads
from rayhook.fhir.errors import RayhookError
from rayhook.inference.arrival import Inbox
from rayhook.inference.arrival_courier import ArrivalCourier
from rayhook.inference.arrival_lookup import ArrivalLookup
from rayhook.inference.authority import Authority
from rayhook.inference.pacs_poll import PACSPolling
from rayhook.inference.received import KEPT_S, ReceivedImages
from rayhook.inference.subscription_upkeep import SubscriptionUpkeep

_EVERY_S: Final = 1.0
_TIDY_EVERY_S: Final = 600.0
_FORGET_EVERY_S: Final = 30.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """All of it may run in several processes: each piece of work is leased to one of them at a time."""

    courier: ArrivalCourier
    upkeep: SubscriptionUpkeep
    polling: PACSPolling
    received: ReceivedImages

    @classmethod
    def over(cls, outside: Outside, analysis: Analysis) -> "Arrivals":
        authority = Authority(outside.tokens)
        database, settings = outside.database, outside.settings
        received = received_images(settings, database, outside.keyring)
        lookup = ArrivalLookup(transport=outside.transport, authority=authority, is_received=received.has_all)
        return cls(
            courier=ArrivalCourier(
                registry=outside.registry,
                sessions=database.sessions,
                reading=database.reading,
                keyring=outside.keyring,
                audit=outside.audit,
                lookup=lookup,
                models=analysis.pipeline.analyser.identities,
                send=analysis.queue.send,
                intake=settings.intake,
            ),
            upkeep=SubscriptionUpkeep(
                registry=outside.registry,
                sessions=database.sessions,
                reading=database.reading,
                keyring=outside.keyring,
                audit=outside.audit,
                transport=outside.transport,
                authority=authority,
                public_base_url=settings.public_base_url,
            ),
            polling=PACSPolling(
                registry=outside.registry,
                sessions=database.sessions,
                reading=database.reading,
                keyring=outside.keyring,
                audit=outside.audit,
                transport=outside.transport,
                authority=authority,
            ),
            received=received,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look at what arrives until the block ends."""
        work = {"arrivals": _until_stopped(self.courier.run_due, _EVERY_S)}
        sources = [ehr.arrivals for ehr in self.courier.registry]
        if any(one.subscription is not None for one in sources):
            work["subscriptions"] = _until_stopped(self.upkeep.run_due, _EVERY_S)
        if any(one.polled for one in sources):
            work["pacs-polls"] = _until_stopped(self.polling.run_due, _EVERY_S, first=self.polling.prepare)
        work["received-images"] = _until_stopped(self._tidy, _TIDY_EVERY_S)
        work["analysed-images"] = _until_stopped(
            partial(self._forget_analysed, _TIDY_EVERY_S),
            _FORGET_EVERY_S,
            first=partial(self._forget_analysed, KEPT_S),
        )
        with in_threads(work):
            yield

    def _tidy(self) -> None:
        Inbox(self.courier.sessions, self.courier.reading, self.courier.keyring).forget_old()
        self.received.forget_old()

    def _forget_analysed(self, back_s: float) -> None:
        self.received.forget_analysed(self.received.clock() - back_s)


def _until_stopped(
    step: Callable[[], object], every_s: float, *, first: Callable[[], object] | None = None
) -> Callable[[threading.Event], None]:
    """Return the work of doing the step again and again, once `first` has succeeded."""

    def work(stopping: threading.Event) -> None:
        is_prepared = first is None
        while not stopping.wait(every_s):
            try:
                if not is_prepared and first is not None:
                    first()
                    is_prepared = True
                step()
            except RayhookError as error:
                # The database is away, or the audit: the next round finds the same work.
                log.warning("arrival_step_failed", code=error.code)

    return work
