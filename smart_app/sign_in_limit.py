"""How often one address may try to sign in, whatever the account.

Spec: NIST SP 800-63B-4 section 3.2.2; OWASP ASVS 5.0.0 V6.3.1; RFC 6585 section 4
"""

import math
from typing import Final

from limits import RateLimitItemPerMinute

from rayhook.auth.rate import Rate, network_of
from rayhook.fhir.errors import RateLimited
from rayhook.fhir.text import translatable

_TRIES: Final = RateLimitItemPerMinute(20, 5, namespace="sign-in")
_TELLINGS: Final = RateLimitItemPerMinute(1, 5, namespace="sign-in-told")


class SignInLimit:
    """Safe to share between threads."""

    def __init__(self, rate: Rate | None = None) -> None:
        self._rate = rate or Rate()

    def admit(self, address: str) -> None:
        """Count one try.

        Raises RateLimited for one too many; only the first of a window is for the audit, the others would flood it.
        """
        network = network_of(address)
        if not self._rate.hit(_TRIES, network):
            raise RateLimited(
                translatable("too many sign-ins from this address: wait a few minutes"),
                retry_after_s=max(1, math.ceil(self._rate.wait_s(_TRIES, network))),
                is_first=self._rate.hit(_TELLINGS, network),
            )
