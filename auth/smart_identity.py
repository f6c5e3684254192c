"""Who the EHR says has signed in: the id_token.

Spec: OpenID Connect Core 1.0 section 3.1.3.7; SMART App Launch 2.2.0, "Scopes for requesting identity data".
"""

import hmac
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rayhook.auth.jose import UnverifiedToken, VerificationKey, take_apart, verify
from rayhook.auth.jwks import JWKSCache
from rayhook.auth.registry import EHR
from rayhook.auth.smart_configuration import SMARTConfiguration
from rayhook.fhir.errors import InvalidRequest, Unauthenticated
from rayhook.fhir.references import parse_reference

_ALGORITHMS: Final = ("ES256", "ES384", "RS256", "RS384")
_SKEW_S: Final = 30.0
_MAX_AGE_S: Final = 600.0
_FETCH_WAIT_S: Final = 3.0
_PERSONS: Final = frozenset({"Patient", "Person", "Practitioner", "PractitionerRole", "RelatedPerson"})


@dataclass(frozen=True, slots=True)
class IDToken:
    """`fhir_user` is relative where it lies on the EHR's own FHIR base, else absolute; `claims` are all of them."""

    subject: str
    fhir_user: str | None
    name: str | None = field(default=None, repr=False)
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def verify_id_token(
    id_token: str,
    *,
    ehr: EHR,
    configuration: SMARTConfiguration,
    nonce: str,
    jwks: JWKSCache,
    clock: Callable[[], float] = time.time,
) -> IDToken:
    """Return who signed in, after every check of the specification.

    Raises Unauthenticated with a code that says which check failed.
    """
    token = take_apart(id_token, algorithms=_ALGORITHMS)
    verify(token, _key(token, ehr, configuration, jwks))
    claims = token.claims
    if claims.get("iss") != configuration.issuer:
        raise Unauthenticated("id_token iss is not the EHR's", code="issuer_unknown")
    _check_audience(claims, "" if ehr.smart is None else ehr.smart.client_id)
    _check_times(claims, clock())
    claimed = claims.get("nonce")
    if not isinstance(claimed, str) or not hmac.compare_digest(claimed.encode(), nonce.encode()):
        raise Unauthenticated("id_token nonce is not the one sent", code="nonce_wrong")
    return _identity(claims, ehr)


def own_reference(ehr: EHR, fhir_user: str) -> str:
    """Return `Type/id` for a user on one of the EHR's FHIR bases, the absolute URL for one elsewhere."""
    try:
        reference = parse_reference(fhir_user)
    except InvalidRequest as error:
        raise Unauthenticated("fhirUser is not a reference", code="fhir_user_malformed") from error
    if reference.type not in _PERSONS:
        raise Unauthenticated("fhirUser is not a person's reference", code="fhir_user_malformed")
    if any(reference.is_at(base) for base in ehr.fhir_base_urls):
        return f"{reference.type}/{reference.id}"
    return str(reference)


def _key(
    token: UnverifiedToken, ehr: EHR, configuration: SMARTConfiguration, jwks: JWKSCache
) -> VerificationKey:
    if configuration.jwks_uri is None:
        raise Unauthenticated("the EHR publishes no keys for id_tokens", code="key_unknown")
    key = jwks.find(
        configuration.issuer,
        configuration.jwks_uri,
        allowed_origins=ehr.authorization_origins,
        kid=token.kid,
        algorithm=token.algorithm,
        wait_s=_FETCH_WAIT_S,
    )
    if key is None:
        raise Unauthenticated("id_token kid is not among the EHR's keys", code="key_unknown")
    return key


def _check_audience(claims: Mapping[str, Any], client_id: str) -> None:
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if client_id not in audiences:
        raise Unauthenticated("id_token aud is not this client", code="audience_wrong")
    if claims.get("azp", None if len(audiences) > 1 else client_id) != client_id:
        raise Unauthenticated("id_token azp is not this client", code="audience_wrong")


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    expires_at, issued_at = _seconds(claims, "exp"), _seconds(claims, "iat")
    if expires_at <= now - _SKEW_S:
        raise Unauthenticated("id_token exp is past", code="token_expired")
    if issued_at > now + _SKEW_S:
        raise Unauthenticated("id_token iat is in the future", code="issued_in_future")
    if issued_at < now - _MAX_AGE_S:
        raise Unauthenticated("id_token iat is too long ago", code="token_expired")


def _seconds(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unauthenticated(f"id_token {name} is not a number of seconds", code=f"{name}_malformed")
    return float(value)


def _identity(claims: Mapping[str, Any], ehr: EHR) -> IDToken:
    subject, fhir_user, name = (claims.get(key) for key in ("sub", "fhirUser", "name"))
    if not isinstance(subject, str) or not subject:
        raise Unauthenticated("id_token sub is missing", code="subject_malformed")
    if fhir_user is not None and not isinstance(fhir_user, str):
        raise Unauthenticated("id_token fhirUser is not a string", code="fhir_user_malformed")
    return IDToken(
        subject=subject,
        fhir_user=None if fhir_user is None else own_reference(ehr, fhir_user),
        name=name if isinstance(name, str) else None,
        claims=claims,
    )
