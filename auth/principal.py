"""Who calls: a CDS client by its JWT, or a person by a SMART session or token."""

from dataclasses import dataclass

from rayhook.auth.registry import EHR
from rayhook.auth.roles import Permission, Role, permissions_of
from rayhook.auth.scopes import ScopeSet


@dataclass(frozen=True, slots=True)
class CDSClientPrincipal:
    """The EHR whose key signed the call. `expires_at` is seconds since the epoch."""

    ehr: EHR
    issuer: str
    jti: str
    tenant: str | None
    expires_at: float


@dataclass(frozen=True, slots=True)
class SMARTUser:
    """`fhir_user` is relative ("Practitioner/1") where it lies on the EHR's own FHIR base.

    expires_at: of the token, in seconds since the epoch, where it was a token that was shown.
    """

    ehr: EHR
    fhir_user: str | None
    patient_id: str | None
    scopes: ScopeSet
    client_id: str
    name: str | None = None
    roles: frozenset[Role] = frozenset()
    expires_at: float | None = None

    def can(self, permission: Permission) -> bool:
        return permission in permissions_of(self.roles)
