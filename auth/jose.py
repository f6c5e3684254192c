"""JSON Web Keys and signatures, read strictly.

Spec: RFC 7515, RFC 7517, RFC 7518; RFC 8725 (best current practice).
"""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry

from rayhook.fhir.errors import InvalidRequest, Unauthenticated

VerificationKey = ECKey | RSAKey

_MAX_TOKEN = 16 * 1024
_MIN_RSA_BITS: Final = 2048
_KEY_OF_ALGORITHM: Final[Mapping[str, tuple[str, str | None]]] = {
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "RS256": ("RSA", None),
    "RS384": ("RSA", None),
}
# Headers that would let a token bring its own key, or change how its signature is read.
_REFUSED_HEADERS: Final = ("crit", "b64", "jwk", "x5c", "x5u")
_PUBLIC_MEMBERS: Final = ("kty", "crv", "x", "y", "n", "e", "kid", "alg", "use")


@dataclass(frozen=True, slots=True)
class KeySet:
    """One issuer's public keys."""

    keys: tuple[VerificationKey, ...]

    def find(self, kid: str, algorithm: str) -> VerificationKey | None:
        return next((key for key in self.keys if _fits(key, kid, algorithm)), None)


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """A JWT taken apart; nothing in it is true before `verify`."""

    text: str
    header: Mapping[str, Any]
    claims: Mapping[str, Any]

    @property
    def algorithm(self) -> str:
        return str(self.header["alg"])

    @property
    def kid(self) -> str:
        return str(self.header["kid"])


def read_key_set(document: object) -> KeySet:
    """Return the signature keys of a JWK Set; keys of other kinds are left out, as RFC 7517 section 5 asks."""
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list):
        raise InvalidRequest("jwks.keys: must be a list", code="jwks_malformed")
    return KeySet(tuple(key for member in members if (key := _read_key(member)) is not None))


def take_apart(text: str, *, algorithms: Iterable[str]) -> UnverifiedToken:
    """Split a compact JWS and refuse every header that we would not verify."""
    parts = text.split(".")
    if len(text) > _MAX_TOKEN or len(parts) != 3:  # noqa: PLR2004 - header, payload and signature
        raise Unauthenticated("token is not a compact JWS", code="token_malformed")
    header = _json_object(parts[0])
    _check_header(header, algorithms)
    return UnverifiedToken(text, header, _json_object(parts[1]))


def verify(token: UnverifiedToken, key: VerificationKey) -> None:
    """Check the signature by the algorithm that the header names and `take_apart` allowed."""
    try:
        jws.deserialize_compact(token.text, key, algorithms=[token.algorithm], registry=_registry(token))
    except (JoseError, ValueError) as error:
        raise Unauthenticated("signature does not verify", code="signature_invalid") from error


def _registry(token: UnverifiedToken) -> JWSRegistry:
    registry = JWSRegistry(algorithms=[token.algorithm], strict_check_header=False)
    registry.max_header_length = _MAX_TOKEN
    return registry


def _check_header(header: Mapping[str, Any], algorithms: Iterable[str]) -> None:
    if header.get("alg") not in tuple(algorithms):
        raise Unauthenticated("alg is not among those allowed", code="algorithm_refused")
    refused = [name for name in _REFUSED_HEADERS if name in header]
    if refused:
        raise Unauthenticated(f"header {refused[0]} is not accepted", code="header_refused")
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        raise Unauthenticated("kid is missing", code="kid_missing")


def _json_object(part: str) -> Mapping[str, Any]:
    try:
        value = json.loads(_from_base64url(part), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Unauthenticated("token part is not base64url JSON", code="token_malformed") from error
    if not isinstance(value, dict):
        raise Unauthenticated("token part is not a JSON object", code="token_malformed")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _read_key(member: object) -> VerificationKey | None:
    if not isinstance(member, dict) or member.get("use", "sig") != "sig":
        return None
    public = {name: member[name] for name in _PUBLIC_MEMBERS if isinstance(member.get(name), str)}
    try:
        if public.get("kty") == "EC":
            return ECKey.import_key(public)
        if public.get("kty") == "RSA" and _bits(public.get("n", "")) >= _MIN_RSA_BITS:
            return RSAKey.import_key(public)
    except (JoseError, ValueError, KeyError):
        return None
    return None


def _bits(number: str) -> int:
    return int.from_bytes(_from_base64url(number)).bit_length()


def _from_base64url(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _fits(key: VerificationKey, kid: str, algorithm: str) -> bool:
    kty, curve = _KEY_OF_ALGORITHM[algorithm]
    members = key.as_dict(private=False)
    return (
        members.get("kid") == kid
        and members["kty"] == kty
        and (curve is None or members.get("crv") == curve)
        and members.get("alg", algorithm) == algorithm
    )
