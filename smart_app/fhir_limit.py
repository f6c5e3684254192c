"""How many requests one client may make of our FHIR API for one person, or for itself.

Spec: RFC 6585 section 4; OWASP ASVS 5.0.0 V2.4.1
"""

import json
import math
from typing import Final

from limits import RateLimitItemPerMinute
from limits.strategies import SlidingWindowCounterRateLimiter

from rayhook.auth.principal import SMARTUser
from rayhook.auth.rate import Rate
from rayhook.fhir.errors import RateLimited

REQUESTS_PER_MINUTE: Final = 3_000

_REQUESTS: Final = RateLimitItemPerMinute(REQUESTS_PER_MINUTE, namespace="fhir")
_TELLINGS: Final = RateLimitItemPerMinute(1, namespace="fhir-told")


class FHIRLimit:
    """Safe to share between threads."""

    def __init__(self, rate: Rate | None = None, *, requests: RateLimitItemPerMinute = _REQUESTS) -> None:
        self._rate = rate or Rate(SlidingWindowCounterRateLimiter)
        self._requests = requests

    def admit(self, user: SMARTUser) -> None:
        """Count one request. Raises RateLimited for one too many; only the first of a minute is for the audit."""
        who = json.dumps([user.ehr.id, user.client_id, user.fhir_user])
        if not self._rate.hit(self._requests, who):
            raise RateLimited(
                f"more than {self._requests.amount} requests in a minute",
                retry_after_s=max(1, math.ceil(self._rate.wait_s(self._requests, who))),
                is_first=self._rate.hit(_TELLINGS, who),
            )
