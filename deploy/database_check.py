"""What is wrong with an installation's database: schema, roles as they really are, transport, connections, safety."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import URL

from rayhook.deploy.database import administering
from rayhook.deploy.database_roles import Role, exists, sequences
from rayhook.deploy.postgresql import ConnectionSettings, transport_problem
from rayhook.deploy.schema import SCHEMA_REVISION, Fit, fit, schema_revision

_OLDEST_SERVER: Final = 15
_PRIVILEGES: Final = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
_POWERS: Final = {
    "rolsuper": "is a superuser",
    "rolcreaterole": "may make roles",
    "rolcreatedb": "may make databases",
    "rolreplication": "may replicate",
    "rolbypassrls": "passes by row security",
}
_SAFE: Final = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
# Any of these keeps a commit that was told as such through a crash of the server.
_SYNCHRONOUS: Final = frozenset({"on", "local", "remote_write", "remote_apply"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `ok` is False where something has to be done."""

    subject: str
    ok: bool
    text: str


def check(
    url: URL, settings: ConnectionSettings, roles: Iterable[Role], *, processes: int = 1
) -> list[Finding]:
    """Look at everything as the connected role; nothing is changed.

    processes: how many processes of the service and of its workers share the server.
    Raises ServiceUnavailable where the database does not answer.
    """
    with administering(url, settings) as connection:
        return [*_schema(connection), *_server(connection, url, settings, roles, processes)]


def _schema(connection: Connection) -> Iterator[Finding]:
    found = fit(connection)
    revision = schema_revision(connection) or "missing"
    yield Finding(
        "schema",
        found in {Fit.SAME, Fit.NEWER},
        revision if found is Fit.SAME else f"{revision}, this release has {SCHEMA_REVISION}: {found.value}",
    )


def _server(
    connection: Connection, url: URL, settings: ConnectionSettings, roles: Iterable[Role], processes: int
) -> Iterator[Finding]:
    if connection.dialect.name == "sqlite":
        yield Finding("server", True, "SQLite, for one process on one machine")
        return
    yield _version(connection)
    yield _transport(connection, url)
    yield _budget(connection, settings, processes)
    yield from _safety(connection)
    for role in roles:
        yield from _role(connection, role)
    yield _everybody(connection)


def _version(connection: Connection) -> Finding:
    version = connection.exec_driver_sql("SHOW server_version").scalar()
    number = int(str(connection.exec_driver_sql("SHOW server_version_num").scalar()))
    is_new_enough = number >= _OLDEST_SERVER * 10_000
    return Finding("server", is_new_enough, f"PostgreSQL {version}; {_OLDEST_SERVER} or newer is needed")


def _transport(connection: Connection, url: URL) -> Finding:
    problem = transport_problem(url)
    query = "SELECT ssl, version, cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    row = connection.exec_driver_sql(query).one()
    used = f"{row.version}, {row.cipher}" if row.ssl else "no TLS" if problem else "a socket of this machine"
    return Finding("transport", problem is None, used if problem is None else f"{used}: {problem}")


def _budget(connection: Connection, settings: ConnectionSettings, processes: int) -> Finding:
    """Others' connections count as they are now; ours as they may become."""
    query = (
        "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int "
        "- (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' "
        "AND application_name NOT LIKE 'rayhook%')"
    )
    free = int(connection.execute(text(query)).scalar_one())
    wanted = settings.connections * processes
    asked = f"{processes} of {settings.connections} connections each want {wanted}"
    return Finding("connections", wanted <= free, f"{asked}, the server has {free} for them")


def _safety(connection: Connection) -> Iterator[Finding]:
    for name, wanted in _SAFE.items():
        value = str(connection.exec_driver_sql(f"SHOW {name}").scalar())
        good = value in _SYNCHRONOUS if name == "synchronous_commit" else value == wanted
        yield Finding(
            name, good, value if good else f"{value}: committed work is lost when the server crashes"
        )


def _role(connection: Connection, role: Role) -> Iterator[Finding]:
    if not exists(connection, role):
        yield Finding(role.name, False, "there is no such role: run `rayhook database prepare`")
        return
    problems = [
        *_powers(connection, role),
        *_table_problems(connection, role),
        *_sequence_problems(connection, role),
    ]
    yield Finding(role.name, not problems, "; ".join(problems) or "has what it needs, and no more")


def _powers(connection: Connection, role: Role) -> Iterator[str]:
    query = text(
        "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles "
        "WHERE rolname = :role"
    )
    row = connection.execute(query, {"role": role.name}).one()
    yield from (told for power, told in _POWERS.items() if getattr(row, power))
    owners = (
        "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = current_schema() "
        "AND pg_has_role(:role, tableowner, 'MEMBER') ORDER BY 1"
    )
    for owner in connection.execute(text(owners), {"role": role.name}).scalars():
        yield "owns tables" if owner == role.name else f"may act as {owner}, who owns tables"
    creating = text("SELECT has_schema_privilege(:role, current_schema(), 'CREATE')")
    if connection.execute(creating, {"role": role.name}).scalar():
        yield "may make tables and functions"


def _table_problems(connection: Connection, role: Role) -> Iterator[str]:
    for table in sorted(inspect(connection).get_table_names()):
        real = _real_privileges(connection, role.name, table)
        wanted = role.privileges(table)
        if real - wanted:
            yield f"has {', '.join(sorted(real - wanted))} on {table}"
        if wanted - real:
            yield f"lacks {', '.join(sorted(wanted - real))} on {table}"


def _real_privileges(connection: Connection, role: str, table: str) -> frozenset[str]:
    """Return what the role has by any way: of its own, as a member of another, as everybody, on a column."""
    query = text(
        "SELECT privilege FROM unnest(CAST(:all AS text[])) AS privilege "
        "WHERE has_table_privilege(:role, CAST(:table AS text), privilege) "
        "OR (privilege IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') "
        "AND has_any_column_privilege(:role, CAST(:table AS text), privilege))"
    )
    values = {"all": list(_PRIVILEGES), "role": role, "table": f'"{table}"'}
    return frozenset(connection.execute(query, values).scalars())


def _sequence_problems(connection: Connection, role: Role) -> Iterator[str]:
    query = text("SELECT has_sequence_privilege(:role, CAST(:sequence AS text), 'USAGE')")
    for sequence, table in sequences(connection):
        has = bool(connection.execute(query, {"role": role.name, "sequence": f'"{sequence}"'}).scalar())
        if has != ("INSERT" in role.privileges(table)):
            yield f"{'has' if has else 'lacks'} USAGE on {sequence}"


def _everybody(connection: Connection) -> Finding:
    """Spec: CVE-2018-1058: who may make objects in a schema may have others call them."""
    open_ = [
        table
        for table in sorted(inspect(connection).get_table_names())
        if _real_privileges(connection, "public", table)
    ]
    creating = connection.exec_driver_sql(
        "SELECT has_schema_privilege('public', current_schema(), 'CREATE')"
    ).scalar()
    problems = [f"everybody has privileges on {table}" for table in open_]
    problems += ["everybody may make tables and functions"] if creating else []
    return Finding("everybody", not problems, "; ".join(problems) or "has nothing")
