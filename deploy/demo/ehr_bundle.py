"""Searchset Bundles, and whose eyes a resource is for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from rayhook.deploy.demo.ehr_faults import EHRFaults
from rayhook.deploy.demo.ehr_search import SEARCHABLE, ordered, page
from rayhook.deploy.demo.ehr_store import Resource, ResourceStore, included_endpoints
from rayhook.fhir.errors import InvalidRequest, NotFound

OTHER_PATIENT = "Patient/somebody-else"

_DEFAULT_COUNT = 50
_RESULT_PARAMETERS = frozenset({"_count", "_format", "_include", "_offset", "_sort"})


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A search as it came: the parameters that filter, and those that shape the answer."""

    resource_type: str
    parameters: tuple[tuple[str, str], ...]

    @property
    def filters(self) -> list[tuple[str, str]]:
        return [(name, value) for name, value in self.parameters if name not in _RESULT_PARAMETERS]

    def control(self, name: str) -> str | None:
        return next((value for key, value in self.parameters if key == name), None)

    def number(self, name: str, default: int) -> int:
        value = self.control(name)
        try:
            return default if value is None else int(value)
        except ValueError as error:
            raise InvalidRequest(f"{name} must be a whole number", expression=name) from error

    def url(self, base_url: str, *, offset: int | None = None) -> str:
        kept = [pair for pair in self.parameters if offset is None or pair[0] != "_offset"]
        moved = [] if offset is None else [("_offset", str(offset))]
        return f"{base_url}/{self.resource_type}?{urlencode([*kept, *moved])}"


def search_bundle(
    store: ResourceStore, query: SearchQuery, *, base_url: str, patient_id: str | None, faults: EHRFaults
) -> Resource:
    """Return the searchset Bundle for one query; this is also what prefetch is filled with.

    Spec: FHIR R4 search.html, http.html#paging
    """
    if query.resource_type not in SEARCHABLE:
        raise NotFound("this resource type is not served")
    visible = filter(visible_to(patient_id), store.search(query.resource_type, query.filters))
    found = ordered(list(visible), query.control("_sort"))
    count, offset = query.number("_count", _DEFAULT_COUNT), query.number("_offset", 0)
    shown = page(found, count, offset)
    entries = [_entry(base_url, as_seen(one, faults), "match") for one in shown]
    if query.control("_include") == "ImagingStudy:endpoint":
        entries += [_entry(base_url, one, "include") for one in included_endpoints(store, shown)]
    links = [{"relation": "self", "url": query.url(base_url)}]
    if offset + count < len(found):
        links.append({"relation": "next", "url": query.url(base_url, offset=offset + count)})
    bundle: Resource = {"resourceType": "Bundle", "type": "searchset", "total": len(found), "link": links}
    return {**bundle, "entry": entries} if entries else bundle


def visible_to(patient_id: str | None) -> Callable[[Mapping[str, Any]], bool]:
    """Return the test of being in this patient's compartment, or in nobody's; a system sees everybody's."""
    if patient_id is None:
        return lambda _: True
    return lambda resource: patient_of(resource) in (None, f"Patient/{patient_id}")


def as_seen(resource: Resource, faults: EHRFaults) -> Resource:
    """Return `resource`, or with the fault on, an ImagingStudy that belongs to somebody else."""
    if faults.wrong_patient and resource["resourceType"] == "ImagingStudy":
        return {**resource, "subject": {"reference": OTHER_PATIENT}}
    return resource


def patient_of(resource: Mapping[str, Any]) -> str | None:
    """Return the Patient reference of a resource in a patient's compartment, else None."""
    if resource.get("resourceType") == "Patient":
        return f"Patient/{resource.get('id')}"
    subject = resource.get("subject", {}).get("reference")
    return subject if isinstance(subject, str) else None


def _entry(base_url: str, resource: Resource, mode: str) -> Resource:
    return {
        "fullUrl": f"{base_url}/{resource['resourceType']}/{resource['id']}",
        "resource": resource,
        "search": {"mode": mode},
    }
