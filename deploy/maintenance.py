"""The state of an installation, opened for a command beside a running service."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rayhook.audit.record import AuditLog
from rayhook.auth.keyring_file import KeyringFile
from rayhook.auth.keys import Keyring
from rayhook.deploy.database import Database, create_database
from rayhook.deploy.kms import keyring_file
from rayhook.deploy.storage_settings import StorageSettings
from rayhook.fhir.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Installation:
    """The state of one installation, opened for a command."""

    database: Database
    keyring: Keyring
    audit: AuditLog
    anchor: Path
    keyring_file: KeyringFile

    @classmethod
    @contextmanager
    def opened(cls, settings: StorageSettings) -> Iterator[Self]:
        """Raise InvalidRequest where there is no installation: looking must not make one."""
        if not settings.keyring_path.exists():
            raise InvalidRequest(
                f"there is no Rayhook installation in {settings.data_dir} (no keyring)",
                code="no_installation",
            )
        source = keyring_file(settings)
        keyring = Keyring.load_or_create(source.path, source.wrap)
        database = create_database(
            settings.resolved_database_url, settings.connection_settings, application="rayhook command"
        )
        try:
            audit = AuditLog(keyring, anchor=settings.anchor_path)
            yield cls(database, keyring, audit, settings.anchor_path, source)
        finally:
            database.close()
