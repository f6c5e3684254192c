"""The database: SQLite beside the service by default, PostgreSQL by URL, the same code on both."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry
from sqlmodel import Session

from rayhook.auth.database_types import Sessions
from rayhook.deploy.postgresql import UNSYNCED, USUAL, ConnectionSettings, create_postgresql_engine
from rayhook.deploy.schema import SCHEMA_REVISION, Fit, fit, may_migrate, require_fit, require_owner, upgrade
from rayhook.fhir.errors import InvalidRequest, ServiceUnavailable

__all__ = [
    "SCHEMA_REVISION",
    "Database",
    "administering",
    "create_database",
    "ensure_schema",
    "migrate",
    "parse_url",
]

_BUSY_TIMEOUT_MS = 10_000
_POOL_SIZE = 20
_POOL_OVERFLOW = 60  # on SQLite a connection is only a file handle, and its thread may wait for its turn
_READING = "rayhook_reading"
_WRITING = "rayhook_writing"
_UNAVAILABLE = (DatabaseError, OperationalError)  # these, not their subclasses: a damaged file, a lost server
_NOT_CONNECTED = (
    ("certificate", "database_untrusted", "the database's certificate is not that of its name and authority"),
    ("authentication failed", "database_refused", "the database did not take the role or its password"),
    ("too many clients", "database_busy", "the database has no free connection"),
    ("remaining connection slots", "database_busy", "the database has no free connection"),
    ("too many connections", "database_busy", "the database has no free connection"),
)
_TOO_LONG = ("55P03", "57014")  # lock_not_available, query_canceled
_SQLITE_PRAGMAS = (
    f"busy_timeout = {_BUSY_TIMEOUT_MS}",
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    # What is overwritten or deleted is zeroed in the pages that are written anyway: a destroyed key is gone.
    "secure_delete = FAST",
    # Without it INSERT OR REPLACE would delete an audit event without firing the trigger that forbids it.
    "recursive_triggers = ON",
)


@dataclass(frozen=True, slots=True)
class Database:
    """One engine and its kinds of session.

    `sessions` are for transactions that may write: on SQLite each takes the writer's lock at its first statement,
    so hold none over a network call. `reading` sessions never wait for a writer, and cannot write.
    `unsynced` sessions commit before the disk has it: for what only counts together with a later commit of
    `sessions`, which brings everything before it to the disk. Other processes see it at once.
    """

    engine: Engine
    sessions: Sessions
    reading: Sessions
    unsynced: Sessions

    def close(self) -> None:
        self.engine.dispose()


def create_database(
    url: str, settings: ConnectionSettings = USUAL, *, application: str = "rayhook"
) -> Database:
    """Return the database at `url`, whose schema `migrate` has made.

    settings: of PostgreSQL's connections.  application: how it knows them.
    Raises InvalidRequest for a URL that is neither a SQLite file nor PostgreSQL.
    """
    engine = _create_engine(parse_url(url), settings, application=application)
    reading = engine.execution_options(**{_READING: True, "postgresql_readonly": True})
    return Database(
        engine,
        sessions=partial(Session, engine, expire_on_commit=False),
        reading=partial(Session, reading, expire_on_commit=False),
        unsynced=partial(Session, engine.execution_options(**{UNSYNCED: True}), expire_on_commit=False),
    )


def parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InvalidRequest(
            "not a database URL", code="invalid_setting", expression="DATABASE_URL"
        ) from error
    if parsed.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername in {"sqlite", "sqlite+pysqlite"} and parsed.database not in {None, "", ":memory:"}:
        return parsed
    raise InvalidRequest(
        "the database must be a SQLite file or PostgreSQL", code="invalid_setting", expression="DATABASE_URL"
    )


def migrate(url: str, settings: ConnectionSettings = USUAL) -> None:
    """Bring the schema at `url` to SCHEMA_REVISION, as the role that owns it; does nothing where it is there.

    Raises Conflict where it is that of a later release, which nothing is taken back from, and Forbidden for a role
    that does not own the tables.
    """
    with administering(parse_url(url), settings) as connection:
        require_owner(connection)
        match fit(connection):
            case Fit.OLDER:
                upgrade(connection)
            case Fit.TOO_NEW as found:
                require_fit(connection, found)


def ensure_schema(url: str, settings: ConnectionSettings = USUAL) -> None:
    """Migrate where the connected role may, as an embedded database's always does; else only look.

    Raises ServiceUnavailable where the schema is older than this release needs, Conflict where it is too new for it:
    the one of the release after this one is not.
    """
    with administering(parse_url(url), settings) as connection:
        found = fit(connection)
        if found is Fit.OLDER and may_migrate(connection):
            upgrade(connection)
        else:
            require_fit(connection, found)


@contextmanager
def administering(url: URL, settings: ConnectionSettings) -> Iterator[Connection]:
    """Yield one connection in one transaction that may take its time."""
    engine = _create_engine(url, settings.unlimited(), application="rayhook database")
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def _create_engine(url: URL, settings: ConnectionSettings, *, application: str) -> Engine:
    """The values of a statement are in no error's text: errors are logged."""
    if url.get_backend_name() == "sqlite":
        engine = _create_sqlite_engine(url)
    else:
        engine = create_postgresql_engine(url, settings, application=application)
    event.listen(engine, "handle_error", _tell_unavailable)
    return engine


