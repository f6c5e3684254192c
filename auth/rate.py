"""How often somebody may do something: counted by all processes together, and by each alone where they cannot.

Spec: OWASP ASVS 5.0.0 V2.4.1, V6.3.1
"""

import ipaddress
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

import structlog
from limits import RateLimitItem
from limits.errors import StorageError
from limits.storage import MemoryStorage, Storage
from limits.strategies import MovingWindowRateLimiter, RateLimiter

log = structlog.get_logger(__name__)

_AWAY_S: Final = 5.0
_V6_PREFIX: Final = 64  # what one household or hospital desk gets; single addresses in it are free to take

Digest = Callable[[str], str]
_Answer = TypeVar("_Answer")


def network_of(address: str) -> str:
    """Return whom an address stands for when tries are counted: itself, and its /64 where it is of IPv6.

    A socket of both kinds shows an IPv4 address within IPv6 (RFC 4291 section 2.5.5.2): all those are of one /64.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, _V6_PREFIX), strict=False))


def _as_it_is(value: str) -> str:
    """What stays in this process's memory need not be hidden."""
    return value


class Rate:
    """Counts in `shared`, which every process asks; in this process's memory where there is none.

    While `shared` does not answer, this process counts by itself: no call fails for it, and none is let in without
    a count. It is asked again after five seconds, so that not every call waits for it.
    shared: has to raise StorageError for whatever is wrong with it.
    digest: of what is counted, in `shared`: an address or a client's name is not for others to read.
    """

    def __init__(
        self,
        strategy: type[RateLimiter] = MovingWindowRateLimiter,
        shared: Storage | None = None,
        *,
        digest: Digest = _as_it_is,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own = strategy(MemoryStorage())
        self._shared = None if shared is None else strategy(shared)
        self._digest = digest
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._away_until: float | None = None

    def hit(self, item: RateLimitItem, who: str, *, cost: int = 1) -> bool:
        """Count, and return whether there was room; where there was none, nothing is counted."""
        return self._asked(lambda limiter, key: limiter.hit(item, key, cost=cost), who)

    def wait_s(self, item: RateLimitItem, who: str) -> float:
        """Return the seconds until there is room again."""
        resets_at = self._asked(lambda limiter, key: limiter.get_window_stats(item, key).reset_time, who)
        return max(0.0, resets_at - time.time())

    def _asked(self, question: Callable[[RateLimiter, str], _Answer], who: str) -> _Answer:
        if self._shared is not None and self._is_to_be_asked():
            try:
                answer = question(self._shared, self._digest(who))
            except StorageError as error:
                self._note_away(error)
            else:
                self._note_back()
                return answer
        return question(self._own, who)

    def _is_to_be_asked(self) -> bool:
        """Let one caller find out whether it is back; the others need not wait with it."""
        if self._away_until is None:
            return True
        with self._lock:
            now = self._monotonic()
            if self._away_until is None or now >= self._away_until:
                self._away_until = now + _AWAY_S
                return True
            return False

    def _note_away(self, error: StorageError) -> None:
        with self._lock:
            was_there = self._away_until is None
            self._away_until = self._monotonic() + _AWAY_S
        if was_there:
            cause = type(error.__cause__ or error).__name__
            log.warning("shared_limits_away", error_type=cause, counted="by each process alone")

    def _note_back(self) -> None:
        if self._away_until is not None:
            self._away_until = None
            log.info("shared_limits_back")
