import shutil

import pytest

from rayhook.audit.record import AuditLog
from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database, migrate


@pytest.fixture(scope="session")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keys") / "keyring.json")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    path = tmp_path_factory.mktemp("schema") / "rayhook.sqlite3"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def database_path(tmp_path, migrated):
    return shutil.copy(migrated, tmp_path / "rayhook.sqlite3")


@pytest.fixture
def database(database_path):
    database = create_database(f"sqlite:///{database_path}")
    yield database
    database.close()


@pytest.fixture
def anchor(tmp_path):
    return tmp_path / "anchor.jsonl"


@pytest.fixture
def audit(keyring, anchor):
    return AuditLog(keyring, anchor=anchor)
