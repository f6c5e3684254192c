"""How many calls a client may make: one that runs wild must not take the service from the others.

Spec: RFC 6585, section 4 (429); RFC 9110, 10.2.3 (Retry-After)
"""

import math
import time
from threading import Lock
from typing import Final

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from rayhook.auth.principal import CDSClientPrincipal
from rayhook.fhir.errors import RateLimited

_NAMESPACE: Final = "cds"
_MINUTE_S: Final = 60.0
_LOTS: Final = 200

_Who = tuple[str, str]


class RateLimit:
    """Counts by client and tenant, in this process; safe to share between threads.

    What a client may do in a minute stands in its registration. Calls are taken from the counter in lots of half a
    percent of that, as the counter costs a thread each time it is asked.
    """

    def __init__(self) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._in_hand: dict[_Who, int] = {}
        self._told: dict[_Who, float] = {}
        self._lock = Lock()

    def admit(self, principal: CDSClientPrincipal) -> None:
        """Count one call. Raises RateLimited, with the seconds to wait, for one too many.

        The first refusal of a minute is for the audit, the others are not: they would be a flood of their own.
        """
        item = RateLimitItemPerMinute(principal.ehr.cds_client.calls_per_minute, namespace=_NAMESPACE)
        who = (principal.issuer, _registered_tenant(principal))
        with self._lock:
            if self._takes_one(item, who):
                return
            wait_s = self._limiter.get_window_stats(item, *who).reset_time - time.time()
            is_first = self._told.get(who, 0.0) <= time.time()
            if is_first:
                self._told[who] = time.time() + _MINUTE_S
        raise RateLimited(
            f"more than {item.amount} calls in a minute",
            retry_after_s=max(1, math.ceil(wait_s)),
            is_first=is_first,
        )

    def _takes_one(self, item: RateLimitItemPerMinute, who: _Who) -> bool:
        in_hand = self._in_hand.get(who, 0)
        if not in_hand:
            lot = max(1, item.amount // _LOTS)
            in_hand = lot if self._limiter.hit(item, *who, cost=lot) else 0
        self._in_hand[who] = max(0, in_hand - 1)
        return in_hand > 0


def _registered_tenant(principal: CDSClientPrincipal) -> str:
    """A tenant that nobody registered is whatever the client says: a new one a call would have no limit."""
    return principal.tenant or "" if principal.ehr.cds_client.tenants else ""
