"""What the EHR's grant lets a session do, so that a page says what is missing instead of showing a gap.

Spec: SMART App Launch 2.2.0, "Scopes for requesting FHIR Resources"; a grant may be less than was asked for
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from rayhook.auth.scopes import ScopeSet


class Ability(StrEnum):
    """Something that a page offers, and that needs the EHR's leave."""

    READ_ENDPOINTS = "read_endpoints"
    READ_ORDERS = "read_orders"
    READ_PATIENT = "read_patient"
    READ_REPORTS = "read_reports"
    SEARCH_STUDIES = "search_studies"
    WRITE_RESULTS = "write_results"


NEEDS: Final[Mapping[Ability, tuple[tuple[str, str], ...]]] = MappingProxyType(
    {
        Ability.READ_ENDPOINTS: (("Endpoint", "r"),),
        Ability.READ_ORDERS: (("ServiceRequest", "r"),),
        Ability.READ_PATIENT: (("Patient", "r"),),
        Ability.READ_REPORTS: (("DiagnosticReport", "r"),),
        Ability.SEARCH_STUDIES: (("ImagingStudy", "s"),),
        Ability.WRITE_RESULTS: (
            ("DiagnosticReport", "c"),
            ("Observation", "c"),
            ("Device", "c"),
            ("Provenance", "c"),
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What is granted, and what a page has to say is not."""

    granted: frozenset[Ability]

    @classmethod
    def of(cls, scopes: ScopeSet) -> "Abilities":
        return cls(frozenset(ability for ability in Ability if not missing_scopes(scopes, ability)))

    @property
    def missing(self) -> tuple[Ability, ...]:
        return tuple(ability for ability in Ability if ability not in self.granted)

    def __contains__(self, ability: Ability) -> bool:
        return ability in self.granted


def missing_scopes(scopes: ScopeSet, ability: Ability) -> tuple[str, ...]:
    """Return what the EHR would have to grant as well, as `Type.letters`."""
    return tuple(
        f"{resource_type}.{letters}"
        for resource_type, letters in NEEDS[ability]
        if not scopes.permits(None, resource_type, letters)
    )
