"""What the service is run with, by name and digest, so that the audit tells when it changes and not what it is."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlmodel import Session

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.review import recent
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHRRegistry
from rayhook.deploy.settings import Settings
from rayhook.deploy.storage_settings import PREFIX
from rayhook.inference.registry import ModelPackage

_DIGITS: Final = 16
_PURPOSE: Final = "deploy.configuration"


@dataclass(frozen=True, slots=True)
class Configuration:
    """`digests` are keyed: a password among the settings cannot be guessed from the log."""

    digests: Mapping[str, str]

    @classmethod
    def of(
        cls, keyring: Keyring, settings: Settings, registry: EHRRegistry, running: Iterable[ModelPackage]
    ) -> "Configuration":
        values = {
            PREFIX + name.upper(): repr(getattr(settings, name)) for name in type(settings).model_fields
        }
        values |= {f"EHR {ehr.id}": repr(ehr) for ehr in registry}
        values |= {f"model {package.manifest.id}": repr(package.manifest) for package in running}
        return cls(
            {
                name: keyring.blind_index(value, purpose=f"{_PURPOSE}.{name}")[:_DIGITS]
                for name, value in values.items()
            }
        )

    def changes_since(self, before: Mapping[str, str]) -> list[str]:
        names = self.digests.keys() | before.keys()
        return sorted(name for name in names if self.digests.get(name) != before.get(name))


def record_changes(
    session: Session, keyring: Keyring, audit: AuditLog, configuration: Configuration
) -> list[str]:
    """Record what differs from the last start, by name, and return it; the first start changes everything."""
    last = recent(session, keyring, limit=1, kind=AuditKind.DEPLOY_CONFIGURATION_CHANGED)
    before = json.loads(last[0].detail["state"]) if last else {}
    changes = configuration.changes_since(before)
    if changes:
        detail = {
            "changed": ", ".join(changes) if last else "first start",
            "state": json.dumps(dict(configuration.digests), sort_keys=True),
        }
        entry = AuditEntry(
            AuditKind.DEPLOY_CONFIGURATION_CHANGED, agent="rayhook", detail=detail, purpose="HSYSADMIN"
        )
        audit.record(session, entry)
    return changes
