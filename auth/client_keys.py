"""The keys that sign our client assertions: two of each kind, so that they can be changed without a gap.

EHRs keep our JWK Set for a while. So the key that will sign next is published before it signs, and the one
that signed before stays published until every assertion and every copy of the set with it has run out.

Spec: SMART App Launch 2.2.0, "Client Authentication: Asymmetric", "Registering a client"; RFC 7517
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc.jwk import ECKey, RSAKey

SigningAlgorithm = Literal["ES384", "RS384"]
KeyState = Literal["current", "next", "retired"]

ALGORITHMS: Final[tuple[SigningAlgorithm, ...]] = ("ES384", "RS384")
GRACE_S: Final = 24 * 3600.0

_RSA_BITS: Final = 3072


class StoredClientKey(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One private key as the keyring file has it: PKCS #8 PEM. A retired key is published until `until`."""

    pem: str
    state: KeyState
    until: float | None = None

    def __repr__(self) -> str:
        """Tracebacks that show local variables must not show keys."""
        return "StoredClientKey(...)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


@dataclass(frozen=True, slots=True)
class ClientKeyStatus:
    """What may be told of a key."""

    kid: str
    algorithm: SigningAlgorithm
    state: KeyState
    until: float | None = None


class ClientKeys:
    """The keys of one algorithm. Raises ValueError for a key that cannot be read or no current key."""

    def __init__(self, algorithm: SigningAlgorithm, stored: Sequence[StoredClientKey]) -> None:
        if sum(key.state == "current" for key in stored) != 1:
            raise ValueError("not exactly one current key")
        self._algorithm = algorithm
        self._stored = tuple(stored)

    @property
    def current(self) -> ECKey | RSAKey:
        return next(key for key, stored in self._imported if stored.state == "current")

    def published(self, now: float) -> tuple[ECKey | RSAKey, ...]:
        """Return the current key, the next one, and those retired of late."""
        return tuple(key for key, stored in self._imported if _is_published(stored, now))

    def statuses(self) -> tuple[ClientKeyStatus, ...]:
        return tuple(
            ClientKeyStatus(str(key.kid), self._algorithm, stored.state, stored.until)
            for key, stored in self._imported
        )

    @cached_property
    def _imported(self) -> tuple[tuple[ECKey | RSAKey, StoredClientKey], ...]:
        return tuple((_import(self._algorithm, stored.pem), stored) for stored in self._stored)


def new_client_keys(algorithm: SigningAlgorithm) -> list[StoredClientKey]:
    return [StoredClientKey(_new_pem(algorithm), "current"), StoredClientKey(_new_pem(algorithm), "next")]


def with_next(algorithm: SigningAlgorithm, pem: str) -> list[StoredClientKey]:
    """Return the keys of an installation that so far had one."""
    return [StoredClientKey(pem, "current"), StoredClientKey(_new_pem(algorithm), "next")]


def rotated(
    algorithm: SigningAlgorithm, stored: Iterable[StoredClientKey], *, now: float, grace_s: float
) -> list[StoredClientKey]:
    """Return the keys after the next one has taken over; what is retired too long is left out."""
    kept = [key for key in stored if key.state != "retired" or _is_published(key, now)]
    turns: Mapping[KeyState, KeyState] = {"current": "retired", "next": "current", "retired": "retired"}
    turned = [
        StoredClientKey(key.pem, turns[key.state], now + grace_s if key.state == "current" else key.until)
        for key in kept
    ]
    if not any(key.state == "next" for key in kept):
        turned.append(StoredClientKey(_new_pem(algorithm), "current"))
    return [*turned, StoredClientKey(_new_pem(algorithm), "next")]


def _is_published(stored: StoredClientKey, now: float) -> bool:
    return stored.state != "retired" or (stored.until or 0.0) > now


def _import(algorithm: SigningAlgorithm, pem: str) -> ECKey | RSAKey:
    key: ECKey | RSAKey = (
        ECKey.import_key(pem, {"use": "sig", "alg": algorithm})
        if algorithm == "ES384"
        else RSAKey.import_key(pem, {"use": "sig", "alg": algorithm})
    )
    key.ensure_kid()
    return key


def _new_pem(algorithm: SigningAlgorithm) -> str:
    if algorithm == "ES384":
        return private_pem(ec.generate_private_key(ec.SECP384R1()))
    return private_pem(rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS))


def private_pem(key: PrivateKeyTypes) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")
