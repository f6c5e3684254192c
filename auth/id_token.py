"""The checks of an id_token that do not depend on who issued it.

Spec: OpenID Connect Core 1.0 section 3.1.3.7
"""

import hmac
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rayhook.auth.jose import UnverifiedToken, VerificationKey, take_apart, verify
from rayhook.auth.jwks import JWKSCache
from rayhook.fhir.errors import Unauthenticated

_ALGORITHMS: Final = ("ES256", "ES384", "RS256", "RS384")
_SKEW_S: Final = 30.0
_MAX_AGE_S: Final = 600.0
_FETCH_WAIT_S: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IDTokenIssuer:
    """Who issues the tokens, where its keys are, and which client they are for."""

    issuer: str
    jwks_uri: str | None
    allowed_origins: frozenset[str]
    client_id: str


def verified_claims(
    id_token: str,
    issuer: IDTokenIssuer,
    *,
    nonce: str,
    jwks: JWKSCache,
    clock: Callable[[], float] = time.time,
) -> Mapping[str, Any]:
    """Return the claims after every check of the specification; `sub` is a text that is not empty.

    Raises Unauthenticated with a code that says which check failed.
    """
    token = take_apart(id_token, algorithms=_ALGORITHMS)
    verify(token, _key(token, issuer, jwks))
    claims = token.claims
    if claims.get("iss") != issuer.issuer:
        raise Unauthenticated("id_token iss is not the one registered", code="issuer_unknown")
    _check_audience(claims, issuer.client_id)
    _check_times(claims, clock())
    claimed = claims.get("nonce")
    if not isinstance(claimed, str) or not hmac.compare_digest(claimed.encode(), nonce.encode()):
        raise Unauthenticated("id_token nonce is not the one sent", code="nonce_wrong")
    if not isinstance(claims.get("sub"), str) or not claims["sub"]:
        raise Unauthenticated("id_token sub is missing", code="subject_malformed")
    return claims


def seconds_of(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unauthenticated(f"id_token {name} is not a number of seconds", code=f"{name}_malformed")
    return float(value)


def _key(token: UnverifiedToken, issuer: IDTokenIssuer, jwks: JWKSCache) -> VerificationKey:
    if issuer.jwks_uri is None:
        raise Unauthenticated("the issuer publishes no keys for id_tokens", code="key_unknown")
    key = jwks.find(
        issuer.issuer,
        issuer.jwks_uri,
        allowed_origins=issuer.allowed_origins,
        kid=token.kid,
        algorithm=token.algorithm,
        wait_s=_FETCH_WAIT_S,
    )
    if key is None:
        raise Unauthenticated("id_token kid is not among the issuer's keys", code="key_unknown")
    return key


def _check_audience(claims: Mapping[str, Any], client_id: str) -> None:
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if client_id not in audiences:
        raise Unauthenticated("id_token aud is not this client", code="audience_wrong")
    if claims.get("azp", None if len(audiences) > 1 else client_id) != client_id:
        raise Unauthenticated("id_token azp is not this client", code="audience_wrong")


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    expires_at, issued_at = seconds_of(claims, "exp"), seconds_of(claims, "iat")
    if expires_at <= now - _SKEW_S:
        raise Unauthenticated("id_token exp is past", code="token_expired")
    if issued_at > now + _SKEW_S:
        raise Unauthenticated("id_token iat is in the future", code="issued_in_future")
    if issued_at < now - _MAX_AGE_S:
        raise Unauthenticated("id_token iat is too long ago", code="token_expired")
