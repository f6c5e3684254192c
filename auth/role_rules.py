"""Which roles a person of an EHR has here, by the rules of that EHR's registration.

Spec: SMART App Launch 2.2.0, "Scopes for requesting identity data" (`fhirUser`); IHE RBAC
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rayhook.auth.roles import Role

# What an EHR may say of its users. The other roles look across all EHRs, which none of them can allow.
EHR_ROLES: Final = frozenset({Role.CLINICIAN, Role.RADIOLOGIST})
PRACTITIONER_TYPES: Final = frozenset({"Practitioner", "PractitionerRole"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRule:
    """Gives `roles` where every condition that is named holds; one without a condition never holds.

    `fhir_user` is compared as the session keeps it: relative on the EHR's own base, else absolute.
    `claim` is the path of an id_token claim, whose text, or one of whose texts, must be `value`.
    `practitioner_role` is a PractitionerRole.code of the user, `system|code`.
    """

    roles: frozenset[Role]
    fhir_user_type: str | None = None
    fhir_user: str | None = None
    claim: tuple[str, ...] = ()
    value: str | None = None
    practitioner_role: str | None = None

    def holds(self, person: "EHRPerson") -> bool:
        answers = list(self._answers(person))
        return bool(answers) and all(answers)

    def _answers(self, person: "EHRPerson") -> Iterator[bool]:
        if self.fhir_user_type is not None:
            yield person.type == self.fhir_user_type
        if self.fhir_user is not None:
            yield person.fhir_user == self.fhir_user
        if self.claim:
            yield self.value in person.claim(self.claim)
        if self.practitioner_role is not None:
            yield self.practitioner_role in person.practitioner_roles


@dataclass(frozen=True, slots=True, kw_only=True)
class EHRPerson:
    """What an EHR said of who signed in; `claims` are those of the verified id_token."""

    fhir_user: str | None
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)
    practitioner_roles: frozenset[str] = frozenset()

    @property
    def type(self) -> str | None:
        """The resource type of `fhirUser`, which may be relative or absolute."""
        return None if self.fhir_user is None else self.fhir_user.split("/")[-2]

    @property
    def is_practitioner(self) -> bool:
        return self.type in PRACTITIONER_TYPES

    def claim(self, path: tuple[str, ...]) -> frozenset[str]:
        """Return the texts at the claim's path; a claim of another form has none."""
        value: object = self.claims
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        values = value if isinstance(value, list) else [value]
        return frozenset(one for one in values if isinstance(one, str))


def derive_roles(
    rules: Iterable[RoleRule], person: EHRPerson, *, practitioner_roles: frozenset[Role]
) -> frozenset[Role]:
    """Return what the rules give, and to a practitioner `practitioner_roles` besides.

    Patients and their relatives have no role, whatever a rule says.
    """
    if person.type is not None and person.type not in PRACTITIONER_TYPES:
        return frozenset()
    given = frozenset().union(*(rule.roles for rule in rules if rule.holds(person)))
    if person.type is not None:
        given |= practitioner_roles
    return given & EHR_ROLES
