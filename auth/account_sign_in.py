"""One attempt to sign in to a local account: counted first, then judged, so that many at once gain nothing.

Spec: NIST SP 800-63B-4 section 3.2.2 (rate limiting); OWASP ASVS 5.0.0 V6.3.1, V6.3.8, V6.5.1
"""

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from sqlmodel import Session

from rayhook.auth.accounts import (
    Clock,
    StaffAccount,
    StaffAccountRow,
    agent_of_account,
    find_row,
    load_account,
    open_column,
    seal_column,
)
from rayhook.auth.keys import Keyring
from rayhook.auth.one_time_codes import matching_step, recovery_digest

FREE_ATTEMPTS: Final = 5
_FIRST_BLOCK_S: Final = 60.0
_LONGEST_BLOCK_S: Final = 15 * 60.0


class SignInRefusal(StrEnum):
    """Why, for the audit; who tries is told one and the same whatever it was."""

    ACCOUNT_DISABLED = "account_disabled"
    ACCOUNT_UNKNOWN = "account_unknown"
    CODE_WRONG = "code_wrong"
    LOCKED_OUT = "locked_out"
    NOT_ENROLLED = "not_enrolled"
    PASSWORD_WRONG = "password_wrong"  # noqa: S105 - a reason, no password


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that is counted: `password_hash` is to be compared whatever `refusal` says, to take equal time."""

    account_id: str | None = None
    agent: str | None = None
    password_hash: str | None = field(default=None, repr=False)
    refusal: SignInRefusal | None = None
    locks_out: bool = False


@dataclass(frozen=True, slots=True)
class SignedIn:
    account: StaffAccount
    with_recovery_code: bool = False
    recovery_codes_left: int = 0


def begin_attempt(session: Session, keyring: Keyring, name: str, *, clock: Clock = time.time) -> Attempt:
    """Count an attempt by name; commit before the password is compared."""
    row = find_row(session, keyring, name)
    return (
        Attempt(refusal=SignInRefusal.ACCOUNT_UNKNOWN)
        if row is None
        else _counted(session, keyring, row, clock())
    )


def begin_proof(session: Session, keyring: Keyring, account_id: str, *, clock: Clock = time.time) -> Attempt:
    """Count an attempt of somebody signed in to show one more code; commit before it is judged."""
    row = session.get(StaffAccountRow, account_id, with_for_update=True)
    return (
        Attempt(refusal=SignInRefusal.ACCOUNT_UNKNOWN)
        if row is None
        else _counted(session, keyring, row, clock())
    )


def judge_attempt(
    session: Session,
    keyring: Keyring,
    attempt: Attempt,
    *,
    password_matches: bool,
    code: str,
    clock: Clock = time.time,
) -> SignedIn | SignInRefusal:
    """Use the code up and clear the count, or say why not."""
    if attempt.refusal is not None:
        return attempt.refusal
    row = (
        None
        if attempt.account_id is None
        else session.get(StaffAccountRow, attempt.account_id, with_for_update=True)
    )
    if row is None or row.disabled or open_column(keyring, row, "password_hash") != attempt.password_hash:
        return SignInRefusal.ACCOUNT_DISABLED
    if not password_matches:
        return SignInRefusal.PASSWORD_WRONG
    by_recovery_code = not _use_code(keyring, row, code, clock())
    if by_recovery_code and not _use_recovery_code(row, code):
        return SignInRefusal.CODE_WRONG
    row.failed_attempts, row.blocked_until = 0, 0.0
    session.flush()
    return SignedIn(
        load_account(session, keyring, row.id),
        with_recovery_code=by_recovery_code,
        recovery_codes_left=len(row.recovery_hashes.split()),
    )


def renew_hash(session: Session, keyring: Keyring, account_id: str, password_hash: str) -> None:
    """Keep the password under today's parameters."""
    row = session.get(StaffAccountRow, account_id)
    if row is not None:
        seal_column(keyring, row, "password_hash", password_hash)
        session.flush()


def _counted(session: Session, keyring: Keyring, row: StaffAccountRow, now: float) -> Attempt:
    hashed = open_column(keyring, row, "password_hash")
    agent = agent_of_account(open_column(keyring, row, "name") or "")
    refusal = _refusal(row, now)
    if refusal is not None:
        return Attempt(row.id, agent, hashed, refusal)
    row.failed_attempts += 1
    excess = row.failed_attempts - FREE_ATTEMPTS
    if excess >= 0:
        # Until it is judged: the right password and code lift it again.
        row.blocked_until = now + min(_LONGEST_BLOCK_S, _FIRST_BLOCK_S * 2.0 ** min(excess, 10))
    session.flush()
    return Attempt(row.id, agent, hashed, locks_out=excess >= 0)


def _refusal(row: StaffAccountRow, now: float) -> SignInRefusal | None:
    if row.disabled:
        return SignInRefusal.ACCOUNT_DISABLED
    if row.password_hash is None:
        return SignInRefusal.NOT_ENROLLED
    return SignInRefusal.LOCKED_OUT if row.blocked_until > now else None


def _use_code(keyring: Keyring, row: StaffAccountRow, code: str, now: float) -> bool:
    secret = open_column(keyring, row, "totp_secret")
    step = None if secret is None else matching_step(secret, code, now=now, last_step=row.totp_step)
    if step is None:
        return False
    row.totp_step = step
    return True


def _use_recovery_code(row: StaffAccountRow, code: str) -> bool:
    digest, left = recovery_digest(code), row.recovery_hashes.split()
    if digest is None or digest not in left:
        return False
    left.remove(digest)
    row.recovery_hashes = " ".join(left)
    return True
