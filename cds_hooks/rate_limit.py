"""How many calls a client may make: one that runs wild must not take the service from the others.

Spec: RFC 6585, section 4 (429); RFC 9110, 10.2.3 (Retry-After)
"""

import math
import time
from collections.abc import Callable
from threading import Lock
from typing import Final

from limits import RateLimitItemPerMinute
from limits.strategies import SlidingWindowCounterRateLimiter

from rayhook.auth.principal import CDSClientPrincipal
from rayhook.auth.rate import Rate
from rayhook.auth.registry import EHR
from rayhook.fhir.errors import RateLimited

_NAMESPACE: Final = "cds"
_LOTS: Final = 200
_LOT_LIFE_S: Final = 60.0
# More than any patient has of new studies: what asks for more sends the same ones changed again and again.
_OF_PATIENT: Final = RateLimitItemPerMinute(60, namespace="analyses-of-patient")
_TELLINGS: Final = RateLimitItemPerMinute(1, namespace="cds-told")


def _own_rate() -> Rate:
    return Rate(SlidingWindowCounterRateLimiter)


class RateLimit:
    """Counts by client and tenant; safe to share between threads.

    What a client may do in a minute stands in its registration. Calls are taken from the counter in lots of half a
    percent of that, as each question to the counter costs a thread or a network its time.
    """

    def __init__(self, rate: Rate | None = None, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate or _own_rate()
        self._monotonic = monotonic
        self._in_hand: dict[str, tuple[int, float]] = {}
        self._lock = Lock()

    def admit(self, principal: CDSClientPrincipal) -> None:
        """Count one call. Raises RateLimited, with the seconds to wait, for one too many.

        The first refusal of a minute is for the audit, the others are not: they would be a flood of their own.
        """
        item = RateLimitItemPerMinute(principal.ehr.cds_client.calls_per_minute, namespace=_NAMESPACE)
        who = f"{principal.issuer}\n{_registered_tenant(principal)}"
        if self._takes_one(who) or self._takes_lot(item, who):
            return
        raise RateLimited(
            f"more than {item.amount} calls in a minute",
            retry_after_s=max(1, math.ceil(self._rate.wait_s(item, who))),
            is_first=self._rate.hit(_TELLINGS, who),
        )

    def _takes_one(self, who: str) -> bool:
        """A lot that lies about for a minute is of another minute's count."""
        with self._lock:
            left, ends_at = self._in_hand.get(who, (0, 0.0))
            if not left or ends_at <= self._monotonic():
                return False
            self._in_hand[who] = (left - 1, ends_at)
            return True

    def _takes_lot(self, item: RateLimitItemPerMinute, who: str) -> bool:
        lot = max(1, item.amount // _LOTS)
        for asked in dict.fromkeys((lot, 1)):
            if self._rate.hit(item, who, cost=asked):
                with self._lock:
                    left, _ = self._in_hand.get(who, (0, 0.0))
                    self._in_hand[who] = (left + asked - 1, self._monotonic() + _LOT_LIFE_S)
                return True
        return False


class NewAnalyses:
    """How many studies may be begun for one EHR, and for one patient: images cost a thousand times what a call does."""

    def __init__(self, rate: Rate | None = None) -> None:
        self._rate = rate or _own_rate()

    def has_room(self, ehr: EHR, patient_id: str) -> bool:
        """Count one study of the patient, and return whether it may be begun now."""
        of_ehr = RateLimitItemPerMinute(ehr.cds_client.analyses_per_minute, namespace="analyses")
        return self._rate.hit(_OF_PATIENT, f"{ehr.id}\n{patient_id}") and self._rate.hit(of_ehr, ehr.id)


def _registered_tenant(principal: CDSClientPrincipal) -> str:
    """A tenant that nobody registered is whatever the client says: a new one a call would have no limit."""
    return principal.tenant or "" if principal.ehr.cds_client.tenants else ""
