import shutil

import pytest

from rayhook.audit.record import AuditLog
from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database


@pytest.fixture(scope="session")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keys") / "keyring.json")


@pytest.fixture
def database(request, tmp_path, migrated_sqlite):
    """On SQLite; on both where the test's file asks for `both`, as the owner then: purge and holds are his."""
    if "both" in request.fixturenames:
        url = request.getfixturevalue("both").owner_url
    else:
        url = f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'rayhook.sqlite3')}"
    database = create_database(url)
    yield database
    database.close()


@pytest.fixture
def anchor(tmp_path):
    return tmp_path / "anchor.jsonl"


@pytest.fixture
def audit(keyring, anchor):
    return AuditLog(keyring, anchor=anchor)
