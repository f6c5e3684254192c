"""Connections to PostgreSQL: how many, how long each may take, and whether a URL keeps them from being read."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from rayhook.fhir.errors import InvalidRequest, ServiceUnavailable

UNSYNCED: Final = "rayhook_unsynced"

_RENEWED_AFTER_S = 3600  # so that a new password, certificate or address is taken up
# A peer that vanished without a word (power, network) is given up after 5 + 2 * 2 s, and so are unanswered bytes.
_KEEPALIVE: Final[Mapping[str, int]] = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 10_000,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """The connections of one process. A time of 0 is no limit, as PostgreSQL has it.

    password_file: read at every connect, so that a changed password needs no restart.
    """

    pool_size: int = 20
    pool_overflow: int = 10
    pool_timeout_s: float = 2.0
    connect_timeout_s: float = 5.0
    statement_timeout_s: float = 60.0
    lock_timeout_s: float = 10.0
    idle_in_transaction_timeout_s: float = 60.0
    password_file: Path | None = None

    @property
    def connections(self) -> int:
        return self.pool_size + self.pool_overflow

    def unlimited(self) -> "ConnectionSettings":
        """Return one connection that may take its time, for work on the schema."""
        return replace(
            self,
            pool_size=1,
            pool_overflow=0,
            statement_timeout_s=0,
            lock_timeout_s=0,
            idle_in_transaction_timeout_s=0,
        )

    def server_options(self) -> str:
        """Return what the server holds each of these connections to. Spec: PostgreSQL 18, 19.11.1."""
        options = {
            "statement_timeout": self.statement_timeout_s,
            "lock_timeout": self.lock_timeout_s,
            "idle_in_transaction_session_timeout": self.idle_in_transaction_timeout_s,
        }
        return " ".join(f"-c {name}={math.ceil(seconds * 1000)}" for name, seconds in options.items())


USUAL: Final = ConnectionSettings()


class _BoundedPool(QueuePool):
    """Whoever finds every connection in use is told so, in the service's own words."""

    def connect(self) -> PoolProxiedConnection:
        try:
            return super().connect()
        except PoolTimeout as error:
            raise ServiceUnavailable(
                "every connection to the database is in use", code="database_busy"
            ) from error


def create_postgresql_engine(url: URL, settings: ConnectionSettings, *, application: str) -> Engine:
    """Return the engine; a connection that the server has closed is replaced before its next use."""
    engine = create_engine(
        url,
        poolclass=_BoundedPool,
        pool_size=settings.pool_size,
        max_overflow=settings.pool_overflow,
        pool_timeout=settings.pool_timeout_s,
        pool_pre_ping=True,
        pool_recycle=_RENEWED_AFTER_S,
        pool_use_lifo=True,
        hide_parameters=True,
        connect_args=_connect_args(url, settings, application),
    )
    event.listen(engine, "begin", _begin)
    if settings.password_file is not None:
        event.listen(engine, "do_connect", partial(_give_password, settings.password_file))
    return engine


def _give_password(
    path: Path, _dialect: object, _record: object, _args: object, given: dict[str, Any]
) -> None:
    given["password"] = read_password(path)


def read_password(path: Path) -> str:
    """Return the file's line. Raises InvalidRequest where it cannot be read, is empty, or everybody may read it."""
    try:
        if path.stat().st_mode & 0o007:
            raise InvalidRequest("others may read the file of a database password", code="password_file_open")
        password = path.read_text("utf-8").strip()
    except OSError as error:
        raise InvalidRequest(
            "the file of a database password cannot be read", code="password_file_unreadable"
        ) from error
    if not password:
        raise InvalidRequest("the file of a database password is empty", code="password_file_empty")
    return password


def _connect_args(url: URL, settings: ConnectionSettings, application: str) -> dict[str, Any]:
    """What the URL says itself counts. Spec: PostgreSQL 18, 32.1.2 Parameter Key Words."""
    usual: dict[str, Any] = {
        **_KEEPALIVE,
        "application_name": application,
        "connect_timeout": math.ceil(settings.connect_timeout_s),
    }
    given = {name: value for name, value in usual.items() if name not in url.query}
    return given | {"options": " ".join([settings.server_options(), _text(url, "options")]).strip()}


def _begin(connection: Connection) -> None:
    """Spec: PostgreSQL 18, 28.4 Asynchronous Commit."""
    if connection.get_execution_options().get(UNSYNCED):
        connection.exec_driver_sql("SET LOCAL synchronous_commit = off")


def transport_problem(url: URL) -> str | None:
    """Return which rule a URL breaks by which nobody on the way can read or change what is said; None for none.

    SQLite and a socket of this machine need no TLS. Over TCP the server shows a certificate for its name from an
    authority that the URL names: that libpq's own variables or a service file ask for it as well does not count.
    Spec: PostgreSQL 18, 32.19.1 Client Verification of Server Certificates.
    """
    if url.get_backend_name() != "postgresql" or not _is_over_tcp(url):
        return None
    if _text(url, "sslmode") != "verify-full":
        return "sslmode=verify-full is needed where PostgreSQL is reached over TCP"
    if not _text(url, "sslrootcert"):
        return "sslrootcert is needed: the file of the authority that PostgreSQL's certificate is from, or system"
    if _text(url, "ssl_min_protocol_version") in {"TLSv1", "TLSv1.1"}:
        return "ssl_min_protocol_version must be TLSv1.2 or newer"
    return None


def _is_over_tcp(url: URL) -> bool:
    if any(_text(url, name) or os.environ.get(f"PG{name.upper()}") for name in ("service", "hostaddr")):
        return True
    given = url.query.get("host", url.host or os.environ.get("PGHOST", ""))
    hosts = given.split(",") if isinstance(given, str) else [one.rpartition(":")[0] or one for one in given]
    return any(host and not host.startswith(("/", "@")) for host in hosts)


def _text(url: URL, name: str) -> str:
    value = url.query.get(name, "")
    return value if isinstance(value, str) else value[-1]
