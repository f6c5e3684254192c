"""What a process needs for its work, asked cheaply and honestly."""

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from rayhook.auth.keys import Keyring
from rayhook.deploy.database import Database
from rayhook.deploy.health import Check, Condition
from rayhook.deploy.schema import Fit, fit
from rayhook.fhir.errors import EngineUnavailable, ModelIntegrityError, ServiceUnavailable
from rayhook.inference.engine import Engine
from rayhook.inference.engine_pool import EnginePool

_MEBIBYTE: Final = 1024 * 1024
_NEEDED_BYTES: Final = 4 * _MEBIBYTE
_USUAL_BYTES: Final = 64 * _MEBIBYTE
_APPLICATION_ID: Final = 0x52415948  # "RAYH": SQLite's own place for whose file it is
_MAY_INSERT: Final = (
    "SELECT current_setting('transaction_read_only') = 'off' "
    "AND has_table_privilege(current_user, 'audit_event', 'INSERT')"
)
_PROBE: Final = {"table": "health", "column": "probe", "row": "1"}


def database_check(database: Database) -> Check:
    def ask() -> bool:
        with database.reading() as session:
            session.connection().exec_driver_sql("SELECT 1")
        return True

    return Check("database", ask)


def schema_check(database: Database) -> Check:
    """A newer schema is that of a release which is being rolled out: this one still does its work on it."""

    def ask() -> Condition:
        with database.reading() as session:
            found = fit(session.connection())
        if found is Fit.NEWER:
            return Condition.DEGRADED
        return Condition.OK if found is Fit.SAME else Condition.UNAVAILABLE

    return Check("schema", ask)


def audit_check(database: Database) -> Check:
    """Nothing of a patient leaves without its event: who cannot write one has nothing to answer.

    A small write to the same database is committed, as reading alone goes on where the disk is full or the server
    a standby. It may have to wait for its turn behind the service's own writes: that is no failure.
    """

    def ask() -> bool:
        with database.unsynced() as session:
            connection = session.connection()
            try:
                if connection.dialect.name == "sqlite":
                    connection.exec_driver_sql(f"PRAGMA application_id = {_APPLICATION_ID}")
                    may_insert = True
                else:
                    may_insert = bool(connection.exec_driver_sql(_MAY_INSERT).scalar())
                    connection.exec_driver_sql("SELECT pg_current_xact_id()")
                session.commit()
            except SQLAlchemyError as error:
                raise ServiceUnavailable(
                    "the database takes no writes", code="database_unavailable"
                ) from error
        return may_insert

    return Check("audit", ask, late=Condition.DEGRADED)


def anchor_check(anchor: Path) -> Check:
    """Without its anchor the log is only without its outside witness: checkpoints are added to it later."""

    def ask() -> bool:
        return os.access(anchor if anchor.exists() else anchor.parent, os.W_OK)

    return Check("audit_anchor", ask, failed=Condition.DEGRADED, late=Condition.DEGRADED)


def keyring_check(keyring: Keyring, path: Path) -> Check:
    """The keys in hand have to seal and open. Their file is needed for the next start, and for a rotation."""

    def ask() -> Condition:
        sealed = keyring.seal(b"probe", **_PROBE)
        if keyring.open_untrusted(sealed, **_PROBE) != b"probe":
            return Condition.UNAVAILABLE
        return Condition.OK if _is_private_file(path) else Condition.DEGRADED

    return Check("keyring", ask)


def _is_private_file(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and not stat.S_IMODE(mode) & 0o077


def disk_check(folder: Path, *, holds_database: bool) -> Check:
    """A full disk stops a database that is on it; otherwise it stops the anchor, and what is kept for a while."""
    failed = Condition.UNAVAILABLE if holds_database else Condition.DEGRADED

    def ask() -> Condition:
        free = shutil.disk_usage(folder).free
        if free < _NEEDED_BYTES:
            return failed
        return Condition.OK if free >= _USUAL_BYTES else Condition.DEGRADED

    return Check("disk", ask, failed=failed, late=Condition.DEGRADED)


def engine_check(engines: Iterable[Engine | EnginePool]) -> Check:
    """An engine that died is started anew here: readiness keeps those away whose work would have started it."""
    known = tuple(engines)

    def ask() -> bool:
        alive = [_is_alive(engine) for engine in known]
        return all(alive)

    return Check("engine", ask, at_start=True)


def _is_alive(engine: Engine | EnginePool) -> bool:
    try:
        engine.wait_ready(0.0)
    except (EngineUnavailable, ModelIntegrityError):
        return False
    return True


def redis_check(ping: Callable[[], bool]) -> Check:
    """Without Redis the rows are swept for work, and each process counts its limits for itself."""
    return Check("redis", ping, failed=Condition.DEGRADED, late=Condition.DEGRADED)


def workers_check(alive: Callable[[], int]) -> Check:
    """Without a worker, calls are answered from what is finished, and new studies wait."""
    return Check("workers", lambda: alive() > 0, failed=Condition.DEGRADED, late=Condition.DEGRADED)


def storage_checks(
    database: Database, keyring: Keyring, *, data_dir: Path, keyring_path: Path, anchor: Path
) -> Sequence[Check]:
    """Return the checks that every process of an installation makes."""
    return (
        database_check(database),
        schema_check(database),
        audit_check(database),
        anchor_check(anchor),
        keyring_check(keyring, keyring_path),
        disk_check(data_dir, holds_database=database.engine.dialect.name == "sqlite"),
    )
