"""Tokens of our own, with no user: for reads in the background, and for results that nobody's token can write.

Spec: SMART App Launch 2.2.0, "Backend Services"; RFC 6749 section 4.4
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR
from rayhook.auth.scopes import ScopeSet
from rayhook.auth.smart_configuration import discover_token_endpoint
from rayhook.auth.token_endpoint import Clock, Credentials, TokenEndpoint, TokenResponse
from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.transport import Transport

Issued = Callable[[EHR, ScopeSet], None]

MARGIN_S: Final = 30.0


@dataclass(slots=True)
class _Slot:
    """The token of one EHR and scope set. Whoever holds the lock asks; the others wait and find it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    token: TokenResponse | None = None


class BackendTokens:
    """One per process: tokens are kept in memory until they have 30 s left, never on a disk.

    `issued` is told of every token that an EHR gave, before it is used: the audit.
    """

    def __init__(
        self, transport: Transport, keyring: Keyring, *, issued: Issued, clock: Clock = time.time
    ) -> None:
        self._transport = transport
        self._keyring = keyring
        self._issued = issued
        self._clock = clock
        self._slots: dict[tuple[str, tuple[str, ...]], _Slot] = {}
        self._lock = threading.Lock()

    def token(self, ehr: EHR, *, rejected: str | None = None) -> TokenResponse:
        """Return a token for the scopes registered for us there; `rejected` is one that the EHR said 401 to.

        Raises UpstreamRefused with code `oauth_…` where the EHR does not know us, and what Transport raises.
        """
        if ehr.backend is None:
            raise InvalidRequest("this EHR has no backend client registered", code="backend_not_registered")
        slot = self._slot((ehr.id, ehr.backend.scopes))
        with slot.lock:
            found = slot.token
            if found is None or found.access_token == rejected or self._left_s(found) <= MARGIN_S:
                slot.token = None
                found = self._ask(ehr)
                slot.token = found
            return found

    def _slot(self, key: tuple[str, tuple[str, ...]]) -> _Slot:
        with self._lock:
            return self._slots.setdefault(key, _Slot())

    def _ask(self, ehr: EHR) -> TokenResponse:
        client = ehr.backend
        assert client is not None
        token_endpoint, offered = discover_token_endpoint(self._transport, ehr)
        endpoint = TokenEndpoint(
            transport=self._transport,
            keyring=self._keyring,
            credentials=Credentials(
                client_id=client.client_id,
                token_endpoint=token_endpoint,
                algorithm=client.assertion_algorithm or offered,
                jku=client.jku,
            ),
            allowed_origins=ehr.authorization_origins,
            clock=self._clock,
        )
        token = endpoint.request_token({"grant_type": "client_credentials", "scope": " ".join(client.scopes)})
        self._issued(ehr, token.scopes)
        return token

    def _left_s(self, token: TokenResponse) -> float:
        return token.expires_at - self._clock()
