"""The counters of what is limited, in Redis where there is one, so that more processes do not mean higher limits."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import redis
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter, RateLimiter, SlidingWindowCounterRateLimiter

from rayhook.auth.keys import Keyring
from rayhook.auth.rate import Rate
from rayhook.deploy.redis import connect
from rayhook.deploy.settings import Settings

_TIMEOUT_S: Final = 0.1  # a hook has half a second in all, and is counted before anything else
_PURPOSE: Final = "limit"


@dataclass(frozen=True, slots=True)
class SharedLimits:
    """`client` is None where each process counts for itself."""

    keyring: Keyring
    namespace: str
    client: redis.Redis | None = None

    def calls(self) -> Rate:
        """Return the counter of calls in a minute, which may be a thousand a second."""
        return self._rate(SlidingWindowCounterRateLimiter)

    def tries(self) -> Rate:
        """Return the counter of tries to sign in, each with its own time."""
        return self._rate(MovingWindowRateLimiter)

    def _rate(self, strategy: type[RateLimiter]) -> Rate:
        if self.client is None:
            return Rate(strategy)
        storage = RedisStorage(
            "redis://",
            connection_pool=self.client.connection_pool,
            key_prefix=f"{self.namespace}:limits",
            wrap_exceptions=True,
        )
        return Rate(strategy, storage, digest=self._digest)

    def _digest(self, value: str) -> str:
        return self.keyring.blind_index(value, purpose=_PURPOSE)


@contextmanager
def shared_limits(settings: Settings, keyring: Keyring) -> Iterator[SharedLimits]:
    """Yield the counters of the settings' Redis, which need not be there yet."""
    if settings.redis_url is None:
        yield SharedLimits(keyring, settings.redis_namespace)
        return
    client = connect(settings.redis_url, ca_bundle=settings.ca_bundle, timeout_s=_TIMEOUT_S)
    try:
        yield SharedLimits(keyring, settings.redis_namespace, client)
    finally:
        client.close()
