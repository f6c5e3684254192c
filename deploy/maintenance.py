"""What an operator does from the command line beside a running service: verify and read the audit."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from rayhook.audit.chain import verify
from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.report import ChainReport
from rayhook.audit.review import AuditRecord, recent
from rayhook.auth.keys import Keyring
from rayhook.deploy.database import Database, create_database
from rayhook.deploy.settings import StorageSettings
from rayhook.fhir.errors import InvalidRequest

_AGENT = "rayhook command line"


@dataclass(frozen=True, slots=True)
class Installation:
    """The state of one installation, opened for a command."""

    database: Database
    keyring: Keyring
    audit: AuditLog
    anchor: Path

    @classmethod
    @contextmanager
    def opened(cls, settings: StorageSettings) -> Iterator[Self]:
        """Raise InvalidRequest where there is no installation: looking must not make one."""
        if not settings.keyring_path.exists():
            raise InvalidRequest(
                f"there is no Rayhook installation in {settings.data_dir} (no keyring)",
                code="no_installation",
            )
        keyring = Keyring.load_or_create(settings.keyring_path)
        database = create_database(settings.resolved_database_url)
        try:
            yield cls(database, keyring, AuditLog(keyring, anchor=settings.anchor_path), settings.anchor_path)
        finally:
            database.close()

    def verify_audit(self, public_key: Path | None) -> ChainReport:
        """Return what `audit.chain.verify` finds; `public_key` is a PEM file, our own key by default.

        The verification is itself recorded, after it.
        """
        key = self.keyring.audit_public_key if public_key is None else read_public_key(public_key)
        with self.database.reading() as session:
            report = verify(session, key, self.anchor, keyring=self.keyring)
        outcome = Outcome.SUCCESS if report.intact else Outcome.MAJOR_FAILURE
        detail = {"events": str(report.size), "problems": str(len(report.problems))}
        self._record(AuditEntry(AuditKind.AUDIT_CHAIN_VERIFIED, outcome, agent=_AGENT, detail=detail))
        return report

    def recent_events(self, limit: int) -> list[AuditRecord]:
        """Return the newest events; the reading is recorded before they are."""
        self._record(AuditEntry(AuditKind.AUDIT_LOG_READ, agent=_AGENT, detail={"limit": str(limit)}))
        with self.database.reading() as session:
            return recent(session, self.keyring, limit=limit)

    def _record(self, entry: AuditEntry) -> None:
        with self.database.sessions() as session:
            self.audit.record(session, entry)
            session.commit()


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Raise InvalidRequest for a file that is no Ed25519 public key in PEM."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except ValueError as error:
        raise InvalidRequest("the public key must be a PEM file", expression="--public-key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidRequest("the public key must be Ed25519", expression="--public-key")
    return key
