"""Sign-ins at an OpenID provider that are under way, each tied to the browser that began it.

All functions work in the caller's transaction and never commit.

Spec: OpenID Connect Core 1.0 section 3.1; RFC 9700 section 4.7
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import delete
from sqlmodel import Field, Session, SQLModel, col

from rayhook.auth.keys import Keyring

Clock = Callable[[], float]

REQUEST_LIFE_S: Final = 600.0


class StaffOIDCRequestRow(SQLModel, table=True):
    __tablename__ = "staff_oidc_request"

    state_hash: str = Field(primary_key=True, max_length=64)
    browser_hash: str = Field(max_length=64)
    provider: str = Field(max_length=63)
    nonce: bytes
    code_verifier: bytes
    landing: str = Field(max_length=255)
    previous: str | None = Field(default=None, max_length=64)
    expires_at: float = Field(index=True)


@dataclass(frozen=True, slots=True)
class PendingSignIn:
    """What the callback needs of the request that it answers.

    `landing` is the path to go on to, `previous` the key of the session that the new one replaces.
    """

    provider: str
    landing: str
    nonce: str = field(repr=False)
    code_verifier: str = field(repr=False)
    previous: str | None = None


def begin_sign_in(
    session: Session,
    keyring: Keyring,
    pending: PendingSignIn,
    *,
    state: str,
    browser: str,
    clock: Clock = time.time,
) -> None:
    now, key = clock(), _hash(state)
    session.exec(delete(StaffOIDCRequestRow).where(col(StaffOIDCRequestRow.expires_at) <= now))
    session.add(
        StaffOIDCRequestRow(
            state_hash=key,
            browser_hash=_hash(browser),
            provider=pending.provider,
            nonce=_seal(keyring, "nonce", key, pending.nonce),
            code_verifier=_seal(keyring, "code_verifier", key, pending.code_verifier),
            landing=pending.landing,
            previous=pending.previous,
            expires_at=now + REQUEST_LIFE_S,
        )
    )
    session.flush()


def take_sign_in(
    session: Session, keyring: Keyring, *, state: str, browser: str, clock: Clock = time.time
) -> PendingSignIn | None:
    """Use the state up; commit before the code is exchanged, or a failed exchange gives the state back."""
    key = _hash(state)
    row = session.get(StaffOIDCRequestRow, key)
    if row is None or row.browser_hash != _hash(browser) or row.expires_at <= clock():
        return None
    pending = PendingSignIn(
        provider=row.provider,
        landing=row.landing,
        nonce=_open(keyring, "nonce", key, row.nonce),
        code_verifier=_open(keyring, "code_verifier", key, row.code_verifier),
        previous=row.previous,
    )
    session.expunge(row)
    taken = session.exec(delete(StaffOIDCRequestRow).where(col(StaffOIDCRequestRow.state_hash) == key))
    return pending if taken.rowcount == 1 else None


def _seal(keyring: Keyring, column: str, row: str, value: str) -> bytes:
    return keyring.seal(value.encode(), table="staff_oidc_request", column=column, row=row)


def _open(keyring: Keyring, column: str, row: str, value: bytes) -> str:
    return keyring.open(value, table="staff_oidc_request", column=column, row=row).decode()


def _hash(secret: str) -> str:
    """The secrets are 256 random bits: a plain digest cannot be searched."""
    return hashlib.sha256(secret.encode()).hexdigest()
