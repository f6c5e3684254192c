"""SMART launches under way and sessions that they led to; the browser holds only an opaque id.

All functions work in the caller's transaction and never commit: what they do and its audit entry stand or fall
together. Ids and states are stored as hashes, everything that tells of a person or opens an EHR sealed.

Spec: SMART App Launch 2.2.0, "Launch App"; RFC 9700 section 4.7; OWASP ASVS 5.0.0 V7.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec
from sqlalchemy import delete, update
from sqlmodel import Field, Session, SQLModel, col, or_

from rayhook.auth.abilities import Abilities
from rayhook.auth.keys import Keyring
from rayhook.auth.launch_context import LaunchContext
from rayhook.auth.patient_keys import clinical, patient_index, seal, unseal
from rayhook.auth.roles import Role, read_roles, written_roles
from rayhook.auth.scopes import ScopeSet

Clock = Callable[[], float]

LAUNCH_LIFE_S: Final = 600.0
SESSION_LIFE_S: Final = 12 * 3600.0
SESSION_IDLE_S: Final = 15 * 60.0
REFRESH_LEASE_S: Final = 15.0
# Writing each use of a session down would make every page view a write.
_TOUCH_EVERY_S: Final = 30.0
_ID_BYTES: Final = 32


class SMARTLaunchRow(SQLModel, table=True):
    __tablename__ = "smart_launch"

    state_hash: str = Field(primary_key=True, max_length=64)
    browser_hash: str = Field(max_length=64)
    ehr_id: str = Field(max_length=63)
    fhir_base_url: str = Field(max_length=2048)
    nonce: bytes
    code_verifier: bytes
    expires_at: float = Field(index=True)


class SMARTSessionRow(SQLModel, table=True):
    __tablename__ = "smart_session"

    id_hash: str = Field(primary_key=True, max_length=64)
    ehr_id: str = Field(max_length=63)
    fhir_base_url: str = Field(max_length=2048)
    client_id: str = Field(max_length=255)
    scopes: str
    access_token: bytes
    access_token_expires_at: float
    patient_id: bytes | None = None
    fhir_user: bytes | None = None
    name: bytes | None = None
    need_patient_banner: bool = True
    expires_at: float = Field(index=True)
    last_used_at: float = Field(index=True)
    roles: str = Field(default="", max_length=255, sa_column_kwargs={"server_default": ""})
    refresh_token: bytes | None = None
    refresh_until: float | None = None
    context: bytes | None = None
    window_mark: str = Field(default="", max_length=32, sa_column_kwargs={"server_default": ""})
    patient_index: str | None = Field(default=None, max_length=64, index=True)


@dataclass(frozen=True, slots=True)
class PendingLaunch:
    """What the callback needs of the authorization request that it answers."""

    ehr_id: str
    fhir_base_url: str
    nonce: str = field(repr=False)
    code_verifier: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SMARTSession:
    """One person at one EHR, with at most one patient in context. Times are seconds since the epoch.

    `window_mark` is the session's public mark: it opens nothing, and pages carry it to say whose they are.
    """

    ehr_id: str
    fhir_base_url: str
    client_id: str
    scopes: ScopeSet
    access_token: str = field(repr=False)
    access_token_expires_at: float
    patient_id: str | None = field(repr=False)
    fhir_user: str | None
    name: str | None = field(default=None, repr=False)
    need_patient_banner: bool = True
    roles: frozenset[Role] = frozenset()
    refresh_token: str | None = field(default=None, repr=False)
    context: LaunchContext = field(default_factory=LaunchContext, repr=False)
    window_mark: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def abilities(self) -> Abilities:
        return Abilities.of(self.scopes)


def new_browser_binding() -> str:
    """Return the value of the cookie that ties a launch to the browser which began it."""
    return secrets.token_urlsafe(_ID_BYTES)


def begin_launch(
    session: Session,
    keyring: Keyring,
    launch: PendingLaunch,
    *,
    state: str,
    browser: str,
    clock: Clock = time.time,
) -> None:
    """Remember the launch for LAUNCH_LIFE_S; `browser` is the value of the binding cookie."""
    now = clock()
    session.exec(delete(SMARTLaunchRow).where(col(SMARTLaunchRow.expires_at) <= now))
    key = _hash(state)
    session.add(
        SMARTLaunchRow(
            state_hash=key,
            browser_hash=_hash(browser),
            ehr_id=launch.ehr_id,
            fhir_base_url=launch.fhir_base_url,
            nonce=_seal(keyring, SMARTLaunchRow, "nonce", key, launch.nonce),
            code_verifier=_seal(keyring, SMARTLaunchRow, "code_verifier", key, launch.code_verifier),
            expires_at=now + LAUNCH_LIFE_S,
        )
    )
    session.flush()


def take_launch(
    session: Session, keyring: Keyring, *, state: str, browser: str, clock: Clock = time.time
) -> PendingLaunch | None:
    """Use the state up: of any number of callbacks one gets the launch, the others None.

    Commit before the code is exchanged, or a failed exchange gives the state back.
    """
    key = _hash(state)
    row = session.get(SMARTLaunchRow, key)
    if row is None or row.browser_hash != _hash(browser) or row.expires_at <= clock():
        return None
    launch = PendingLaunch(
        ehr_id=row.ehr_id,
        fhir_base_url=row.fhir_base_url,
        nonce=_open(keyring, SMARTLaunchRow, "nonce", key, row.nonce),
        code_verifier=_open(keyring, SMARTLaunchRow, "code_verifier", key, row.code_verifier),
    )
    session.expunge(row)
    taken = session.exec(delete(SMARTLaunchRow).where(col(SMARTLaunchRow.state_hash) == key))
    return launch if taken.rowcount == 1 else None


def create_session(session: Session, keyring: Keyring, new: SMARTSession, *, clock: Clock = time.time) -> str:
    """Return the new session's id, of which only the hash is kept; sessions that ended are erased."""
    now = clock()
    _erase_ended(session, now)
    session_id = secrets.token_urlsafe(_ID_BYTES)
    key = _hash(session_id)
    index = None if new.patient_id is None else patient_index(keyring, new.ehr_id, new.patient_id)
    columns = _Columns(session, keyring, key, index)
    session.add(
        SMARTSessionRow(
            id_hash=key,
            ehr_id=new.ehr_id,
            fhir_base_url=new.fhir_base_url,
            client_id=new.client_id,
            scopes=str(new.scopes),
            access_token=columns.seal("access_token", new.access_token),
            access_token_expires_at=new.access_token_expires_at,
            patient_id=columns.seal_optional("patient_id", new.patient_id),
            fhir_user=columns.seal_optional("fhir_user", new.fhir_user),
            name=columns.seal_optional("name", new.name),
            need_patient_banner=new.need_patient_banner,
            expires_at=now + SESSION_LIFE_S,
            last_used_at=now,
            roles=written_roles(new.roles),
            refresh_token=columns.seal_optional("refresh_token", new.refresh_token),
            context=columns.seal("context", msgspec.json.encode(new.context).decode()),
            window_mark=new.window_mark,
            patient_index=index,
        )
    )
    session.flush()
    return session_id


