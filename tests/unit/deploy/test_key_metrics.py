import shutil
import threading

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from rayhook.auth.encryption import MAX_USES
from rayhook.auth.key_tables import KEY_USE
from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database
from rayhook.deploy.key_metrics import KeyCollector
from rayhook.deploy.key_use import note_until, told_uses


@pytest.fixture
def keyring(tmp_path):
    return Keyring.load_or_create(tmp_path / "keyring.json")


@pytest.fixture
def database(tmp_path, migrated_sqlite):
    made = create_database(f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'rayhook.sqlite3')}")
    yield made
    made.close()


def test_the_metric_says_how_worn_the_sealing_key_is(database, keyring):
    with database.sessions() as session:
        row = {"key_id": keyring.sealing_key, "uses": MAX_USES // 4, "updated_at": 0.0}
        session.execute(KEY_USE.insert().values(row))
        session.commit()
    registry = CollectorRegistry()
    registry.register(KeyCollector(database.reading, keyring))
    assert b"rayhook_encryption_key_worn_ratio 0.25" in generate_latest(registry)


def test_a_process_that_stops_tells_what_it_has_sealed(database, keyring):
    keyring.seal(b"value", table="t", column="c", row="1")
    stopping = threading.Event()
    stopping.set()
    note_until(database.sessions, keyring, stopping)
    with database.reading() as session:
        assert told_uses(session) == {keyring.sealing_key: 1}
