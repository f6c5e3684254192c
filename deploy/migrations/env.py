"""What Alembic runs: always on the connection that `deploy.database.migrate` gives, in its transaction."""

from alembic import context
from sqlalchemy import Connection, text

# Any number; the same in every process that may migrate this database.
_MIGRATION_LOCK = 0x7261_7968_6F6F_6C


def _take_lock(connection: Connection) -> None:
    """Of several processes that start at once one migrates; a long lock never stops a running service."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATION_LOCK})
        connection.execute(text("SET LOCAL lock_timeout = '4s'"))


def _run(connection: Connection) -> None:
    _take_lock(connection)
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


_run(context.config.attributes["connection"])
