"""What the EHR's own PractitionerRole resources say of who signed in, where a rule asks and the token allows.

Spec: FHIR R4 PractitionerRole; SMART App Launch 2.2.0, "Scopes for requesting FHIR Resources"
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import structlog

from rayhook.auth.registry import EHR
from rayhook.auth.scopes import ScopeSet
from rayhook.fhir.client import FHIRClient
from rayhook.fhir.errors import InvalidRequest, RayhookError
from rayhook.fhir.references import parse_reference
from rayhook.fhir.transport import Transport

_DEADLINE_S: Final = 2.0
_TYPE: Final = "PractitionerRole"

log = structlog.get_logger(__name__)


def read_practitioner_roles(
    transport: Transport,
    ehr: EHR,
    *,
    fhir_base_url: str,
    access_token: str,
    scopes: ScopeSet,
    fhir_user: str | None,
) -> frozenset[str]:
    """Return the codes, `system|code`, of the user's active roles; none where they cannot be read.

    Nothing is asked unless a rule of the EHR's registration wants to know. A role that is not read gives no right.
    """
    if fhir_user is None or not any(rule.practitioner_role for rule in ehr.role_rules):
        return frozenset()
    client = FHIRClient(transport, fhir_base_url, ehr.allowed_origins, access_token)
    try:
        found = _resources(client, scopes, fhir_user)
    except RayhookError as error:
        log.info("practitioner_roles_not_read", ehr=ehr.id, code=error.code)
        return frozenset()
    return frozenset(token for one in found for token in _tokens(one))


def _resources(client: FHIRClient, scopes: ScopeSet, fhir_user: str) -> list[dict[str, Any]]:
    """A user named by an absolute reference lies on another server, which is not asked."""
    kind, _, identifier = fhir_user.partition("/")
    if kind == _TYPE and scopes.permits(None, _TYPE, "r"):
        return [client.read(_TYPE, identifier, deadline_s=_DEADLINE_S)]
    if kind != "Practitioner" or not scopes.permits(None, _TYPE, "s"):
        return []
    query = [("practitioner", fhir_user), ("active", "true")]
    found = client.search(_TYPE, query, deadline_s=_DEADLINE_S, max_pages=2)
    return [one for one in found if one.get("resourceType") == _TYPE and _is_of(one, fhir_user)]


def _is_of(role: Mapping[str, Any], fhir_user: str) -> bool:
    """The server was asked for this practitioner's; what it sends is looked at all the same."""
    try:
        reference = parse_reference(role["practitioner"]["reference"])
    except (InvalidRequest, KeyError, TypeError):
        return False
    return f"{reference.type}/{reference.id}" == fhir_user


def _tokens(role: Mapping[str, Any]) -> Iterator[str]:
    if role.get("active") is False:
        return
    for concept in role.get("code") or ():
        for coding in concept.get("coding") or ():
            if coding.get("system") and coding.get("code"):
                yield f"{coding['system']}|{coding['code']}"
