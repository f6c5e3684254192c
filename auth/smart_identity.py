"""Who the EHR says has signed in: the id_token.

Spec: OpenID Connect Core 1.0 section 3.1.3.7; SMART App Launch 2.2.0, "Scopes for requesting identity data".
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rayhook.auth.id_token import IDTokenIssuer, verified_claims
from rayhook.auth.jwks import JWKSCache
from rayhook.auth.registry import EHR
from rayhook.auth.smart_configuration import SMARTConfiguration
from rayhook.fhir.errors import InvalidRequest, Unauthenticated
from rayhook.fhir.references import parse_reference

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
    issuer = IDTokenIssuer(
        issuer=configuration.issuer,
        jwks_uri=configuration.jwks_uri,
        allowed_origins=ehr.authorization_origins,
        client_id="" if ehr.smart is None else ehr.smart.client_id,
    )
    claims = verified_claims(id_token, issuer, nonce=nonce, jwks=jwks, clock=clock)
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


def _identity(claims: Mapping[str, Any], ehr: EHR) -> IDToken:
    fhir_user, name = claims.get("fhirUser"), claims.get("name")
    if fhir_user is not None and not isinstance(fhir_user, str):
        raise Unauthenticated("id_token fhirUser is not a string", code="fhir_user_malformed")
    return IDToken(
        subject=claims["sub"],
        fhir_user=None if fhir_user is None else own_reference(ehr, fhir_user),
        name=name if isinstance(name, str) else None,
        claims=claims,
    )
