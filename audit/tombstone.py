"""What stays of purged events: their leaves, under a statement signed when they were taken.

Whoever has the database alone can add a row, but not the signature: an event without both is missing.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import insert, select
from sqlmodel import Session

from rayhook.audit.handover import TrustedKeys
from rayhook.audit.models import AUDIT_PURGE, AUDIT_TOMBSTONE

_CONTEXT = "rayhook-audit-purge-v1"
_BATCH = 5000


@dataclass(frozen=True, slots=True)
class Tombstone:
    seq: int
    hash: str
    purge_id: int


@dataclass(frozen=True, slots=True)
class Purge:
    """One purge as it was stated, when the log had `log_size` events; `policy` says what it was allowed to take."""

    id: int
    log_size: int
    count: int
    first_seq: int
    last_seq: int
    root: str
    policy: str
    signed_at: str

    def statement(self) -> bytes:
        return rfc8785.dumps({"context": _CONTEXT, **asdict(self)})


@dataclass(frozen=True, slots=True)
class SignedPurge:
    purge: Purge
    signature: str

    @classmethod
    def by(cls, key: Ed25519PrivateKey, purge: Purge) -> "SignedPurge":
        return cls(purge, key.sign(purge.statement()).hex())

    def is_signed_by(self, key: Ed25519PublicKey) -> bool:
        try:
            key.verify(bytes.fromhex(self.signature), self.purge.statement())
        except (InvalidSignature, TypeError, ValueError, rfc8785.CanonicalizationError):
            return False
        return True

    def store(self, session: Session) -> None:
        session.execute(insert(AUDIT_PURGE).values({**asdict(self.purge), "signature": self.signature}))


class TombstoneDigest:
    """The running digest over the tombstones of one purge, in the order of their numbers."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.count = 0

    def add(self, seq: int, hash_: str) -> None:
        self._digest.update(f"{seq} {hash_}\n".encode())
        self.count += 1

    def root(self) -> str:
        return self._digest.hexdigest()


def digest_of(tombstones: Iterable[tuple[int, str]]) -> TombstoneDigest:
    digest = TombstoneDigest()
    for seq, hash_ in tombstones:
        digest.add(seq, hash_)
    return digest


def stored_purges(session: Session) -> list[SignedPurge]:
    query = select(AUDIT_PURGE).order_by(AUDIT_PURGE.c.id)
    return [
        SignedPurge(Purge(**{name: row[name] for name in Purge.__slots__}), row["signature"])
        for row in session.execute(query).mappings()
    ]


def tombstones(session: Session) -> Iterator[Tombstone]:
    """Yield all tombstones in the order of their events."""
    query = select(AUDIT_TOMBSTONE).order_by(AUDIT_TOMBSTONE.c.seq)
    for row in session.execute(query, execution_options={"yield_per": _BATCH}):
        yield Tombstone(row.seq, row.hash, row.purge_id)


def sound_purges(session: Session, keys: TrustedKeys) -> tuple[frozenset[int], list[int]]:
    """Return the ids of the purges whose signature and tombstones hold, and of those whose do not."""
    digests: dict[int, TombstoneDigest] = {}
    for tombstone in tombstones(session):
        digests.setdefault(tombstone.purge_id, TombstoneDigest()).add(tombstone.seq, tombstone.hash)
    stated = {signed.purge.id: signed for signed in stored_purges(session)}
    sound = frozenset(
        id_ for id_, digest in digests.items() if id_ in stated and _holds(stated[id_], digest, keys)
    )
    return sound, sorted((stated.keys() | digests.keys()) - sound)


def _holds(signed: SignedPurge, digest: TombstoneDigest, keys: TrustedKeys) -> bool:
    purge = signed.purge
    is_whole = (purge.root, purge.count) == (digest.root(), digest.count)
    return is_whole and keys.verifies(purge.log_size, signed.is_signed_by)
