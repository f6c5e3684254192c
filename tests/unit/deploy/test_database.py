import importlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel

from rayhook.deploy.database import SCHEMA_REVISION, Database, create_database, migrate, parse_url
from rayhook.fhir.errors import InvalidRequest, ServiceUnavailable

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("audit", "auth", "cds_hooks", "inference", "smart_app")
TABLE_MODULES = [
    "rayhook." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if ", table=True)" in path.read_text()
]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'state' / 'rayhook.sqlite3'}"


@pytest.fixture
def database(url):
    migrate(url)
    database = create_database(url)
    yield database
    database.close()


def execute(database: Database, statement: str) -> None:
    with database.sessions() as session:
        session.execute(text(statement))
        session.commit()


def test_migrated_schema_is_that_of_the_models(database):
    for module in TABLE_MODULES:
        importlib.import_module(module)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_migrating_again_changes_nothing(database, url):
    execute(database, "INSERT INTO used_jti VALUES ('issuer', 'jti', 1.0)")
    migrate(url)
    with database.reading() as session:
        assert session.execute(text("SELECT count(*) FROM used_jti")).scalar() == 1


def test_database_and_its_folder_are_private(database, tmp_path):
    folder = tmp_path / "state"
    assert folder.stat().st_mode & 0o077 == 0
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("recursive_triggers", 1)],
)
def test_sqlite_is_set_up(database, pragma, value):
    with database.sessions() as session:
        assert session.execute(text(f"PRAGMA {pragma}")).scalar() == value


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "mysql://db/rayhook", "rayhook", "postgresql+psycopg2://db/rayhook"],
)
def test_url_of_another_kind_is_refused(url):
    with pytest.raises(InvalidRequest) as refusal:
        create_database(url)
    assert refusal.value.expression == "DATABASE_URL"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_is_spoken_to_through_psycopg_3(scheme):
    assert parse_url(f"{scheme}://db/rayhook").drivername == "postgresql+psycopg"


@pytest.mark.parametrize("table", ["audit_event", "audit_checkpoint"])
@pytest.mark.parametrize("act", ["UPDATE {table} SET {column} = 'x'", "DELETE FROM {table}"])
def test_audit_row_is_not_changed(database, table, act):
    fill_audit(database)
    column = "hash" if table == "audit_event" else "root"
    with pytest.raises(IntegrityError, match="append-only"):
        execute(database, act.format(table=table, column=column))


def test_audit_event_is_not_replaced(database):
    fill_audit(database)
    with pytest.raises(IntegrityError, match="append-only"):
        execute(database, "REPLACE INTO audit_event SELECT * FROM audit_event")


def fill_audit(database: Database) -> None:
    execute(
        database,
        "INSERT INTO audit_event (seq, recorded_at, kind, outcome, request_id, previous_hash, hash, mac) "
        "VALUES (1, '', '', 0, '', '', '', '')",
    )
    execute(
        database,
        "INSERT INTO audit_checkpoint (size, root, head, frontier, signed_at, signature) "
        "VALUES (1, '', '', '', '', '')",
    )


def test_session_that_has_read_can_write_beside_others(database):
    """With a deferred BEGIN, all but one of these would end in SQLITE_BUSY_SNAPSHOT."""
    start = threading.Barrier(6)

    def add_one() -> None:
        start.wait()
        with database.sessions() as session:
            count = session.execute(text("SELECT count(*) FROM used_jti")).scalar()
            time.sleep(0.01)
            session.execute(text("INSERT INTO used_jti VALUES ('issuer', :jti, 0)"), {"jti": str(count)})
            session.commit()

    threads = [threading.Thread(target=add_one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        assert session.execute(text("SELECT count(*) FROM used_jti")).scalar() == 6


def test_reader_does_not_wait_for_a_writer(database):
    with database.sessions() as writer:
        writer.execute(text("INSERT INTO used_jti VALUES ('issuer', 'jti', 0)"))
        with database.reading() as reader:
            assert reader.execute(text("SELECT count(*) FROM used_jti")).scalar() == 0


def test_reading_session_cannot_write(database):
    with pytest.raises(ServiceUnavailable), database.reading() as session:
        session.execute(text("INSERT INTO used_jti VALUES ('issuer', 'jti', 0)"))


def test_connection_that_served_a_reader_serves_a_writer(database):
    with database.reading() as session:
        session.execute(text("SELECT 1"))
    execute(database, "INSERT INTO used_jti VALUES ('issuer', 'jti', 0)")


def test_schema_revision_is_that_of_the_newest_migration():
    scripts = ScriptDirectory(str(ROOT / "deploy" / "migrations"))
    assert scripts.get_current_head() == SCHEMA_REVISION


@pytest.mark.parametrize(("kind", "synchronous"), [("unsynced", 1), ("sessions", 2)])
def test_only_an_unsynced_session_commits_before_the_disk_has_it(database, kind, synchronous):
    other = {"unsynced": "sessions", "sessions": "unsynced"}[kind]
    for name in (other, kind):
        with getattr(database, name)() as session:
            found = session.execute(text("PRAGMA synchronous")).scalar()
    assert found == synchronous


def test_writers_of_one_process_take_turns(database):
    def write(number: int) -> None:
        for count in range(25):
            execute(database, f"INSERT INTO used_jti VALUES ('{number}', '{count}', 0)")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(16)))
    with database.reading() as session:
        assert session.execute(text("SELECT count(*) FROM used_jti")).scalar() == 16 * 25


