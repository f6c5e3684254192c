"""Each check says what is so, on both databases, under the fault that it is for."""

from types import SimpleNamespace

import pytest
from sqlalchemy import text

from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database
from rayhook.deploy.health import Condition, Health
from rayhook.deploy.health_checks import (
    anchor_check,
    audit_check,
    database_check,
    disk_check,
    engine_check,
    keyring_check,
    redis_check,
    schema_check,
    storage_checks,
    workers_check,
)
from rayhook.fhir.errors import EngineUnavailable, ServiceUnavailable
from tests import storage
from tests.faults.test_disk_full import fill, small_disk


@pytest.fixture
def database(both):
    made = create_database(both.url)
    yield made
    made.close()


@pytest.fixture
def owner(both):
    made = create_database(both.owner_url)
    yield made
    made.close()


@pytest.fixture
def keyring(tmp_path):
    return Keyring.load_or_create(tmp_path / "keyring.json")


def found(*checks):
    """Return what a health made of these checks says."""
    health = Health()
    health.begin(checks)
    try:
        return {name: one.value for name, one in health.ready().checks.items()}
    finally:
        health.close()


def change(owner, statement):
    with owner.sessions() as session:
        session.execute(text(statement))
        session.commit()


def test_a_whole_installation_is_well(database, keyring, tmp_path):
    checks = storage_checks(
        database,
        keyring,
        data_dir=tmp_path,
        keyring_path=tmp_path / "keyring.json",
        anchor=tmp_path / "anchor.jsonl",
    )
    told = found(*checks)
    assert set(told) == {"database", "schema", "audit", "audit_anchor", "keyring", "disk"}
    assert set(told.values()) == {"ok"}


def test_an_older_schema_is_not_for_this_release(database, owner):
    change(owner, "UPDATE alembic_version SET version_num = '0003'")
    assert found(schema_check(database)) == {"schema": "unavailable"}


def test_a_newer_schema_that_knows_this_release_is_degraded_only(database, owner):
    change(owner, "UPDATE alembic_version SET version_num = '9999'")
    assert found(schema_check(database)) == {"schema": "degraded"}


def test_a_newer_schema_that_does_not_is_not_for_this_release(database, owner):
    newer = "PRAGMA user_version = 9998"
    if owner.engine.dialect.name == "postgresql":
        newer = "COMMENT ON TABLE alembic_version IS 'Rayhook: works with releases of schema 9998 and newer'"
    change(owner, "UPDATE alembic_version SET version_num = '9999'")
    change(owner, newer)
    assert found(schema_check(database)) == {"schema": "unavailable"}


def test_a_log_that_takes_no_events_is_told(both, database, owner):
    if database.engine.dialect.name == "sqlite":
        for path in both.files.glob("*.sqlite3*"):
            path.write_bytes(b"what a failing disk left of it" * 1000)
        database.engine.dispose()
    else:
        change(owner, "REVOKE INSERT ON audit_event FROM rayhook_service")
    assert found(audit_check(database)) == {"audit": "unavailable"}


@pytest.mark.postgresql
def test_a_server_that_only_lets_read_is_told(wheel_of_postgresql):
    with wheel_of_postgresql.copied() as made:
        database = create_database(f"{made.url}&options=-c%20default_transaction_read_only%3Don")
        told = found(audit_check(database), database_check(database))
        database.close()
    assert told == {"audit": "unavailable", "database": "ok"}


def test_a_probe_of_the_log_adds_nothing_to_it(database):
    def events():
        with database.reading() as session:
            return session.execute(text("SELECT count(*) FROM audit_event")).scalar()

    before = events()
    assert found(audit_check(database)) == {"audit": "ok"}
    assert events() == before


def test_waiting_for_the_one_writers_turn_is_no_failure(tmp_path, migrated_sqlite):
    database = create_database(storage.sqlite(tmp_path / "storage", migrated_sqlite).url)
    with database.sessions() as session:
        session.execute(text("SELECT 1"))
        told = found(audit_check(database), database_check(database))
    database.close()
    assert told == {"audit": "degraded", "database": "ok"}


def test_a_database_that_is_away_is_told():
    def away():
        raise ServiceUnavailable("the database does not answer")

    assert found(database_check(SimpleNamespace(reading=away))) == {"database": "unavailable"}


def test_an_anchor_whose_folder_is_gone_is_degraded(tmp_path):
    assert found(anchor_check(tmp_path / "gone" / "anchor.jsonl")) == {"audit_anchor": "degraded"}


def test_a_keyring_whose_file_is_gone_goes_on_until_the_next_start(keyring, tmp_path):
    (tmp_path / "keyring.json").unlink()
    assert found(keyring_check(keyring, tmp_path / "keyring.json")) == {"keyring": "degraded"}


def test_a_keyring_that_others_may_read_is_told(keyring, tmp_path):
    (tmp_path / "keyring.json").chmod(0o644)
    assert found(keyring_check(keyring, tmp_path / "keyring.json")) == {"keyring": "degraded"}


def test_a_disk_that_fills_up_is_told_before_and_when_it_is_full(tmp_path, migrated_sqlite):
    with small_disk(tmp_path / "disk") as disk:
        database = create_database(storage.sqlite(disk / "storage", migrated_sqlite).url)
        checks = (audit_check(database), disk_check(disk, holds_database=True))
        assert found(*checks) == {"audit": "ok", "disk": "degraded"}
        ballast = fill(disk)
        assert found(*checks) == {"audit": "unavailable", "disk": "unavailable"}
        assert found(disk_check(disk, holds_database=False)) == {"disk": "degraded"}
        ballast.unlink()
        assert found(*checks) == {"audit": "ok", "disk": "degraded"}
        database.close()


def test_a_disk_with_room_is_well(tmp_path):
    assert found(disk_check(tmp_path, holds_database=True)) == {"disk": "ok"}


class Engine:
    def __init__(self, failure=None):
        self.failure = failure
        self.asked = 0

    def wait_ready(self, timeout_s):
        assert timeout_s == 0
        self.asked += 1
        if self.failure is not None:
            raise self.failure


def test_an_engine_that_is_not_ready_is_told_and_all_are_asked():
    dead, living = Engine(EngineUnavailable("it is starting")), Engine()
    assert found(engine_check([dead, living])) == {"engine": "unavailable"}
    assert (dead.asked, living.asked) == (1, 1)


def test_redis_and_workers_are_missed_but_not_needed():
    told = found(redis_check(lambda: False), workers_check(lambda: 0))
    assert told == {"redis": Condition.DEGRADED.value, "workers": Condition.DEGRADED.value}
    assert found(workers_check(lambda: 1)) == {"workers": "ok"}
