"""The accounts of one installation, opened for a command."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rayhook.deploy.database import ensure_schema
from rayhook.deploy.kms import open_keyring
from rayhook.deploy.maintenance import Installation
from rayhook.deploy.storage_settings import StorageSettings
from rayhook.smart_app.account_acts import AccountActs


@contextmanager
def opened_accounts(data_dir: Path | None, *, make: bool = False) -> Iterator[AccountActs]:
    """Yield the acts; with `make`, an installation that was never started gets its keyring and tables first.

    Raises InvalidRequest where there is no installation.
    """
    settings = StorageSettings() if data_dir is None else StorageSettings(data_dir=data_dir)
    if make:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        open_keyring(settings)
        ensure_schema(settings.resolved_database_url, settings.connection_settings)
    with Installation.opened(settings) as installation:
        yield AccountActs(installation.database.sessions, installation.keyring, installation.audit, time.time)