def test_rolled_back_work_is_gone(database):
    with database.sessions() as session:
        session.execute(text("INSERT INTO used_jti VALUES ('issuer', 'jti', 0)"))
        session.rollback()
    with database.reading() as session:
        assert session.execute(text("SELECT count(*) FROM used_jti")).scalar() == 0


def test_file_that_is_no_database_is_told_as_unavailable(tmp_path):
    path = tmp_path / "rayhook.sqlite3"
    path.write_bytes(b"not a database, but long enough to be looked at as if it were one" * 20)
    with pytest.raises(ServiceUnavailable):
        migrate(f"sqlite:///{path}")


def test_cards_of_before_overrides_outlast_the_migration(url):
    """0003 adds columns to a table that has rows in every installation."""
    from alembic import command
    from alembic.config import Config

    database = create_database(url)
    with database.engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(ROOT / "deploy" / "migrations"))
        config.set_main_option("path_separator", "os")
        command.upgrade(config, "0002")
        connection.exec_driver_sql(
            "INSERT INTO cds_card_issued (card, ehr_id, issuer, service_id, hook_instance, topic, issued_at) "
            "VALUES ('c', 'e', 'i', 's', 'h', 'finding', 1.0)"
        )
    migrate(url)
    with database.reading() as session:
        row = session.execute(text("SELECT card, override_index, suggestions FROM cds_card_issued")).one()
    database.close()
    assert tuple(row) == ("c", None, None)


def test_the_values_of_a_statement_are_in_no_errors_text(tmp_path):
    url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    migrate(url)
    database = create_database(url)
    row = {"id": "DOE^JANE", "at": 1.0}
    statement = text("INSERT INTO cds_card_override (override_index, overridden_at) VALUES (:id, :at)")
    with database.engine.begin() as connection:
        connection.execute(statement, row)
        with pytest.raises(IntegrityError) as told:
            connection.execute(statement, row)
    database.close()
    assert "DOE" not in str(told.value)


def _upgrade(url: str, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "deploy" / "migrations"))
    config.set_main_option("path_separator", "os")
    database = create_database(url)
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    database.close()


def _a_row(connection, table: str) -> None:
    """Fill every column, whatever it means."""
    values: dict[str, object] = {}
    for column in inspect(connection).get_columns(table):
        kinds = {"VARCHAR": "a", "TEXT": "a", "BLOB": b"a", "FLOAT": 1.0}
        values[column["name"]] = next((v for k, v in kinds.items() if k in str(column["type"])), 1)
    names = ", ".join(f'"{name}"' for name in values)
    places = ", ".join(f":{name}" for name in values)
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({places})"), values)


def test_a_database_of_the_third_revision_with_rows_is_brought_up_to_date(tmp_path):
    url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    _upgrade(url, "0003")
    database = create_database(url)
    with database.engine.begin() as connection:
        tables = sorted(set(inspect(connection).get_table_names()) - {"alembic_version", "cds_card_feedback"})
        for table in tables:
            _a_row(connection, table)
    migrate(url)
    with database.engine.connect() as connection:
        kept = {
            table: connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() for table in tables
        }
        entities = connection.exec_driver_sql("SELECT entity_index, seq FROM audit_entity").all()
    database.close()
    assert (set(kept.values()), entities) == ({1}, [("a", 1)])
