"""The thread that hands the audit on to the receivers outside, beside everything else and in nobody's way."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import structlog

from rayhook.audit.atna import FHIRFeed
from rayhook.audit.balp import Observer
from rayhook.audit.delivery import Delivery, Step
from rayhook.audit.syslog import SyslogAnchor, SyslogEvents, SyslogServer
from rayhook.deploy.s3 import anchor_at
from rayhook.deploy.settings import Settings
from rayhook.deploy.threads import in_threads
from rayhook.fhir.errors import RayhookError
from rayhook.fhir.transport import Transport, origin_of

log = structlog.get_logger(__name__)

_IDLE_S = 1.0
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class Forwarding:
    """`steps` are the receivers by their target, each a try that sends its next batch."""

    steps: dict[str, Callable[[], Step]]

    @classmethod
    def of(
        cls, settings: Settings, delivery: Delivery, transport: Transport, observer: Observer
    ) -> "Forwarding":
        """Return what the settings name; nothing where they name no receiver."""
        steps: dict[str, Callable[[], Step]] = {}
        if settings.audit_fhir_feed is not None:
            feed = FHIRFeed(
                transport, settings.audit_fhir_feed, observer, token_file=settings.audit_fhir_feed_token_file
            )
            steps[feed.target] = lambda: delivery.send_events(feed)
        if settings.audit_syslog is not None:
            host, _, port = settings.audit_syslog.rpartition(":")
            server = SyslogServer(
                host,
                int(port),
                ca_bundle=settings.ca_bundle,
                certificate=settings.audit_syslog_certificate,
                key=settings.audit_syslog_key,
            )
            events, anchor = SyslogEvents(server, observer), SyslogAnchor(server)
            steps[events.target] = lambda: delivery.send_events(events)
            steps[anchor.target] = lambda: delivery.send_checkpoints(anchor)
        if settings.audit_s3_anchor is not None:
            bucket = anchor_at(settings.audit_s3_anchor, kept_days=settings.longest_retention_days)
            steps[bucket.target] = lambda: delivery.send_checkpoints(bucket)
        return cls(steps)

    def running(self) -> AbstractContextManager[None]:
        """Run one thread a receiver: one that is down does not keep the others waiting."""
        return in_threads(
            {f"audit-{target}": partial(_forward, target, step) for target, step in self.steps.items()}
        )


def audit_origins(settings: Settings) -> frozenset[str]:
    """Return the repository's origin: it may be on the hospital's own network."""
    feed = settings.audit_fhir_feed
    return frozenset() if feed is None else frozenset({origin_of(feed)})


def pause_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10))


def _forward(target: str, step: Callable[[], Step], stopping: threading.Event) -> None:
    failures = 0
    wait_s = 0.0
    while not stopping.wait(wait_s):
        try:
            done = step()
        except RayhookError as error:
            # Our own database does not answer: the position stands, and so does the log.
            failures += 1
            wait_s = pause_s(failures)
            log.warning("audit_forwarding_waits", target=target, code=error.code)
            continue
        failures = done.failures
        if failures:
            wait_s = pause_s(failures)
            log.warning("audit_forwarding_failed", target=target, failures=failures)
        else:
            wait_s = _IDLE_S if done.is_done else 0.0
