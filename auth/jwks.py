"""Public keys of EHRs, fetched from where they were registered, and kept for a while.

Spec: CDS Hooks 2.0.1, "Trusting CDS Clients" (`jku`); SMART App Launch 2.2.0, "Registering a client".
"""

import contextvars
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from rayhook.auth.jose import KeySet, VerificationKey, read_key_set
from rayhook.fhir.errors import InvalidRequest, RayhookError, UpstreamError
from rayhook.fhir.transport import Transport

_HTTP_OK: Final = 200
_MAX_BYTES: Final = 256 * 1024

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Entry:
    """What is known of one issuer's keys; `lock` guards all fields."""

    issuer: str
    url: str
    allowed_origins: frozenset[str]
    lock: threading.Lock = field(default_factory=threading.Lock)
    keys: KeySet | None = None
    fetched_at: float = -float("inf")
    tried_at: float = -float("inf")
    pending: threading.Event | None = None


class JWKSCache:
    """Key sets by issuer, fetched beside the call that needs them.

    A key that is known is answered at once, and refreshed in the background once it is `refresh_after_s` old.
    An unknown one is waited for, at most `wait_s`; the fetch goes on and serves the next call.
    At most one fetch per issuer in `cooldown_s`; as long as no key was ever had, one in `first_retry_s`.
    Keys that could not be refreshed work until `max_age_s`.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Callable[[], float] = time.time,
        *,
        wait_s: float = 0.25,
        fetch_deadline_s: float = 3.0,
        refresh_after_s: float = 3600.0,
        max_age_s: float = 24 * 3600.0,
        cooldown_s: float = 60.0,
        first_retry_s: float = 5.0,
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._wait_s = wait_s
        self._fetch_deadline_s = fetch_deadline_s
        self._refresh_after_s = refresh_after_s
        self._max_age_s = max_age_s
        self._cooldown_s = cooldown_s
        self._first_retry_s = first_retry_s
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._lock = threading.Lock()
        self._closed = False

    def find(
        self,
        issuer: str,
        url: str,
        *,
        allowed_origins: frozenset[str],
        kid: str,
        algorithm: str,
        wait_s: float | None = None,
    ) -> VerificationKey | None:
        """Return the issuer's key, or None where its key set does not have it or cannot be had."""
        entry = self._entry(issuer, url, allowed_origins)
        key = self._known(entry, kid, algorithm)
        pending = self._refresh(entry, wanted=key is None)
        if key is not None or pending is None:
            return key
        pending.wait(self._wait_s if wait_s is None else wait_s)
        return self._known(entry, kid, algorithm)

    def warm(self, issuer: str, url: str, *, allowed_origins: frozenset[str]) -> None:
        """Begin to fetch, so that the first call finds the keys."""
        self._refresh(self._entry(issuer, url, allowed_origins), wanted=False)

    def close(self) -> None:
        """Wait for fetches under way and begin no more; close the transport after this."""
        with self._lock:
            self._closed = True
            entries = list(self._entries.values())
        for entry in entries:
            with entry.lock:
                pending = entry.pending
            if pending is not None:
                pending.wait(self._fetch_deadline_s)

    def _entry(self, issuer: str, url: str, allowed_origins: frozenset[str]) -> _Entry:
        with self._lock:
            return self._entries.setdefault((issuer, url), _Entry(issuer, url, allowed_origins))

    def _known(self, entry: _Entry, kid: str, algorithm: str) -> VerificationKey | None:
        with entry.lock:
            if entry.keys is None or self._clock() - entry.fetched_at > self._max_age_s:
                return None
            return entry.keys.find(kid, algorithm)

    def _refresh(self, entry: _Entry, *, wanted: bool) -> threading.Event | None:
        """Return the fetch under way, after starting one if it is due and allowed."""
        with entry.lock:
            if self._closed or entry.pending is not None or not self._is_due(entry, wanted=wanted):
                return entry.pending
            entry.tried_at = self._clock()
            entry.pending = threading.Event()
            context = contextvars.copy_context()
            threading.Thread(
                target=context.run, args=(self._fetch, entry, entry.pending), name="jwks", daemon=True
            ).start()
            return entry.pending

    def _is_due(self, entry: _Entry, *, wanted: bool) -> bool:
        now = self._clock()
        cooldown_s = self._first_retry_s if entry.keys is None else self._cooldown_s
        stale = now - entry.fetched_at > self._refresh_after_s
        return (wanted or stale) and now - entry.tried_at >= cooldown_s

    def _fetch(self, entry: _Entry, done: threading.Event) -> None:
        try:
            keys = self._download(entry)
            with entry.lock:
                entry.keys, entry.fetched_at = keys, self._clock()
            log.info("jwks_fetched", issuer=entry.issuer, keys=len(keys.keys))
        except RayhookError as error:
            log.warning("jwks_fetch_failed", issuer=entry.issuer, code=error.code)
        finally:
            with entry.lock:
                entry.pending = None
            done.set()

    def _download(self, entry: _Entry) -> KeySet:
        response = self._transport.request(
            "GET",
            entry.url,
            allowed_origins=entry.allowed_origins,
            deadline_s=self._fetch_deadline_s,
            headers={"Accept": "application/json"},
            max_bytes=_MAX_BYTES,
        )
        if response.status != _HTTP_OK:
            raise UpstreamError("jwks: the key server did not answer 200", code="jwks_unavailable")
        return _read(response.body)


def _read(body: bytes) -> KeySet:
    """An empty set is a fault of the server, not news: it would lock out the EHR until the next fetch."""
    try:
        keys = read_key_set(json.loads(body))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("jwks: not JSON", code="jwks_malformed") from error
    if not keys.keys:
        raise InvalidRequest("jwks: no usable key", code="jwks_empty")
    return keys
