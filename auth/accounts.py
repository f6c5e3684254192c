"""Local accounts of the staff: compliance officers, model managers, administrators.

All functions work in the caller's transaction and never commit. Names are found by a blind index and, like password
hashes and secrets, sealed.

Spec: 45 CFR 164.312(a)(2)(i), (d); NIST SP 800-63B-4; OWASP ASVS 5.0.0 V6
"""

import hashlib
import re
import secrets
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from sqlmodel import Field, Session, SQLModel, col, select

from rayhook.auth.keys import Keyring
from rayhook.auth.one_time_codes import new_recovery_codes, new_secret, recovery_digest
from rayhook.auth.passwords import hash_password
from rayhook.auth.roles import STAFF_ROLES, Role, read_roles, written_roles
from rayhook.fhir.errors import Conflict, InvalidRequest, NotFound

Clock = Callable[[], float]

ENROLMENT_LIFE_S: Final = 24 * 3600.0
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._@+-]{2,62}")


class StaffAccountRow(SQLModel, table=True):
    """`totp_step` is the last time step whose code was used; `recovery_hashes` are of codes not used yet."""

    __tablename__ = "staff_account"

    id: str = Field(primary_key=True, max_length=32)
    name_index: str = Field(unique=True, max_length=64)
    name: bytes
    roles: str = Field(max_length=255)
    password_hash: bytes | None = None
    totp_secret: bytes | None = None
    totp_step: int = -1
    recovery_hashes: str = Field(default="", max_length=1024)
    disabled: bool = False
    failed_attempts: int = 0
    blocked_until: float = 0.0
    enrolment_hash: str | None = Field(default=None, max_length=64, index=True)
    enrolment_expires_at: float | None = None
    created_at: float
    signed_in_at: float | None = None


@dataclass(frozen=True, slots=True)
class StaffAccount:
    """One account as an administrator sees it. Times are seconds since the epoch.

    `enrolled` is False until its person has chosen a password and shown the first code.
    """

    id: str
    name: str
    roles: frozenset[Role]
    enrolled: bool
    disabled: bool
    blocked_until: float
    created_at: float
    signed_in_at: float | None

    @property
    def agent(self) -> str:
        return agent_of_account(self.name)


def agent_of_account(name: str) -> str:
    """Return who acts, for the audit."""
    return f"urn:rayhook:staff:{name}"


def account_name(written: str) -> str:
    """Return the name as it is kept. Raises InvalidRequest for one that an account cannot have."""
    name = unicodedata.normalize("NFKC", written).strip().casefold()
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            "name: must have 3 to 63 letters, digits and . _ @ + -, and begin with a letter or digit",
            code="account_name_malformed",
            expression="name",
        )
    return name


def create_account(
    session: Session, keyring: Keyring, name: str, roles: Iterable[Role], *, clock: Clock = time.time
) -> StaffAccount:
    """Add an account that nobody can sign in to before its enrolment.

    Raises Conflict where the name is taken, InvalidRequest for a name or role that cannot be.
    """
    kept = account_name(name)
    index = _name_index(keyring, kept)
    if session.exec(select(StaffAccountRow.id).where(StaffAccountRow.name_index == index)).first():
        raise Conflict("name: there is an account of this name", expression="name")
    account_id = uuid.uuid4().hex
    row = StaffAccountRow(
        id=account_id,
        name_index=index,
        name=_seal(keyring, "name", account_id, kept),
        roles=written_roles(staff_roles(roles)),
        created_at=clock(),
    )
    session.add(row)
    session.flush()
    return _opened(keyring, row)


def staff_roles(roles: Iterable[Role]) -> frozenset[Role]:
    """Raise InvalidRequest for no role, and for one that only an EHR can give."""
    given = frozenset(roles)
    if not given or given - STAFF_ROLES:
        allowed = ", ".join(sorted(STAFF_ROLES))
        raise InvalidRequest(
            f"roles: must be one or more of {allowed}", code="role_unknown", expression="roles"
        )
    return given


def invite(session: Session, keyring: Keyring, account_id: str, *, clock: Clock = time.time) -> str:
    """Return a token for one enrolment within a day; what was enrolled before is void from now on."""
    row = _row(session, account_id)
    token = secrets.token_urlsafe(32)
    row.password_hash = None
    row.totp_secret = _seal(keyring, "totp_secret", row.id, new_secret())
    row.totp_step, row.recovery_hashes = -1, ""
    row.failed_attempts, row.blocked_until = 0, 0.0
    row.enrolment_hash, row.enrolment_expires_at = _digest(token), clock() + ENROLMENT_LIFE_S
    session.flush()
    return token


def find_enrolment(
    session: Session, keyring: Keyring, token: str, *, clock: Clock = time.time
) -> tuple[StaffAccount, str]:
    """Return whom a token invites, and the secret for the authenticator app.

    Raises NotFound for a token that is unknown, used or expired.
    """
    query = select(StaffAccountRow).where(StaffAccountRow.enrolment_hash == _digest(token))
    row = session.exec(query.with_for_update()).first()
    if row is None or row.disabled or (row.enrolment_expires_at or 0.0) <= clock() or row.totp_secret is None:
        raise NotFound("this invitation is unknown, used or expired", code="enrolment_unknown")
    return _opened(keyring, row), _open(keyring, "totp_secret", row.id, row.totp_secret)


