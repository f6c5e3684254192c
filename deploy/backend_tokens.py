"""Our own tokens with the audit behind them: no token is used that the log does not know of."""

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.backend import BackendTokens
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR
from rayhook.auth.scopes import ScopeSet
from rayhook.fhir.transport import Transport


def backend_tokens(
    transport: Transport, keyring: Keyring, sessions: Sessions, audit: AuditLog
) -> BackendTokens:
    def issued(ehr: EHR, scopes: ScopeSet) -> None:
        client = "" if ehr.backend is None else ehr.backend.client_id
        entry = AuditEntry(
            AuditKind.AUTH_BACKEND_AUTHORIZED,
            ehr_id=ehr.id,
            agent="rayhook",
            detail={"client": client, "scope": str(scopes)},
        )
        with sessions() as session:
            audit.record(session, entry)
            session.commit()

    return BackendTokens(transport, keyring, issued=issued)
