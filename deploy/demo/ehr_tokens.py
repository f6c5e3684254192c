"""The demo EHR's tokens: what each grants, which came from one authorization, and what is never used twice.

Spec: RFC 6749 sections 5.2, 6; RFC 9700 section 4.14.2 (refresh token rotation)
"""

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from rayhook.auth.scopes import Context, ScopeSet
from rayhook.deploy.demo.ehr_seed import PRACTITIONER_ID
from rayhook.fhir.errors import NotFound

CLIENT_ID = "rayhook"
TOKEN_LIFE_S = 300

_REFRESH_LIFE_S = 12 * 3600.0


class OAuthError(Exception):
    """Spec: RFC 6749 section 5.2."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error = error
        self.description = description
        self.status = 401 if error == "invalid_client" else 400


@dataclass(frozen=True, slots=True)
class Grant:
    """What one authorization allows. `patient_id` binds every read and write; a system's has none, nor a user."""

    patient_id: str | None
    scope: str
    client_id: str = CLIENT_ID
    user: str | None = f"Practitioner/{PRACTITIONER_ID}"
    id: str = field(default_factory=lambda: secrets.token_hex(16))


@dataclass(frozen=True, slots=True)
class AccessToken:
    grant: Grant
    expires_at: float

    @property
    def patient_id(self) -> str | None:
        return self.grant.patient_id

    @property
    def scope(self) -> str:
        return self.grant.scope

    @property
    def context(self) -> Context:
        """Of the scopes that count: a token of a system has no patient's."""
        return "system" if self.grant.patient_id is None else "patient"


@dataclass(frozen=True, slots=True)
class _RefreshToken:
    grant: Grant
    expires_at: float
    used: bool = False


@dataclass(slots=True)
class TokenStore:
    """Tokens in memory; of one grant all end together when one of its refresh tokens is used twice."""

    clock: Callable[[], float]
    life_s: int = TOKEN_LIFE_S
    _access: dict[str, AccessToken] = field(default_factory=dict)
    _refresh: dict[str, _RefreshToken] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def issue(self, grant: Grant) -> str:
        ScopeSet.parse(grant.scope)
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._access[token] = AccessToken(grant, self.clock() + self.life_s)
        return token

    def issue_refresh(self, grant: Grant) -> str:
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._refresh[token] = _RefreshToken(grant, self.clock() + _REFRESH_LIFE_S)
        return token

    def redeem_refresh(self, token: str) -> Grant:
        """Use the token up. Raises OAuthError; one that was used before ends everything of its grant."""
        with self._lock:
            found = self._refresh.get(token)
            if found is not None and not found.used:
                self._refresh[token] = _RefreshToken(found.grant, found.expires_at, used=True)
        if found is not None and found.used:
            self.end(found.grant)
        if found is None or found.used or found.expires_at < self.clock():
            raise OAuthError("invalid_grant", "refresh_token is unknown, used or expired")
        return found.grant

    def find(self, token: str) -> AccessToken:
        """Return what `token` grants; raises NotFound where it is unknown or has expired."""
        with self._lock:
            found = self._access.get(token)
        if found is None or found.expires_at < self.clock():
            raise NotFound("access token is unknown or has expired")
        return found

    def revoke(self, token: str) -> None:
        """Spec: RFC 7009 section 2.1: with a refresh token goes everything of its grant."""
        with self._lock:
            self._access.pop(token, None)
            refresh = self._refresh.get(token)
        if refresh is not None:
            self.end(refresh.grant)

    def end(self, grant: Grant) -> None:
        with self._lock:
            self._access = {key: one for key, one in self._access.items() if one.grant.id != grant.id}
            self._refresh = {key: one for key, one in self._refresh.items() if one.grant.id != grant.id}