def _create_sqlite_engine(url: URL) -> Engine:
    _create_private_file(Path(str(url.database)))
    engine = create_engine(url, pool_size=_POOL_SIZE, max_overflow=_POOL_OVERFLOW, hide_parameters=True)
    turn = _WriterTurn()
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", partial(_begin_sqlite, turn))
    event.listen(engine, "checkin", turn.end)
    return engine


def _create_private_file(path: Path) -> None:
    """SQLite gives its WAL the mode of the database file."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # None: transactions are begun by `_begin_sqlite` alone, not by the driver at the first write.
    connection.isolation_level = None
    for pragma in _SQLITE_PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


class _WriterTurn:
    """One writer of this process at a time: the threads queue here, not in SQLite's back-off, which starves some.

    A turn lasts from the transaction's begin until its connection is back in the pool.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def begin(self, connection: Connection) -> None:
        if not self._lock.acquire(timeout=_BUSY_TIMEOUT_MS / 1000):
            raise ServiceUnavailable("the database does not answer", code="database_unavailable")
        connection.info[_WRITING] = True

    def end(self, _connection: object, record: ConnectionPoolEntry) -> None:
        if record.info.pop(_WRITING, False):
            self._lock.release()


def _begin_sqlite(turn: _WriterTurn, connection: Connection) -> None:
    """Take the writer's lock at once: a transaction that reads, then writes, would find itself overtaken.

    Spec: https://www.sqlite.org/lang_transaction.html (BEGIN IMMEDIATE), SQLITE_BUSY_SNAPSHOT
    """
    is_reading = bool(connection.get_execution_options().get(_READING))
    if not is_reading:
        turn.begin(connection)
        synchronous = "NORMAL" if connection.get_execution_options().get(UNSYNCED) else "FULL"
        connection.exec_driver_sql(f"PRAGMA synchronous = {synchronous}")
    connection.exec_driver_sql(f"PRAGMA query_only = {int(is_reading)}")
    connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")


def _tell_unavailable(context: ExceptionContext) -> ServiceUnavailable | None:
    is_lost = context.is_disconnect or type(context.sqlalchemy_exception) in _UNAVAILABLE
    if context.is_pre_ping or not is_lost:
        return None
    if getattr(context.original_exception, "sqlstate", None) in _TOO_LONG:
        return ServiceUnavailable("the database takes too long", code="database_timeout")
    if context.connection is None:
        return _not_connected(str(context.original_exception))
    return ServiceUnavailable("the database does not answer", code="database_unavailable")


def _not_connected(reason: str) -> ServiceUnavailable:
    """Tell apart by its words, as libpq has no codes for them, what has to be mended in different places."""
    for words, code, message in _NOT_CONNECTED:
        if words in reason:
            return ServiceUnavailable(message, code=code)
    return ServiceUnavailable("the database does not answer", code="database_unavailable")
