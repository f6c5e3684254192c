"""What a service and a worker alike open before anything is analysed."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rayhook.audit.record import AuditLog
from rayhook.auth.registry import EHRRegistry
from rayhook.deploy.analysis import Outside
from rayhook.deploy.audit_forwarding import audit_origins
from rayhook.deploy.backend_tokens import backend_tokens
from rayhook.deploy.database import create_database, ensure_schema
from rayhook.deploy.erasures import ErasureUpkeep, open_erasures
from rayhook.deploy.kms import open_keyring
from rayhook.deploy.settings import Settings
from rayhook.fhir.transport import Transport


@contextmanager
def open_outside(
    settings: Settings, registry: EHRRegistry, *, application: str
) -> Iterator[tuple[Outside, ErasureUpkeep]]:
    """Open keys, database and transport; what a restored backup brought back is erased before anything is read.

    application: what the database is told to show of its connections.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    keyring = open_keyring(settings)
    ensure_schema(settings.resolved_database_url, settings.connection_settings)
    with ExitStack() as stack:
        database = create_database(
            settings.resolved_database_url, settings.connection_settings, application=application
        )
        stack.callback(database.close)
        transport = Transport(
            ca_bundle=settings.ca_bundle,
            allow_loopback_http=settings.development,
            private_origins=registry.private_origins | audit_origins(settings),
        )
        stack.callback(transport.close)
        audit = AuditLog(keyring, anchor=settings.anchor_path)
        erasures = open_erasures(settings, database, keyring, audit)
        erasures.begin()
        outside = Outside(
            settings=settings,
            database=database,
            keyring=keyring,
            registry=registry,
            audit=audit,
            transport=transport,
            tokens=backend_tokens(transport, keyring, database.sessions, audit),
        )
        yield outside, erasures
