"""OpenID providers that the staff may sign in at: `[[staff_oidc]]` of the registry file.

Spec: OpenID Connect Core 1.0, section 9 (client authentication); OpenID Connect Discovery 1.0
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from rayhook.auth.registry_values import Values, each, identifier, not_blank, scope_token
from rayhook.auth.role_rules import EHRPerson, RoleRule
from rayhook.auth.role_rules_file import StaffRoleTable, read_staff_role
from rayhook.auth.roles import STAFF_ROLES, Role
from rayhook.fhir.transport import origin_of


class ClientAuthentication(StrEnum):
    """How we prove to be the client. Spec: `token_endpoint_auth_method`, RFC 7591 section 2."""

    NONE = "none"
    PRIVATE_KEY_JWT = "private_key_jwt"


@dataclass(frozen=True, slots=True, kw_only=True)
class StaffProvider:
    """`acr_values` are what the provider must have checked, one of them, as a second factor; none asks for nothing.

    `name_claim` is the id_token's claim that is shown and told to the audit.
    """

    id: str
    name: str
    issuer: str
    client_id: str
    client_authentication: ClientAuthentication
    scopes: tuple[str, ...]
    origins: tuple[str, ...] = ()
    acr_values: tuple[str, ...] = ()
    name_claim: str = "preferred_username"
    private_network: bool = False
    role_rules: tuple[RoleRule, ...] = ()

    @property
    def allowed_origins(self) -> frozenset[str]:
        return frozenset({origin_of(self.issuer), *self.origins})

    def roles_of(self, claims: Mapping[str, Any]) -> frozenset[Role]:
        """Return what the rules give for a verified id_token's claims: without a rule that holds, nothing."""
        person = EHRPerson(fhir_user=None, claims=claims)
        given = frozenset().union(*(rule.roles for rule in self.role_rules if rule.holds(person)))
        return given & STAFF_ROLES


class StaffProviderTable(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    name: str
    issuer: str
    client_id: str
    client_authentication: ClientAuthentication = ClientAuthentication.PRIVATE_KEY_JWT
    scopes: tuple[str, ...] = ("openid", "profile")
    origins: list[str] = []
    acr_values: list[str] = []
    name_claim: str = "preferred_username"
    private_network: bool = False
    role: list[StaffRoleTable] = []


def read_staff_provider(values: Values, key: str, table: StaffProviderTable) -> StaffProvider:
    scopes = each(scope_token, f"{key}.scopes", table.scopes)
    return StaffProvider(
        id=identifier(f"{key}.id", table.id),
        name=not_blank(f"{key}.name", table.name),
        issuer=values.issuer(f"{key}.issuer", table.issuer),
        client_id=not_blank(f"{key}.client_id", table.client_id),
        client_authentication=table.client_authentication,
        scopes=tuple(dict.fromkeys(("openid", *scopes))),
        origins=values.origins(f"{key}.origins", table.origins),
        acr_values=each(scope_token, f"{key}.acr_values", table.acr_values),
        name_claim=not_blank(f"{key}.name_claim", table.name_claim),
        private_network=table.private_network,
        role_rules=tuple(read_staff_role(f"{key}.role[{n}]", rule) for n, rule in enumerate(table.role)),
    )
