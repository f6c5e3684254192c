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


class RateLimit:
    """Counts by client and tenant, in this process; safe to share between threads.

    What a client may do in a minute stands in its registration.
    """

    def __init__(self) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._told: dict[tuple[str, str], float] = {}
        self._lock = Lock()

    def admit(self, principal: CDSClientPrincipal) -> None:
        """Count one call. Raises RateLimited, with the seconds to wait, for one too many.

        The first refusal of a minute is for the audit, the others are not: they would be a flood of their own.
        """
        item = RateLimitItemPerMinute(principal.ehr.cds_client.calls_per_minute, namespace=_NAMESPACE)
        who = (principal.issuer, principal.tenant or "")
        with self._lock:
            if self._limiter.hit(item, *who):
                return
            ends_at = self._limiter.get_window_stats(item, *who).reset_time
            is_first = self._told.get(who, 0.0) <= time.time()
            if is_first:
                self._told[who] = time.time() + _MINUTE_S
        raise RateLimited(
            f"more than {item.amount} calls in a minute",
            retry_after_s=max(1, math.ceil(ends_at - time.time())),
            is_first=is_first,
        )
