"""Erasures in a running process: made known to it, kept on the list beside the database, finished when they are due."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog
from sqlalchemy import RowMapping, select
from sqlmodel import Session

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.retention import is_patient_held
from rayhook.auth.data_key import DataKey
from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import (
    PATIENT_KEY,
    KeyScope,
    destroy_ids,
    ready_installation_key,
)
from rayhook.cds_hooks.erased_cards import erase_cards
from rayhook.deploy.database import Database
from rayhook.deploy.erasure_list import DestroyedKey, ErasureList
from rayhook.deploy.storage_settings import StorageSettings
from rayhook.fhir.errors import code_of
from rayhook.inference.erased_rows import ErasedPatient, erase_rows
from rayhook.inference.erasure import Done, Erasures

_LOOK_EVERY_S: Final = 2.0
_TEND_EVERY_S: Final = 60.0
_AGENT: Final = "rayhook"
_KEY = PATIENT_KEY.c

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ErasureUpkeep:
    """`forgetting` is called after an erasure, in whatever process it was: for all that keeps what it has opened."""

    erasures: Erasures
    database: Database
    on_disk: ErasureList
    forgetting: list[Callable[[], None]] = field(default_factory=list)
    clock: Callable[[], float] = time.time
    _known: set[str] = field(default_factory=set)

    def begin(self) -> int:
        """Take again what a restored backup brought back, before anything is read; return how many keys that were."""
        taken = self._take_again()
        with self.database.sessions() as session:
            ready_installation_key(session, self.erasures.keyring)
        self.look()
        return taken

    def told(self, done: Done) -> None:
        """Finish an erasure that is committed: this process forgets at once, and the list has it."""
        self.erasures.keyring.opened_keys.forget(done.key_ids)
        self._forget()
        self._complete_list()
        _empty_journal(self.database)

    def look(self) -> None:
        """Forget what another process erased."""
        with self.database.reading() as session:
            destroyed = session.execute(select(_KEY.id).where(_KEY.destroyed_at.is_not(None))).scalars()
            new = set(destroyed) - self._known
        if new:
            self._known.update(new)
            self.erasures.keyring.opened_keys.forget(new)
            self._forget()

    def tend(self) -> None:
        """Take again, destroy what is due, keep the list whole, and have next month's key in time."""
        self._take_again()
        self._destroy_due()
        self._complete_list()
        with self.database.sessions() as session:
            ready_installation_key(session, self.erasures.keyring)

    @contextmanager
    def running(self) -> Iterator[None]:
        stopping = threading.Event()
        thread = threading.Thread(target=self._until, args=(stopping,), name="erasures", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()

    def _until(self, stopping: threading.Event) -> None:
        tended = time.monotonic()
        while not stopping.wait(_LOOK_EVERY_S):
            try:
                self.look()
                if time.monotonic() - tended >= _TEND_EVERY_S:
                    tended = time.monotonic()
                    self.tend()
            except Exception as error:  # noqa: BLE001 - nobody else forgets
                log.error("erasures_not_tended", code=code_of(error))  # noqa: TRY400

    def _forget(self) -> None:
        for forget in self.forgetting:
            forget()

    def _take_again(self) -> int:
        erased = {one.key: one for one in self.on_disk.read()}
        with self.database.reading() as session:
            live = select(_KEY.id).where(_KEY.destroyed_at.is_(None))
            back = sorted(erased.keys() & set(session.execute(live).scalars())) if erased else []
        for id_ in back:
            self._destroy_again(erased[id_])
        return len(back)

    def _destroy_again(self, one: DestroyedKey) -> None:
        with self.database.sessions() as session:
            row = session.execute(select(PATIENT_KEY).where(_KEY.id == one.key)).mappings().one()
            if row["scope"] == KeyScope.CLINICAL:
                self._erase_rows(session, row)
            destroy_ids(session, [one.key], erasure_id=one.erasure, now=one.at)
            self._record(session, {"erasure": one.erasure, "keys": one.key, "reason": "restored"})
            session.commit()
        self.erasures.keyring.opened_keys.forget([one.key])
        log.warning("restored_key_destroyed_again", key=one.key)

    def _erase_rows(self, session: Session, row: RowMapping) -> None:
        keyring = self.erasures.keyring
        keyset = keyring.open(row["wrapped"], table=PATIENT_KEY.name, column="wrapped", row=row["id"])
        erased = ErasedPatient(row["subject_index"], DataKey(row["id"], keyset))
        count = erase_rows(session, keyring, erased)
        for more in self.erasures.more_rows:
            more(session, erased, count.results)

    def _destroy_due(self) -> None:
        """Destroy the audit keys of erased patients whose retention is over, unless a hold keeps them."""
        with self.database.sessions() as session:
            query = select(PATIENT_KEY).where(_KEY.due_at <= self.clock(), _KEY.destroyed_at.is_(None))
            rows = session.execute(query).mappings().all()
            due = [row for row in rows if not is_patient_held(session, row["subject_index"])]
            for row in due:
                destroy_ids(session, [row["id"]], erasure_id=row["erasure_id"] or "", now=self.clock())
                detail = {"erasure": row["erasure_id"] or "", "keys": row["id"], "reason": "retention over"}
                self._record(session, detail)
            session.commit()
        self.erasures.keyring.opened_keys.forget(row["id"] for row in due)

    def _record(self, session: Session, detail: dict[str, str]) -> None:
        entry = AuditEntry(
            AuditKind.AUTH_PATIENT_KEY_DESTROYED, agent=_AGENT, detail=detail, purpose="HOPERAT"
        )
        self.erasures.audit.record(session, entry)

    def _complete_list(self) -> None:
        """Every machine's list comes to have the erasures of all machines."""
        columns = _KEY.id, _KEY.erasure_id, _KEY.destroyed_at
        with self.database.reading() as session:
            query = (
                select(*columns).where(_KEY.destroyed_at.is_not(None)).order_by(_KEY.destroyed_at, _KEY.id)
            )
            rows = session.execute(query).all()
        added = self.on_disk.add(DestroyedKey(key, erasure or "", at) for key, erasure, at in rows)
        if added:
            log.info("erasures_listed", keys=added)


def _empty_journal(database: Database) -> None:
    """On SQLite: what was overwritten is in the journal yet, as it was. PostgreSQL keeps its own for its archive."""
    if database.engine.dialect.name != "sqlite":
        return
    connection = database.engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


def open_erasures(
    settings: StorageSettings, database: Database, keyring: Keyring, audit: AuditLog
) -> ErasureUpkeep:
    erasures = Erasures(
        keyring=keyring, audit=audit, retention=settings.retention_policy, more_rows=(erase_cards,)
    )
    return ErasureUpkeep(erasures, database, ErasureList(settings.erasure_list_path, keyring))
