"""How often one address may do what nobody has to be known for: try to sign in, whatever the account, or launch.

Spec: NIST SP 800-63B-4 section 3.2.2; OWASP ASVS 5.0.0 V2.4.1, V6.3.1; RFC 6585 section 4
"""

import math
from typing import ClassVar, Final

from limits import RateLimitItem, RateLimitItemPerMinute

from rayhook.auth.rate import Rate, network_of
from rayhook.fhir.errors import RateLimited
from rayhook.fhir.text import translatable

_MINUTES: Final = 5


class AddressLimit:
    """Safe to share between threads."""

    tries: ClassVar[RateLimitItem]
    tellings: ClassVar[RateLimitItem]
    message: ClassVar[str]

    def __init__(self, rate: Rate | None = None) -> None:
        self._rate = rate or Rate()

    def admit(self, address: str) -> None:
        """Count one try.

        Raises RateLimited for one too many; only the first of a window is for the audit, the others would flood it.
        """
        network = network_of(address)
        if not self._rate.hit(self.tries, network):
            raise RateLimited(
                self.message,
                retry_after_s=max(1, math.ceil(self._rate.wait_s(self.tries, network))),
                is_first=self._rate.hit(self.tellings, network),
            )


class SignInLimit(AddressLimit):
    tries = RateLimitItemPerMinute(20, _MINUTES, namespace="sign-in")
    tellings = RateLimitItemPerMinute(1, _MINUTES, namespace="sign-in-told")
    message = translatable("too many sign-ins from this address: wait a few minutes")


class LaunchLimit(AddressLimit):
    """A whole hospital may share one address, at the change of a shift."""

    tries = RateLimitItemPerMinute(3000, _MINUTES, namespace="launch")
    tellings = RateLimitItemPerMinute(1, _MINUTES, namespace="launch-told")
    message = translatable("too many launches from this address: wait a few minutes")
