"""How the demo EHR knows its registered client: by a fresh assertion, signed with a key of its JWK Set."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from rayhook.deploy.demo.ehr_tokens import CLIENT_ID, OAuthError

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

_ASSERTION_LIFE_S = 300


@dataclass(slots=True)
class ClientAuthenticator:
    """Remembers the assertions that were used."""

    _used_jti: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def authenticate(
        self,
        form: Mapping[str, str],
        client_keys: Callable[[], KeySet],
        *,
        audiences: tuple[str, ...],
        now: float,
    ) -> None:
        """Raise OAuthError unless the form carries a fresh assertion signed by the registered client.

        client_keys: reads the client's JWK Set anew, so that rotated keys count at once.
        Spec: SMART App Launch 2.2, "Client Authentication: Asymmetric"; RFC 7523
        """
        if form.get("client_assertion_type") != ASSERTION_TYPE:
            raise OAuthError("invalid_client", "client_assertion_type must be jwt-bearer")
        claims = _claims(form.get("client_assertion", ""), client_keys)
        expires = claims.get("exp")
        if claims.get("iss") != CLIENT_ID or claims.get("sub") != CLIENT_ID:
            raise OAuthError("invalid_client", "iss and sub must be the client_id")
        if claims.get("aud") not in [*audiences, *([audience] for audience in audiences)]:
            raise OAuthError("invalid_client", "aud must be the endpoint's URL")
        if not isinstance(expires, (int, float)) or not now < expires <= now + _ASSERTION_LIFE_S + 5:
            raise OAuthError("invalid_client", "exp must lie at most five minutes ahead")
        self._use_jti(claims.get("jti"), float(expires), now)

    def _use_jti(self, jti: object, expires_at: float, now: float) -> None:
        if not isinstance(jti, str) or not jti:
            raise OAuthError("invalid_client", "jti is required")
        with self._lock:
            self._used_jti = {known: until for known, until in self._used_jti.items() if until > now}
            if jti in self._used_jti:
                raise OAuthError("invalid_client", "jti was used before")
            self._used_jti[jti] = expires_at


def _claims(assertion: str, client_keys: Callable[[], KeySet]) -> dict[str, Any]:
    try:
        return dict(jwt.decode(assertion, client_keys(), algorithms=["ES384", "RS384"]).claims)
    except (JoseError, ValueError) as error:
        raise OAuthError("invalid_client", "client_assertion could not be verified") from error