def find_session(
    session: Session, keyring: Keyring, session_id: str, *, noted: bool = True, clock: Clock = time.time
) -> SMARTSession | None:
    """Return the live session and note its use, unless a script asks of its own accord; one that ended is erased.

    Commit also where nothing else was written, or the use is not noted.
    """
    now = clock()
    key = _hash(session_id)
    row = session.get(SMARTSessionRow, key)
    if row is None:
        return None
    if row.expires_at <= now or row.last_used_at <= now - SESSION_IDLE_S:
        session.delete(row)
        session.flush()
        return None
    if noted and now - row.last_used_at >= _TOUCH_EVERY_S:
        row.last_used_at = now
        session.flush()
    return _opened(session, keyring, row)


def close_session(session: Session, session_id: str) -> bool:
    """Erase the session; False if there was none."""
    gone = session.exec(delete(SMARTSessionRow).where(col(SMARTSessionRow.id_hash) == _hash(session_id)))
    return gone.rowcount == 1


def close_sessions_of(session: Session, index: str) -> int:
    """Erase all sessions of a patient, by its blind index; return how many that were."""
    gone = session.exec(delete(SMARTSessionRow).where(col(SMARTSessionRow.patient_index) == index))
    return gone.rowcount


def claim_refresh(
    session: Session, session_id: str, found: SMARTSession, *, clock: Clock = time.time
) -> bool:
    """Return whether it is ours to renew the token of the session as `found`, for REFRESH_LEASE_S.

    Of all processes one gets it. Commit before the EHR is asked.
    """
    now = clock()
    row = SMARTSessionRow
    claim = (
        update(row)
        .where(
            col(row.id_hash) == _hash(session_id),
            col(row.access_token_expires_at) == found.access_token_expires_at,
            or_(col(row.refresh_until).is_(None), col(row.refresh_until) <= now),
        )
        .values(refresh_until=now + REFRESH_LEASE_S)
    )
    return session.exec(claim).rowcount == 1


