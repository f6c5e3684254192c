"""An installation with keys and an empty database, for the commands that open one."""

import shutil

import pytest

from rayhook.auth.keys import Keyring
from rayhook.deploy.maintenance import Installation
from rayhook.deploy.storage_settings import StorageSettings


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared") / "keyring.json"
    Keyring.load_or_create(path)
    return path


@pytest.fixture
def settings(prepared, tmp_path, migrated_sqlite):
    settings = StorageSettings(data_dir=tmp_path)
    shutil.copy(prepared, settings.keyring_path)
    shutil.copy(migrated_sqlite, tmp_path / "rayhook.sqlite3")
    return settings


@pytest.fixture
def installation(settings):
    with Installation.opened(settings) as opened:
        yield opened