def enrol(
    session: Session, keyring: Keyring, account_id: str, *, password_hash: str, totp_step: int
) -> tuple[str, ...]:
    """Use the invitation up and return the recovery codes, which are not shown again.

    `totp_step` is that of the first code, which is thereby used.
    """
    row = _row(session, account_id)
    codes = new_recovery_codes()
    row.password_hash = _seal(keyring, "password_hash", row.id, password_hash)
    row.totp_step = totp_step
    row.recovery_hashes = " ".join(filter(None, map(recovery_digest, codes)))
    row.enrolment_hash = row.enrolment_expires_at = None
    session.flush()
    return codes


def enrol_at_once(
    session: Session, keyring: Keyring, account_id: str, *, password: str, clock: Clock = time.time
) -> tuple[str, tuple[str, ...]]:
    """Enrol with a password given by who creates the account; return the app's secret and the recovery codes."""
    token = invite(session, keyring, account_id, clock=clock)
    _, secret = find_enrolment(session, keyring, token, clock=clock)
    hashed = hash_password(password)
    return secret, enrol(session, keyring, account_id, password_hash=hashed, totp_step=-1)


def find_account(session: Session, keyring: Keyring, name: str) -> StaffAccount | None:
    row = find_row(session, keyring, name)
    return None if row is None else _opened(keyring, row)


def find_row(session: Session, keyring: Keyring, name: str) -> StaffAccountRow | None:
    """Any text may come as a name: one that no account can have is nobody's."""
    try:
        index = _name_index(keyring, account_name(name))
    except InvalidRequest:
        return None
    query = select(StaffAccountRow).where(StaffAccountRow.name_index == index)
    return session.exec(query.with_for_update()).first()


def load_account(session: Session, keyring: Keyring, account_id: str) -> StaffAccount:
    return _opened(keyring, _row(session, account_id))


def list_accounts(session: Session, keyring: Keyring) -> list[StaffAccount]:
    rows = session.exec(select(StaffAccountRow)).all()
    return sorted((_opened(keyring, row) for row in rows), key=lambda account: account.name)


def set_roles(session: Session, keyring: Keyring, account_id: str, roles: Iterable[Role]) -> StaffAccount:
    """Take effect at the next request of every session. Raises Conflict where no administrator would be left."""
    row = _row(session, account_id)
    given = staff_roles(roles)
    if Role.ADMINISTRATOR not in given:
        _keep_an_administrator(session, row)
    row.roles = written_roles(given)
    session.flush()
    return _opened(keyring, row)


def set_disabled(session: Session, keyring: Keyring, account_id: str, *, disabled: bool) -> StaffAccount:
    """Raise Conflict where no administrator would be left. Close the account's sessions beside it."""
    row = _row(session, account_id)
    if disabled:
        _keep_an_administrator(session, row)
        row.enrolment_hash = row.enrolment_expires_at = None
    row.disabled = disabled
    session.flush()
    return _opened(keyring, row)


def _keep_an_administrator(session: Session, leaving: StaffAccountRow) -> None:
    if leaving.disabled or Role.ADMINISTRATOR not in read_roles(leaving.roles):
        return
    others = select(StaffAccountRow.id).where(
        col(StaffAccountRow.id) != leaving.id,
        col(StaffAccountRow.disabled).is_(False),
        col(StaffAccountRow.password_hash).is_not(None),
        col(StaffAccountRow.roles).contains(Role.ADMINISTRATOR.value),
    )
    # Locked: of two administrators who close each other's account at the same moment, one stays.
    if not session.exec(others.with_for_update()).all():
        raise Conflict("there would be no administrator left", code="last_administrator")


def _row(session: Session, account_id: str) -> StaffAccountRow:
    row = session.get(StaffAccountRow, account_id)
    if row is None:
        raise NotFound("there is no such account", code="account_unknown")
    return row


def _opened(keyring: Keyring, row: StaffAccountRow) -> StaffAccount:
    return StaffAccount(
        id=row.id,
        name=_open(keyring, "name", row.id, row.name),
        roles=read_roles(row.roles),
        enrolled=row.password_hash is not None,
        disabled=row.disabled,
        blocked_until=row.blocked_until,
        created_at=row.created_at,
        signed_in_at=row.signed_in_at,
    )


def open_column(keyring: Keyring, row: StaffAccountRow, column: str) -> str | None:
    """Return the text of a sealed column, None where there is none."""
    value = getattr(row, column)
    return None if value is None else _open(keyring, column, row.id, value)


def seal_column(keyring: Keyring, row: StaffAccountRow, column: str, value: str) -> None:
    setattr(row, column, _seal(keyring, column, row.id, value))


def _seal(keyring: Keyring, column: str, row: str, value: str) -> bytes:
    return keyring.seal(value.encode(), table="staff_account", column=column, row=row)


def _open(keyring: Keyring, column: str, row: str, value: bytes) -> str:
    return keyring.open(value, table="staff_account", column=column, row=row).decode()


def _name_index(keyring: Keyring, name: str) -> str:
    return keyring.blind_index(name, purpose="staff_account.name")


def _digest(token: str) -> str:
    """Tokens are 256 random bits: a plain digest cannot be searched."""
    return hashlib.sha256(token.encode()).hexdigest()