def release_refresh(session: Session, session_id: str) -> None:
    """Let somebody else try: the EHR gave no answer."""
    row = SMARTSessionRow
    session.exec(update(row).where(col(row.id_hash) == _hash(session_id)).values(refresh_until=None))


def store_refreshed(session: Session, keyring: Keyring, session_id: str, renewed: SMARTSession) -> bool:
    """Put the renewed tokens in the place of the old; False if the session was closed meanwhile."""
    key = _hash(session_id)
    row = SMARTSessionRow
    change = update(row).where(col(row.id_hash) == key)
    patient_id = renewed.patient_id
    index = None if patient_id is None else patient_index(keyring, renewed.ehr_id, patient_id)
    columns = _Columns(session, keyring, key, index)
    stored = session.exec(
        change.values(
            scopes=str(renewed.scopes),
            access_token=columns.seal("access_token", renewed.access_token),
            access_token_expires_at=renewed.access_token_expires_at,
            refresh_token=columns.seal_optional("refresh_token", renewed.refresh_token),
            refresh_until=None,
        )
    )
    return stored.rowcount == 1


def _erase_ended(session: Session, now: float) -> None:
    ended = or_(
        col(SMARTSessionRow.expires_at) <= now,
        col(SMARTSessionRow.last_used_at) <= now - SESSION_IDLE_S,
    )
    session.exec(delete(SMARTSessionRow).where(ended))


def _opened(session: Session, keyring: Keyring, row: SMARTSessionRow) -> SMARTSession:
    columns = _Columns(session, keyring, row.id_hash, row.patient_index)
    context = columns.open_optional("context", row.context)
    return SMARTSession(
        ehr_id=row.ehr_id,
        fhir_base_url=row.fhir_base_url,
        client_id=row.client_id,
        scopes=ScopeSet.parse(row.scopes),
        access_token=columns.open("access_token", row.access_token),
        access_token_expires_at=row.access_token_expires_at,
        patient_id=columns.open_optional("patient_id", row.patient_id),
        fhir_user=columns.open_optional("fhir_user", row.fhir_user),
        name=columns.open_optional("name", row.name),
        need_patient_banner=row.need_patient_banner,
        roles=read_roles(row.roles),
        refresh_token=columns.open_optional("refresh_token", row.refresh_token),
        context=LaunchContext() if context is None else msgspec.json.decode(context, type=LaunchContext),
        window_mark=row.window_mark,
    )


@dataclass(frozen=True, slots=True)
class _Columns:
    """One session's sealed columns: of a session with a patient all are under the patient's key."""

    session: Session
    keyring: Keyring
    row: str
    patient_index: str | None

    def seal(self, column: str, value: str) -> bytes:
        if self.patient_index is None:
            return _seal(self.keyring, SMARTSessionRow, column, self.row, value)
        subject = clinical(self.patient_index)
        table = str(SMARTSessionRow.__tablename__)
        return seal(
            self.session, self.keyring, subject, value.encode(), table=table, column=column, row=self.row
        )

    def seal_optional(self, column: str, value: str | None) -> bytes | None:
        return None if value is None else self.seal(column, value)

    def open(self, column: str, value: bytes) -> str:
        table = str(SMARTSessionRow.__tablename__)
        return unseal(self.session, self.keyring, value, table=table, column=column, row=self.row).decode()

    def open_optional(self, column: str, value: bytes | None) -> str | None:
        return None if value is None else self.open(column, value)


def _seal(keyring: Keyring, table: type[SQLModel], column: str, row: str, value: str) -> bytes:
    return keyring.seal(value.encode(), table=str(table.__tablename__), column=column, row=row)


def _open(keyring: Keyring, table: type[SQLModel], column: str, row: str, value: bytes) -> str:
    return keyring.open(value, table=str(table.__tablename__), column=column, row=row).decode()


def _hash(secret: str) -> str:
    """The secrets are 256 random bits: a plain digest cannot be searched."""
    return hashlib.sha256(secret.encode()).hexdigest()
