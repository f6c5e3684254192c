"""Sessions of the staff; the browser holds only an opaque id.

All functions work in the caller's transaction and never commit.

Spec: 45 CFR 164.312(a)(2)(iii); NIST SP 800-63B-4 section 5; OWASP ASVS 5.0.0 V7
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import delete
from sqlmodel import Field, Session, SQLModel, col, or_

from rayhook.auth.accounts import StaffAccountRow, agent_of_account, open_column
from rayhook.auth.keys import Keyring
from rayhook.auth.roles import STAFF_ROLES, Permission, Role, permissions_of, read_roles, written_roles

Clock = Callable[[], float]

SESSION_LIFE_S: Final = 12 * 3600.0
SESSION_IDLE_S: Final = 15 * 60.0
PROOF_LIFE_S: Final = 10 * 60.0
_TOUCH_EVERY_S: Final = 30.0


class StaffSessionRow(SQLModel, table=True):
    """Of a local account, whose roles hold; or of somebody whom an OpenID provider named, with the roles it gave."""

    __tablename__ = "staff_session"

    id_hash: str = Field(primary_key=True, max_length=64)
    account_id: str | None = Field(default=None, max_length=32, index=True)
    provider: str | None = Field(default=None, max_length=63)
    name: bytes | None = None
    agent: bytes | None = None
    roles: str = Field(default="", max_length=255)
    proved_at: float
    expires_at: float = Field(index=True)
    last_used_at: float = Field(index=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class StaffMember:
    """Somebody of the staff with a live session; `agent` is who acts, for the audit.

    `proved_at` is when the second factor was last shown, `provider` the OpenID provider of who has no account here.
    """

    session_key: str = field(repr=False)
    name: str
    agent: str
    roles: frozenset[Role]
    proved_at: float
    account_id: str | None = None
    provider: str | None = None

    def can(self, permission: Permission) -> bool:
        return permission in permissions_of(self.roles)

    def proved_within(self, seconds: float, now: float) -> bool:
        return self.proved_at > now - seconds


def open_account_session(session: Session, account_id: str, *, clock: Clock = time.time) -> str:
    """Return the new session's id, of which only the hash is kept; sessions that ended are erased."""
    session_id, row = _new(session, clock())
    row.account_id = account_id
    account = session.get(StaffAccountRow, account_id)
    if account is not None:
        account.signed_in_at = clock()
    session.flush()
    return session_id


def open_provider_session(
    session: Session,
    keyring: Keyring,
    *,
    provider: str,
    agent: str,
    name: str,
    roles: Iterable[Role],
    proved_at: float,
    clock: Clock = time.time,
) -> str:
    session_id, row = _new(session, clock())
    row.provider, row.proved_at = provider, proved_at
    row.agent = _seal(keyring, "agent", row.id_hash, agent)
    row.name = _seal(keyring, "name", row.id_hash, name)
    row.roles = written_roles(frozenset(roles) & STAFF_ROLES)
    session.flush()
    return session_id


def find_staff_session(
    session: Session, keyring: Keyring, session_id: str, *, clock: Clock = time.time
) -> StaffMember | None:
    """Return who it is and note the use; one that ended, or whose account may not sign in, is erased.

    Commit also where nothing else was written, or the use is not noted.
    """
    now = clock()
    row = session.get(StaffSessionRow, _hash(session_id))
    if row is None:
        return None
    member = None if _has_ended(row, now) else _member(session, keyring, row)
    if member is None:
        session.delete(row)
    elif now - row.last_used_at >= _TOUCH_EVERY_S:
        row.last_used_at = now
    session.flush()
    return member


def note_proof(session: Session, member: StaffMember, *, clock: Clock = time.time) -> None:
    """Note that the second factor was shown once more."""
    row = session.get(StaffSessionRow, member.session_key)
    if row is not None:
        row.proved_at = clock()
        session.flush()


def close_staff_session(session: Session, member: StaffMember) -> None:
    close_session_by_key(session, member.session_key)


def close_session_by_key(session: Session, key: str) -> None:
    session.exec(delete(StaffSessionRow).where(col(StaffSessionRow.id_hash) == key))


def close_sessions_of(session: Session, account_id: str) -> int:
    """Erase all sessions of an account; return how many there were."""
    return session.exec(delete(StaffSessionRow).where(col(StaffSessionRow.account_id) == account_id)).rowcount


def _new(session: Session, now: float) -> tuple[str, StaffSessionRow]:
    ended = or_(
        col(StaffSessionRow.expires_at) <= now, col(StaffSessionRow.last_used_at) <= now - SESSION_IDLE_S
    )
    session.exec(delete(StaffSessionRow).where(ended))
    session_id = secrets.token_urlsafe(32)
    row = StaffSessionRow(
        id_hash=_hash(session_id), proved_at=now, expires_at=now + SESSION_LIFE_S, last_used_at=now
    )
    session.add(row)
    return session_id, row


def _has_ended(row: StaffSessionRow, now: float) -> bool:
    return row.expires_at <= now or row.last_used_at <= now - SESSION_IDLE_S


def _member(session: Session, keyring: Keyring, row: StaffSessionRow) -> StaffMember | None:
    if row.account_id is None:
        return _guest(keyring, row)
    account = session.get(StaffAccountRow, row.account_id)
    if account is None or account.disabled or account.password_hash is None:
        return None
    name = open_column(keyring, account, "name") or ""
    return StaffMember(
        session_key=row.id_hash,
        name=name,
        agent=agent_of_account(name),
        roles=read_roles(account.roles),
        proved_at=row.proved_at,
        account_id=account.id,
    )


def _guest(keyring: Keyring, row: StaffSessionRow) -> StaffMember | None:
    if row.agent is None or row.name is None:
        return None
    return StaffMember(
        session_key=row.id_hash,
        name=_open(keyring, "name", row.id_hash, row.name),
        agent=_open(keyring, "agent", row.id_hash, row.agent),
        roles=read_roles(row.roles),
        proved_at=row.proved_at,
        provider=row.provider,
    )


def _seal(keyring: Keyring, column: str, row: str, value: str) -> bytes:
    return keyring.seal(value.encode(), table="staff_session", column=column, row=row)


def _open(keyring: Keyring, column: str, row: str, value: bytes) -> str:
    return keyring.open(value, table="staff_session", column=column, row=row).decode()


def _hash(session_id: str) -> str:
    """Ids are 256 random bits: a plain digest cannot be searched."""
    return hashlib.sha256(session_id.encode()).hexdigest()
