"""Refusals of callers whom nobody knows: each is an event, until one address makes too many of them.

An event is a transaction in the one chain that everything waits for. Who needs no key to cause one could fill the
log, and stop the work of everybody.

Spec: OWASP ASVS 5.0.0 V2.4.1, V16.3.2
"""

from dataclasses import replace
from typing import Final

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.strategies import SlidingWindowCounterRateLimiter
from sqlmodel import Session

from rayhook.audit.context import request_source
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.rate import Rate, network_of

WINDOW_MIN: Final = 5
REFUSALS_PER_WINDOW: Final = 600

_REFUSALS: Final = RateLimitItemPerMinute(REFUSALS_PER_WINDOW, WINDOW_MIN, namespace="refusals")
_LAST: Final = RateLimitItemPerMinute(1, WINDOW_MIN, namespace="refusals-last")


class RefusalLimit:
    """Counts the refusals of one client address (IPv6: of its /64). Safe to share between threads."""

    def __init__(self, rate: Rate | None = None, *, refusals: RateLimitItem = _REFUSALS) -> None:
        self._rate = rate or Rate(SlidingWindowCounterRateLimiter)
        self._refusals = refusals

    def record(self, session: Session, audit: AuditLog, entry: AuditEntry) -> None:
        """Record a refusal. The first one too many of a window says that no more are told; those after it are not."""
        network = network_of(request_source.get().client_address)
        if self._rate.hit(self._refusals, network):
            audit.record(session, entry)
        elif self._rate.hit(_LAST, network):
            untold = f"more of this address are not told for up to {WINDOW_MIN} minutes"
            audit.record(session, replace(entry, detail={**entry.detail, "further": untold}))
