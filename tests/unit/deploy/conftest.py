"""An installation with keys and an empty database, for the commands that open one."""

import shutil

import pytest

from rayhook.deploy.maintenance import Installation
from rayhook.deploy.storage_settings import StorageSettings


@pytest.fixture
def settings(keyring_to_copy, tmp_path, migrated_sqlite):
    settings = StorageSettings(data_dir=tmp_path)
    shutil.copy(keyring_to_copy, settings.keyring_path)
    shutil.copy(migrated_sqlite, tmp_path / "rayhook.sqlite3")
    return settings


@pytest.fixture
def installation(settings):
    with Installation.opened(settings) as opened:
        yield opened
