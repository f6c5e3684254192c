"""The JWT by which a CDS client says who it is.

Spec: CDS Hooks 2.0.1, "Trusting CDS Clients"; RFC 7519; RFC 8725.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from rayhook.auth.database_types import Sessions
from rayhook.auth.jose import KeySet, UnverifiedToken, VerificationKey, take_apart, verify
from rayhook.auth.jwks import JWKSCache
from rayhook.auth.principal import CDSClientPrincipal
from rayhook.auth.registry import EHR, EHRRegistry
from rayhook.auth.replay import ReplayMemory, UsedJTI
from rayhook.fhir.errors import Unauthenticated

__all__ = ["ALGORITHMS", "JWKSCache", "ReplayMemory", "UsedJTI", "verify_cds_client"]

ALGORITHMS: Final = ("ES384", "RS384")
MAX_LIFE_S: Final = 300.0
SKEW_S: Final = 30.0
_MAX_JTI: Final = 255


def verify_cds_client(
    authorization: str | None,
    *,
    audience: str,
    registry: EHRRegistry,
    jwks: JWKSCache,
    sessions: Sessions,
    clock: Callable[[], float] = time.time,
) -> CDSClientPrincipal:
    """Return whose key signed the bearer token, and use up its `jti`.

    audience: the exact URL of the endpoint that was called.
    Raises Unauthenticated; its `code` says why, for the audit and never for the caller.
    """
    token = take_apart(_bearer(authorization), algorithms=ALGORITHMS)
    _check_type(token.header)
    ehr = _issuer_of(token, registry)
    _check_jku(token.header, ehr)
    verify(token, _key(token, ehr, jwks))
    now = clock()
    expires_at = _check_times(token.claims, now)
    _check_audience(token.claims, audience)
    principal = CDSClientPrincipal(
        ehr=ehr,
        issuer=ehr.cds_client.issuer,
        jti=_jti(token.claims),
        tenant=_tenant(token.claims, ehr),
        expires_at=expires_at,
    )
    ReplayMemory(sessions).use(principal.issuer, principal.jti, expires_at=expires_at, now=now)
    return principal


def _bearer(authorization: str | None) -> str:
    if not authorization:
        raise Unauthenticated("no Authorization header", code="token_missing")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("Authorization is not Bearer", code="token_missing")
    return token


def _check_type(header: Mapping[str, Any]) -> None:
    if str(header.get("typ")).upper() != "JWT":
        raise Unauthenticated("typ is not JWT", code="type_refused")


def _issuer_of(token: UnverifiedToken, registry: EHRRegistry) -> EHR:
    issuer = token.claims.get("iss")
    ehr = registry.by_issuer(issuer) if isinstance(issuer, str) else None
    if ehr is None:
        raise Unauthenticated("iss is not registered", code="issuer_unknown")
    return ehr


def _check_jku(header: Mapping[str, Any], ehr: EHR) -> None:
    """Keys come from the registered URL alone; a `jku` that names another is refused, never fetched."""
    if "jku" in header and (ehr.cds_client.jwks_url is None or header["jku"] != ehr.cds_client.jwks_url):
        raise Unauthenticated("jku is not the registered URL", code="jku_refused")


def _key(token: UnverifiedToken, ehr: EHR, jwks: JWKSCache) -> VerificationKey:
    client = ehr.cds_client
    if client.jwks_url is None:
        key = (client.keys or KeySet(())).find(token.kid, token.algorithm)
    else:
        key = jwks.find(
            client.issuer,
            client.jwks_url,
            allowed_origins=ehr.jwks_origins,
            kid=token.kid,
            algorithm=token.algorithm,
        )
    if key is None:
        raise Unauthenticated("kid is not among the issuer's keys", code="key_unknown")
    return key


def _check_times(claims: Mapping[str, Any], now: float) -> float:
    """No leeway on the end of life; a clock ahead of ours may be so by SKEW_S."""
    expires_at, issued_at = _seconds(claims, "exp"), _seconds(claims, "iat")
    if expires_at <= now:
        raise Unauthenticated("exp is past", code="token_expired")
    if expires_at - now > MAX_LIFE_S + SKEW_S or expires_at - issued_at > MAX_LIFE_S:
        raise Unauthenticated("exp is more than five minutes ahead", code="expiry_too_far")
    starts_at = max(issued_at, _seconds(claims, "nbf") if "nbf" in claims else issued_at)
    if starts_at > now + SKEW_S:
        raise Unauthenticated("iat or nbf is in the future", code="issued_in_future")
    return expires_at


def _seconds(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unauthenticated(f"{name} is not a number of seconds", code=f"{name}_malformed")
    return float(value)


def _check_audience(claims: Mapping[str, Any], audience: str) -> None:
    if claims.get("aud") not in (audience, [audience]):
        raise Unauthenticated("aud is not the URL that was called", code="audience_wrong")


def _jti(claims: Mapping[str, Any]) -> str:
    jti = claims.get("jti")
    if not isinstance(jti, str) or not 0 < len(jti) <= _MAX_JTI:
        raise Unauthenticated("jti is missing or not a short string", code="jti_malformed")
    return jti


def _tenant(claims: Mapping[str, Any], ehr: EHR) -> str | None:
    tenant, allowed = claims.get("tenant"), ehr.cds_client.tenants
    if tenant is not None and not isinstance(tenant, str):
        raise Unauthenticated("tenant is not a string", code="tenant_refused")
    if allowed and tenant not in allowed:
        raise Unauthenticated("tenant is not registered", code="tenant_refused")
    return tenant
