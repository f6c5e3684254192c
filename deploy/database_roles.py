"""The roles on PostgreSQL: the owner migrates, the service reads and writes rows, the audit reader reads the audit."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, inspect, text

from rayhook.fhir.errors import InvalidRequest

SERVICE_ROLE: Final = "rayhook_service"
AUDIT_ROLE: Final = "rayhook_audit"

_ROWS = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"})
_ADDING = frozenset({"SELECT", "INSERT"})
_READING = frozenset({"SELECT"})
_NONE: frozenset[str] = frozenset()
# Purge, release of a hold and rotation of the key are the owner's, from the command line.
_LOG = {
    "audit_checkpoint": _ADDING,
    "audit_entity": _ADDING,
    "audit_event": _ADDING,
    "audit_hold": _ADDING,
    "audit_key": _READING,
    "audit_purge": _READING,
    "audit_tombstone": _READING,
}
_REVISION = "alembic_version"
_KEYS = "patient_key"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_VERIFIER = re.compile(r"SCRAM-SHA-256\$[0-9A-Za-z+/=:$]+")


def service_privileges(table: str) -> frozenset[str]:
    return _READING if table == _REVISION else _LOG.get(table, _ROWS)


def audit_privileges(table: str) -> frozenset[str]:
    """What verification and export need: the log, its proofs, the keys it is sealed by, and the schema's revision."""
    return _READING if table in _LOG or table in {_KEYS, _REVISION} else _NONE


@dataclass(frozen=True, slots=True)
class Role:
    """A login role that owns nothing; `privileges` says what it may do with each table."""

    name: str
    privileges: Callable[[str], frozenset[str]]

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None or self.name.startswith("pg_"):
            raise InvalidRequest(
                "a role's name has small letters, digits and underscores", code="role_name_invalid"
            )


@dataclass(frozen=True, slots=True)
class Place:
    """Where the tables are, quoted as SQL has it."""

    database: str
    schema: str


def service_role(name: str = SERVICE_ROLE) -> Role:
    return Role(name, service_privileges)


def audit_role(name: str = AUDIT_ROLE) -> Role:
    return Role(name, audit_privileges)


def exists(connection: Connection, role: Role) -> bool:
    query = text("SELECT count(*) FROM pg_roles WHERE rolname = :name")
    return bool(connection.execute(query, {"name": role.name}).scalar())


def make(connection: Connection, role: Role, password: str | None) -> bool:
    """Make the role, give it the password, or both; return whether it was made.

    Raises InvalidRequest where the connected role may not make roles.
    """
    is_new = not exists(connection, role)
    if is_new:
        _require_role_maker(connection, role)
        connection.exec_driver_sql(
            f"CREATE ROLE {_quoted(connection, role.name)} LOGIN "
            "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
        )
    if password is not None:
        connection.exec_driver_sql(
            f"ALTER ROLE {_quoted(connection, role.name)} PASSWORD '{_verifier(connection, role, password)}'"
        )
    return is_new


def _require_role_maker(connection: Connection, role: Role) -> None:
    query = "SELECT rolcreaterole OR rolsuper FROM pg_roles WHERE rolname = current_user"
    if not connection.exec_driver_sql(query).scalar():
        raise InvalidRequest(
            f"the owner may not make roles: have an administrator run CREATE ROLE {role.name} LOGIN, or "
            "ALTER ROLE of the owner with CREATEROLE",
            code="role_not_made",
        )


def _verifier(connection: Connection, role: Role, password: str) -> str:
    """Return what the server keeps: the password itself never goes there, nor to its log. Spec: RFC 5802."""
    driver = connection.connection.driver_connection
    assert driver is not None
    made: bytes = driver.pgconn.encrypt_password(password.encode(), role.name.encode(), b"scram-sha-256")
    verifier = made.decode()
    assert _VERIFIER.fullmatch(verifier)
    return verifier


def grant(connection: Connection, roles: Iterable[Role]) -> None:
    """Give each role exactly what it needs, and everybody else nothing; done again it changes nothing.

    Nothing waits for it: a running service keeps its privileges until the transaction commits.
    """
    place = _place(connection)
    for statement in _closed_to_everybody(connection, place):
        connection.exec_driver_sql(statement)
    for role in roles:
        for statement in _granted(connection, role, place):
            connection.exec_driver_sql(statement)


def _closed_to_everybody(connection: Connection, place: Place) -> Iterator[str]:
    if _owns_database(connection):
        yield f"REVOKE ALL ON DATABASE {place.database} FROM PUBLIC"
    if connection.exec_driver_sql(
        "SELECT has_schema_privilege('public', current_schema(), 'CREATE')"
    ).scalar():
        yield f"REVOKE CREATE ON SCHEMA {place.schema} FROM PUBLIC"


def _granted(connection: Connection, role: Role, place: Place) -> Iterator[str]:
    name = _quoted(connection, role.name)
    if _owns_database(connection):
        yield f"GRANT CONNECT ON DATABASE {place.database} TO {name}"
    yield f"REVOKE ALL ON SCHEMA {place.schema} FROM {name}"
    yield f"GRANT USAGE ON SCHEMA {place.schema} TO {name}"
    for table in sorted(inspect(connection).get_table_names()):
        privileges = ", ".join(sorted(role.privileges(table)))
        yield f"REVOKE ALL ON {_quoted(connection, table)} FROM {name}"
        if privileges:
            yield f"GRANT {privileges} ON {_quoted(connection, table)} TO {name}"
    for sequence, table in sequences(connection):
        yield f"REVOKE ALL ON SEQUENCE {_quoted(connection, sequence)} FROM {name}"
        if "INSERT" in role.privileges(table):
            yield f"GRANT USAGE ON SEQUENCE {_quoted(connection, sequence)} TO {name}"


def sequences(connection: Connection) -> list[tuple[str, str]]:
    """Return each sequence and the table that it numbers."""
    query = (
        "SELECT s.relname, t.relname FROM pg_class s JOIN pg_depend d ON d.objid = s.oid AND d.deptype IN ('a', 'i') "
        "JOIN pg_class t ON t.oid = d.refobjid "
        "WHERE s.relkind = 'S' AND s.relnamespace = current_schema()::regnamespace ORDER BY 1"
    )
    return [(str(sequence), str(table)) for sequence, table in connection.exec_driver_sql(query)]


def _owns_database(connection: Connection) -> bool:
    query = "SELECT pg_has_role(current_user, datdba, 'USAGE') FROM pg_database WHERE datname = current_database()"
    return bool(connection.exec_driver_sql(query).scalar())


def _place(connection: Connection) -> Place:
    database, schema = connection.exec_driver_sql("SELECT current_database(), current_schema()").one()
    return Place(_quoted(connection, database), _quoted(connection, schema))


def _quoted(connection: Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote_identifier(name)
