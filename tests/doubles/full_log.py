"""An audit log that takes nothing, as on a full disk; everything else works."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine


@contextmanager
def full_log(engine: Engine, kind: str | None = None) -> Iterator[None]:
    """Have the log of a SQLite database refuse events of `kind`, or all of them.

    IF NOT EXISTS: without it SQLite answers from the names that this one of the pool's connections has read,
    which may be those of the last time, when the trigger was there.
    """
    condition = "1" if kind is None else f"NEW.kind = '{kind}'"
    rule = f"BEFORE INSERT ON audit_event WHEN {condition} BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TRIGGER IF NOT EXISTS audit_full {rule}")
    try:
        yield
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TRIGGER audit_full")
