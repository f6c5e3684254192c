"""`[[ehr.role]]` and `[[staff_oidc.role]]`: the role rules as the registry file states them."""

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from rayhook.auth.registry_values import not_blank, refusal
from rayhook.auth.role_rules import EHR_ROLES, PRACTITIONER_TYPES, RoleRule
from rayhook.auth.roles import STAFF_ROLES, Role
from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.references import parse_reference

_TOKEN: Final = re.compile(r"[^\s|]+\|[^\s|]+")


class EHRRoleTable(msgspec.Struct, forbid_unknown_fields=True):
    role: Role
    fhir_user_type: str | None = None
    fhir_user: str | None = None
    claim: str | list[str] | None = None
    value: str | None = None
    practitioner_role: str | None = None


class StaffRoleTable(msgspec.Struct, forbid_unknown_fields=True):
    role: Role
    claim: str | list[str]
    value: str


def read_ehr_role(key: str, table: EHRRoleTable, bases: Iterable[str]) -> RoleRule:
    """`fhir_user` may be written relative, or absolute on one of the EHR's own FHIR bases."""
    rule = RoleRule(
        roles=_only(key, table.role, EHR_ROLES),
        fhir_user_type=_practitioner_type(f"{key}.fhir_user_type", table.fhir_user_type),
        fhir_user=_fhir_user(f"{key}.fhir_user", table.fhir_user, bases),
        claim=_claim(f"{key}.claim", table.claim),
        value=table.value,
        practitioner_role=_token(f"{key}.practitioner_role", table.practitioner_role),
    )
    if bool(rule.claim) != bool(rule.value):
        raise refusal(key, "needs claim and value together")
    if not (rule.fhir_user_type or rule.fhir_user or rule.claim or rule.practitioner_role):
        raise refusal(
            key, "needs a condition: fhir_user_type, fhir_user, claim and value, or practitioner_role"
        )
    return rule


def read_staff_role(key: str, table: StaffRoleTable) -> RoleRule:
    return RoleRule(
        roles=_only(key, table.role, STAFF_ROLES),
        claim=_claim(f"{key}.claim", table.claim),
        value=not_blank(f"{key}.value", table.value),
    )


def read_practitioner_roles(key: str, roles: Iterable[Role]) -> frozenset[Role]:
    return frozenset().union(*(_only(f"{key}[{n}]", role, EHR_ROLES) for n, role in enumerate(roles)))


def _only(key: str, role: Role, allowed: frozenset[Role]) -> frozenset[Role]:
    if role not in allowed:
        raise refusal(f"{key}.role", f"must be one of {', '.join(sorted(allowed))}")
    return frozenset({role})


def _practitioner_type(key: str, value: str | None) -> str | None:
    if value is not None and value not in PRACTITIONER_TYPES:
        raise refusal(key, f"must be one of {', '.join(sorted(PRACTITIONER_TYPES))}")
    return value


def _fhir_user(key: str, value: str | None, bases: Iterable[str]) -> str | None:
    if value is None:
        return None
    try:
        reference = parse_reference(value)
    except InvalidRequest as error:
        raise refusal(key, "must be a reference, as Practitioner/1") from error
    if reference.type not in PRACTITIONER_TYPES:
        raise refusal(key, f"must be a reference to a {' or '.join(sorted(PRACTITIONER_TYPES))}")
    if any(reference.is_at(base) for base in bases):
        return f"{reference.type}/{reference.id}"
    return str(reference)


def _claim(key: str, value: str | list[str] | None) -> tuple[str, ...]:
    path = () if value is None else (value,) if isinstance(value, str) else tuple(value)
    return tuple(not_blank(key, name) for name in path)


def _token(key: str, value: str | None) -> str | None:
    if value is not None and not _TOKEN.fullmatch(value):
        raise refusal(key, "must be system|code")
    return value
