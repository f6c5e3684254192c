"""Which key may have signed what: the pinned one, and those it has handed over to or taken over from.

A hand-over is signed by both keys, so that whoever has pinned either can go on to the other. Each key counts
for its own stretch of the log only: a retired key that was stolen later signs nothing new.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import insert, select
from sqlmodel import Session

from rayhook.audit.models import AUDIT_KEY

_CONTEXT = "rayhook-audit-key-handover-v1"


@dataclass(frozen=True, slots=True)
class HandOver:
    """From event `size` on, what `old_key` signed is signed by `new_key`; both in hexadecimal."""

    size: int
    old_key: str
    new_key: str
    signed_at: str
    old_signature: str
    new_signature: str

    @classmethod
    def signed(
        cls, old: Ed25519PrivateKey, new: Ed25519PrivateKey, *, size: int, signed_at: str
    ) -> "HandOver":
        names = key_name(old.public_key()), key_name(new.public_key())
        statement = _statement(size, *names, signed_at)
        return cls(size, *names, signed_at, old.sign(statement).hex(), new.sign(statement).hex())

    def is_signed(self) -> bool:
        try:
            statement = _statement(self.size, self.old_key, self.new_key, self.signed_at)
            key_named(self.old_key).verify(bytes.fromhex(self.old_signature), statement)
            key_named(self.new_key).verify(bytes.fromhex(self.new_signature), statement)
        except (InvalidSignature, TypeError, ValueError, rfc8785.CanonicalizationError):
            return False
        return True

    def store(self, session: Session) -> None:
        session.execute(insert(AUDIT_KEY).values(asdict(self)))


@dataclass(frozen=True, slots=True)
class KeyPeriod:
    """`key` signs the log from size `first` to `last`; None: to its end."""

    key: Ed25519PublicKey
    first: int
    last: int | None

    def covers(self, size: object) -> bool:
        return isinstance(size, int) and self.first <= size and (self.last is None or size <= self.last)


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """The periods that follow from one pinned key; `refused` are the sizes of hand-overs that do not hold."""

    periods: tuple[KeyPeriod, ...]
    refused: tuple[int, ...] = ()

    def verifies(self, size: object, is_signed_by: Callable[[Ed25519PublicKey], bool]) -> bool:
        return any(period.covers(size) and is_signed_by(period.key) for period in self.periods)

    @property
    def current(self) -> Ed25519PublicKey:
        return self.periods[-1].key


def stored_hand_overs(session: Session) -> list[HandOver]:
    query = select(*(AUDIT_KEY.c[name] for name in HandOver.__slots__)).order_by(AUDIT_KEY.c.id)
    return [HandOver(*row) for row in session.execute(query)]


def trusted_keys(pinned: Ed25519PublicKey, hand_overs: Iterable[HandOver]) -> TrustedKeys:
    """Follow the hand-overs from the pinned key in both directions.

    A hand-over that is not validly signed, or the second one from or to the same key, is refused.
    """
    valid: list[HandOver] = []
    refused: list[int] = []
    for hand_over in hand_overs:
        if hand_over.is_signed() and not _is_fork(hand_over, valid):
            valid.append(hand_over)
        else:
            refused.append(hand_over.size)
    name = key_name(pinned)
    earlier, later = _followed_back(name, valid), _followed_on(name, valid)
    steps = [*earlier, *later]
    names = [*(step.old_key for step in earlier), name, *(step.new_key for step in later)]
    sizes = [step.size for step in steps]
    periods = zip(names, [0, *sizes], [*sizes, None], strict=True)
    return TrustedKeys(
        tuple(KeyPeriod(key_named(name), first, last) for name, first, last in periods), tuple(refused)
    )


def key_name(key: Ed25519PublicKey) -> str:
    return key.public_bytes_raw().hex()


def key_named(name: str) -> Ed25519PublicKey:
    """Raise ValueError for what is no key in hexadecimal."""
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(name))


def _is_fork(hand_over: HandOver, before: Sequence[HandOver]) -> bool:
    return any(
        one.old_key == hand_over.old_key or one.new_key == hand_over.new_key or one.size > hand_over.size
        for one in before
    )


def _followed_on(name: str, hand_overs: Sequence[HandOver]) -> list[HandOver]:
    steps = []
    for hand_over in hand_overs:
        if hand_over.old_key == name:
            steps.append(hand_over)
            name = hand_over.new_key
    return steps


def _followed_back(name: str, hand_overs: Sequence[HandOver]) -> list[HandOver]:
    steps: list[HandOver] = []
    for hand_over in reversed(hand_overs):
        if hand_over.new_key == name:
            steps.insert(0, hand_over)
            name = hand_over.old_key
    return steps


def _statement(size: int, old_key: str, new_key: str, signed_at: str) -> bytes:
    return rfc8785.dumps(
        {"context": _CONTEXT, "new": new_key, "old": old_key, "signed_at": signed_at, "size": size}
    )
