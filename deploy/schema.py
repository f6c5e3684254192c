"""Which schema a database has, which of it this release can work with, and how it becomes the newest."""

from enum import Enum
from importlib import resources
from typing import Final

from sqlalchemy import Connection, inspect

from rayhook.fhir.errors import Conflict, Forbidden, ServiceUnavailable

SCHEMA_REVISION: Final = "0015"
# The previous release's: its processes go on working on this schema, as nothing they use was renamed or dropped.
COMPATIBLE_SINCE: Final = "0010"

_MIGRATIONS = resources.files("rayhook.deploy").joinpath("migrations")
_COMMENT = "Rayhook: works with releases of schema {} and newer"


class Fit(Enum):
    """How a database's schema stands to this release."""

    SAME = "same"
    OLDER = "older"
    NEWER = "newer, and this release may work with it"
    TOO_NEW = "too new for this release"


def schema_revision(connection: Connection) -> str | None:
    """Return the database's revision; None for a database without tables of ours."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if found is None else str(found)


def fit(connection: Connection) -> Fit:
    """Compare by number: revisions go up, and nothing is ever taken back."""
    found = schema_revision(connection)
    if found == SCHEMA_REVISION:
        return Fit.SAME
    if found is None or found < SCHEMA_REVISION:
        return Fit.OLDER
    since = _compatible_since(connection)
    return Fit.NEWER if since is not None and since <= SCHEMA_REVISION else Fit.TOO_NEW


def may_migrate(connection: Connection) -> bool:
    """Return whether the connected role owns the schema, or may begin one in an empty database."""
    if connection.dialect.name == "sqlite":
        return True
    query = "SELECT has_schema_privilege(current_schema(), 'CREATE')"
    if schema_revision(connection) is not None:
        query = (
            "SELECT pg_has_role(current_user, relowner, 'USAGE') FROM pg_class "
            "WHERE oid = to_regclass('alembic_version')"
        )
    return bool(connection.exec_driver_sql(query).scalar())


def require_owner(connection: Connection) -> None:
    if not may_migrate(connection):
        raise Forbidden(
            "the connected role does not own the tables: RAYHOOK_DATABASE_OWNER_URL names the one that does",
            code="not_the_owner",
        )


def require_fit(connection: Connection, found: Fit) -> None:
    """Raise where this release must not work with the database as it is."""
    if found is Fit.OLDER:
        raise ServiceUnavailable(
            f"the database's schema is {schema_revision(connection) or 'missing'}, this release needs "
            f"{SCHEMA_REVISION}: run `rayhook database migrate` as the tables' owner",
            code="schema_outdated",
        )
    if found is Fit.TOO_NEW:
        raise Conflict(
            f"the database's schema {schema_revision(connection)} is of a later release, which does not work "
            f"together with this one ({SCHEMA_REVISION})",
            code="schema_too_new",
        )


def upgrade(connection: Connection) -> None:
    """Bring the schema to SCHEMA_REVISION in the connection's transaction; several processes take turns."""
    # Here, as Alembic takes half a second to import, and most starts find nothing to do.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, SCHEMA_REVISION)
    _tell_compatible(connection)


def _tell_compatible(connection: Connection) -> None:
    """Keep it beside the revision, where a release that does not know the newer migrations can read it."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA user_version = {int(COMPATIBLE_SINCE)}")
    else:
        connection.exec_driver_sql(
            f"COMMENT ON TABLE alembic_version IS '{_COMMENT.format(COMPATIBLE_SINCE)}'"
        )


def _compatible_since(connection: Connection) -> str | None:
    if connection.dialect.name == "sqlite":
        number = connection.exec_driver_sql("PRAGMA user_version").scalar()
        return f"{number:04}" if number else None
    text = connection.exec_driver_sql(
        "SELECT obj_description(to_regclass('alembic_version'), 'pg_class')"
    ).scalar()
    before, _, after = _COMMENT.partition("{}")
    if not isinstance(text, str) or not (text.startswith(before) and text.endswith(after)):
        return None
    return text.removeprefix(before).removesuffix(after)
