"""A data key for each patient of an EHR: what is sealed under it cannot be read any more once it is destroyed.

A patient has two, so that an erasure need not take the audit with it: `clinical` for studies, results, answers and
reports, `audit` for what the log says of the patient. What is no patient's is sealed under the installation's own:
rows of the log can never be written anew, and the keyring's keys can be replaced all the same.

Spec: 45 CFR 164.310(d)(2)(i), 164.312(a)(2)(iv); NIST SP 800-88r1 2.6 (cryptographic erase)
"""

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import (
    CheckConstraint,
    Column,
    Index,
    LargeBinary,
    RowMapping,
    bindparam,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Field, Session, SQLModel

from rayhook.auth.data_key import DataKey, data_key_of, refused
from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import Erased, RayhookError

ERASED_PREFIX: Final = "erased:"
# In the place of a value whose key is about to be destroyed: who still has the key finds nothing but this.
NOTHING: Final = b"\x00rayhook.erased"

_AT_ONCE: Final = 1000
_FEW: Final = 2
_MEMO: Final = "rayhook.data_keys"
_LIVE: Final = text("retired_at IS NULL")


class KeyScope(StrEnum):
    """What a data key seals."""

    AUDIT = "audit"
    CLINICAL = "clinical"
    INSTALLATION = "installation"


class PatientKeyRow(SQLModel, table=True):
    """A data key, sealed under the keyring for its own row. Of a destroyed one the row stays, without the key.

    A retired one seals nothing more; `due_at` is when it is to be destroyed. `subject_index` is the blind index of the patient as the tables of its scope have it, so that nothing ties the
    log to the clinical tables.
    """

    __tablename__ = "patient_key"
    __table_args__ = (
        CheckConstraint("(wrapped IS NULL) = (destroyed_at IS NOT NULL)", name="ck_patient_key_destroyed"),
        Index(
            "uq_patient_key_live",
            "scope",
            "subject_index",
            unique=True,
            sqlite_where=_LIVE,
            postgresql_where=_LIVE,
        ),
    )

    id: str = Field(primary_key=True, max_length=32)
    scope: str = Field(max_length=16)
    subject_index: str = Field(max_length=64, index=True)
    wrapped: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    created_at: float
    retired_at: float | None = None
    due_at: float | None = Field(default=None, index=True)
    destroyed_at: float | None = Field(default=None, index=True)
    erasure_id: str | None = Field(default=None, max_length=32)


PATIENT_KEY: Final = SQLModel.metadata.tables[PatientKeyRow.__tablename__]
_KEY = PATIENT_KEY.c
# Made once, as they are asked in every audited transaction.
_FREE: Final = select(_KEY.id, _KEY.scope, _KEY.subject_index, _KEY.wrapped).where(
    _KEY.subject_index.in_(bindparam("indexes", expanding=True)), _KEY.retired_at.is_(None)
)
_LOCKING: Final = _FREE.with_for_update(read=True, key_share=True)


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """Whose key: a patient's, by the blind index that the tables of the scope have, or the installation's."""

    scope: KeyScope
    index: str

    @property
    def is_erased(self) -> bool:
        return self.index.startswith(ERASED_PREFIX)


def patient_index(keyring: Keyring, ehr_id: str, patient_id: str) -> str:
    """Return the blind index of the clinical tables: equal ids of two EHRs are not the same patient."""
    return keyring.blind_index(json.dumps([ehr_id, patient_id]), purpose="analysis.patient")


def clinical(index: str) -> Subject:
    """Return the subject of a row by its `patient_index`."""
    return Subject(KeyScope.CLINICAL, index)


def audited(index: str | None) -> Subject:
    """Return the subject of an audit row by its `patient_index`; without a patient, the installation."""
    return installation() if index is None else Subject(KeyScope.AUDIT, index)


def installation() -> Subject:
    """Return this month's: no key may seal too often, and the log's is the busiest. Spec: NIST SP 800-38D 8.3."""
    return Subject(KeyScope.INSTALLATION, time.strftime("%Y-%m", time.gmtime()))


def ready_installation_key(session: Session, keyring: Keyring) -> None:
    """Make this month's key, where there is none, and remember it: commits."""
    subject = installation()
    [key] = sealing_keys(session, keyring, [subject])
    session.commit()
    keyring.opened_keys.keep_of_installation(_database(session), subject.index, key)


def seal(
    session: Session,
    keyring: Keyring,
    subject: Subject,
    plaintext: bytes,
    *,
    table: str,
    column: str,
    row: str,
) -> bytes:
    """Encrypt for one place under the subject's key, which is made where there is none, in the same transaction."""
    [key] = sealing_keys(session, keyring, [subject])
    return key.seal(plaintext, table=table, column=column, row=row)


def unseal(session: Session, keyring: Keyring, sealed: bytes, *, table: str, column: str, row: str) -> bytes:
    """Decrypt what `seal` or, before there were data keys, the keyring itself has sealed.

    Raises Erased where the key was destroyed, and RayhookError with code `decryption_failed` for another place,
    an unknown key or any change.
    """
    id_ = data_key_of(sealed)
    if id_ is None:
        return keyring.open(sealed, table=table, column=column, row=row)
    try:
        key = _opening_key(session, keyring, id_)
        if key is None:
            raise refused(table, column)
        plaintext = key.open(sealed, table=table, column=column, row=row)
    except Erased:
        raise
    except RayhookError:
        if keyring.told_of_refusals is not None:
            keyring.told_of_refusals(table, column, row)
        raise
    if plaintext == NOTHING:
        raise Erased
    return plaintext


def ready_keys(session: Session, keyring: Keyring, sealed: Iterable[bytes | None]) -> None:
    """Look up the keys of many values together, which `unseal` would look up one by one.

    A key that does not open is left to `unseal`, which tells of it with the value that needs it.
    """
    ids = (data_key_of(one) for one in sealed if one is not None)
    opened = keyring.opened_keys
    wanted = opened.untrusted(one for one in ids if one is not None)[:_AT_ONCE]
    if len(wanted) < _FEW:
        return
    query = select(_KEY.id, _KEY.wrapped).where(_KEY.id.in_(wanted))
    for row in session.execute(query).mappings():
        if row["wrapped"] is None:
            opened.forget([row["id"]])
        else:
            with suppress(RayhookError):
                _opened(keyring, row)


def sealing_keys(session: Session, keyring: Keyring, subjects: Sequence[Subject]) -> list[DataKey]:
    """Return the live key of each subject, and keep erasures from coming between until the transaction ends.

    Which key a subject has is asked of the database in every transaction, and never remembered beyond: a key made
    in a transaction that was rolled back is nobody's. Raises Erased for the subject of rows that were erased.
    """
    memo = _memo(session)
    for subject in subjects:
        if subject not in memo and (known := _known(session, keyring, subject)) is not None:
            memo[subject] = known
    missing = sorted({subject for subject in subjects if subject not in memo})
    if any(subject.is_erased for subject in missing):
        raise Erased
    if missing:
        memo |= _live_keys(session, keyring, missing)
        memo |= _made(session, keyring, [subject for subject in missing if subject not in memo])
    return [memo[subject] for subject in subjects]


def destroy_keys(session: Session, subject: Subject, *, erasure_id: str, now: float) -> list[str]:
    """Destroy the subject's keys when `session` commits; return their ids. Waits for who seals under one of them."""
    ids = lock_keys(session, subject)
    destroy_ids(session, ids, erasure_id=erasure_id, now=now)
    return ids


def retire_keys(session: Session, subject: Subject, *, erasure_id: str, now: float, due_at: float) -> None:
    """Let the subject's keys seal nothing more, and be destroyed at `due_at`."""
    ids = lock_keys(session, subject)
    change = update(PATIENT_KEY).where(_KEY.id.in_(ids), _KEY.retired_at.is_(None))
    session.execute(change.values(retired_at=now, due_at=due_at, erasure_id=erasure_id))


def destroy_ids(session: Session, ids: Sequence[str], *, erasure_id: str, now: float) -> int:
    """Destroy those of the keys that are still there; return how many that were."""
    if not ids:
        return 0
    gone = session.execute(
        update(PATIENT_KEY)
        .where(_KEY.id.in_(ids), _KEY.destroyed_at.is_(None))
        .values(
            wrapped=None,
            retired_at=func.coalesce(_KEY.retired_at, now),
            due_at=None,
            destroyed_at=now,
            erasure_id=erasure_id,
        )
    )
    return int(gone.rowcount)  # type: ignore[attr-defined]  # an UPDATE's result has it


def lock_keys(session: Session, subject: Subject) -> list[str]:
    """Return the subject's keys, after everybody who seals under one of them has ended; nobody does until we have."""
    query = select(_KEY.id).where(
        _KEY.scope == subject.scope.value,
        _KEY.subject_index == subject.index,
        _KEY.destroyed_at.is_(None),
    )
    ids = list(session.execute(query.with_for_update()).scalars())
    _memo(session).clear()
    return ids


def _memo(session: Session) -> dict[Subject, DataKey]:
    """Return what this transaction knows: one that was rolled back, even to a savepoint, takes it along."""
    current = session.get_nested_transaction() or session.get_transaction()
    transaction, memo = session.info.get(_MEMO, (None, {}))
    if current is None or transaction is not current:
        if current is None:
            session.begin()
            current = session.get_transaction()
        memo = {}
        session.info[_MEMO] = (current, memo)
    return memo  # type: ignore[no-any-return]  # a session's info is untyped


def _known(session: Session, keyring: Keyring, subject: Subject) -> DataKey | None:
    if subject.scope is not KeyScope.INSTALLATION:
        return None
    return keyring.opened_keys.of_installation(_database(session), subject.index)


def _database(session: Session) -> object:
    """Return what all engines of one database share: with one keyring there may be several databases."""
    return session.get_bind().engine.pool


def _live_keys(session: Session, keyring: Keyring, subjects: Sequence[Subject]) -> dict[Subject, DataKey]:
    is_free = all(subject.scope is KeyScope.INSTALLATION for subject in subjects)
    wanted = {"indexes": [subject.index for subject in subjects]}
    rows = session.connection().execute(_FREE if is_free else _LOCKING, wanted).mappings().all()
    found = {Subject(KeyScope(row["scope"]), row["subject_index"]): row for row in rows}
    return {subject: _opened(keyring, found[subject]) for subject in subjects if subject in found}


def _made(session: Session, keyring: Keyring, subjects: Sequence[Subject]) -> dict[Subject, DataKey]:
    """Insert new keys, and return them, or those that another transaction committed meanwhile."""
    if not subjects:
        return {}
    new = {subject: DataKey.new() for subject in subjects}
    rows = [
        {
            "id": key.id,
            "scope": subject.scope.value,
            "subject_index": subject.index,
            "wrapped": keyring.seal(keyset, table=PATIENT_KEY.name, column="wrapped", row=key.id),
            "created_at": time.time(),
        }
        for subject, (key, keyset) in new.items()
    ]
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert(PATIENT_KEY).on_conflict_do_nothing().returning(_KEY.id)
    inserted = set(session.execute(statement, rows).scalars())
    made = {subject: key for subject, (key, _) in new.items() if key.id in inserted}
    for key in made.values():
        # By its id alone: should the transaction be rolled back, nothing anywhere bears that id.
        keyring.opened_keys.keep(key)
    missing = [subject for subject in subjects if subject not in made]
    return made | (_live_keys(session, keyring, missing) if missing else {})


def _opening_key(session: Session, keyring: Keyring, id_: str) -> DataKey | None:
    opened = keyring.opened_keys
    key = opened.trusted(id_)
    if key is not None:
        return key
    row = session.execute(select(_KEY.id, _KEY.wrapped).where(_KEY.id == id_)).mappings().first()
    if row is None:
        return None
    if row["wrapped"] is None:
        opened.forget([id_])
        raise Erased
    return _opened(keyring, row)


def _opened(keyring: Keyring, row: RowMapping) -> DataKey:
    def unwrap() -> bytes:
        return keyring.open(row["wrapped"], table=PATIENT_KEY.name, column="wrapped", row=row["id"])

    return keyring.opened_keys.seen(row["id"], unwrap)
