"""Search over the resources of stored results.

Spec: FHIR R4 search.html
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from rayhook.fhir.errors import Forbidden, InvalidRequest, NotFound
from rayhook.inference.jobs import StoredResult

Resource = dict[str, Any]
Pair = tuple[str, str]

_COMMON = {"_id": "token", "identifier": "token", "patient": "reference"}
SERVED: Mapping[str, Mapping[str, str]] = {
    "Device": _COMMON,
    "DiagnosticReport": {**_COMMON, "based-on": "reference"},
    "Observation": {**_COMMON, "based-on": "reference"},
    "Provenance": {"_id": "token", "patient": "reference", "target": "reference"},
}
_RELATIVE = re.compile(r"[A-Z][A-Za-z]+/[A-Za-z0-9.-]{1,64}")
_DEFAULT_COUNT = 50
_MAX_COUNT = 200


@dataclass(frozen=True, slots=True)
class ResultSearch:
    """`filters` are what the resources must match; `count` and `offset` are the page."""

    resource_type: str
    filters: tuple[Pair, ...]
    count: int
    offset: int

    def bundle(self, found: list[Resource], base_url: str) -> Resource:
        """Return the searchset page.

        Spec: FHIR R4 http.html#paging
        """
        shown = found[self.offset : self.offset + self.count]
        links = [self._link("self", base_url, self.offset)]
        if self.offset + self.count < len(found):
            links.append(self._link("next", base_url, self.offset + self.count))
        bundle: Resource = {"resourceType": "Bundle", "type": "searchset", "total": len(found), "link": links}
        entries = [
            {
                "fullUrl": f"{base_url}/{self.resource_type}/{one['id']}",
                "resource": one,
                "search": {"mode": "match"},
            }
            for one in shown
        ]
        return {**bundle, "entry": entries} if entries else bundle

    def _link(self, relation: str, base_url: str, offset: int) -> Resource:
        query = urlencode([*self.filters, ("_count", str(self.count)), ("_offset", str(offset))])
        return {"relation": relation, "url": f"{base_url}/{self.resource_type}?{query}"}


def parse_search(resource_type: str, parameters: Iterable[Pair], *, patient_id: str | None) -> ResultSearch:
    """Return the search; a parameter that is not supported is refused, for ignoring it would widen the answer.

    Raises Forbidden for another patient than `patient_id`, to which the caller is bound.
    """
    if resource_type not in SERVED:
        raise NotFound("this resource type is not served here")
    given = list(parameters)
    paging = {name: value for name, value in given if name in ("_count", "_offset")}
    filters = tuple((name, value) for name, value in given if name not in paging)
    for name, value in filters:
        if name not in SERVED[resource_type]:
            raise InvalidRequest(f"search parameter {name[:40]} is not supported", expression=name[:40])
        if name == "patient" and value.removeprefix("Patient/") != patient_id:
            raise Forbidden("patient: is not the one this access is bound to", expression="patient")
    count = _number(paging, "_count", _DEFAULT_COUNT, lowest=1)
    return ResultSearch(
        resource_type, filters, min(count, _MAX_COUNT), _number(paging, "_offset", 0, lowest=0)
    )


def _number(paging: Mapping[str, str], name: str, default: int, *, lowest: int) -> int:
    value = paging.get(name)
    if value is None:
        return default
    if not value.isascii() or not value.isdecimal() or len(value) > 9 or int(value) < lowest:  # noqa: PLR2004 - digits
        raise InvalidRequest(f"{name}: must be a whole number from {lowest}", expression=name)
    return int(value)


def resources_of(
    results: Iterable[StoredResult], resource_type: str, filters: Iterable[Pair]
) -> list[Resource]:
    """Return one patient's resources of one type that match every filter, newest result first, none twice."""
    wanted = [(name, value) for name, value in filters if name != "patient"]
    found: dict[str, Resource] = {}
    for result in results:
        for resource in served_resources(result):
            if resource["resourceType"] == resource_type and all(
                _matches(resource, name, value) for name, value in wanted
            ):
                found.setdefault(resource["id"], resource)
    return list(found.values())


def _matches(resource: Resource, name: str, value: str) -> bool:
    return any(_MATCHERS[name](resource, one) for one in value.split(","))


def _by_id(resource: Resource, value: str) -> bool:
    return bool(resource["id"] == value)


def _by_identifier(resource: Resource, value: str) -> bool:
    system, bar, code = value.rpartition("|")
    identifiers = resource.get("identifier", [])
    return any(i.get("value") == code and (not bar or i.get("system", "") == system) for i in identifiers)


def _by_reference(element: str, target: str) -> Callable[[Resource, str], bool]:
    def match(resource: Resource, value: str) -> bool:
        wanted = value if "/" in value else f"{target}/{value}"
        references = [one.get("reference", "") for one in resource.get(element, [])]
        return any(one == wanted or one.endswith(f"/{wanted}") for one in references)

    return match


_MATCHERS: Mapping[str, Callable[[Resource, str], bool]] = {
    "_id": _by_id,
    "identifier": _by_identifier,
    "based-on": _by_reference("basedOn", "ServiceRequest"),
    "target": _by_reference("target", "DiagnosticReport"),
}


def served_resources(result: StoredResult) -> Iterator[Resource]:
    """Yield a result's resources; what they refer to at the EHR is told with the EHR's own URL.

    Spec: FHIR R4 references.html#literal: a relative reference is to a resource of the same server
    """
    own = {f"{one['resourceType']}/{one['id']}" for one in result.resources}
    for resource in result.resources:
        yield _told_from_here(resource, own, result.reference.fhir_base_url)


def _told_from_here(value: Any, own: AbstractSet[str], base_url: str) -> Any:
    if isinstance(value, list):
        return [_told_from_here(member, own, base_url) for member in value]
    if not isinstance(value, dict):
        return value
    copy = {key: _told_from_here(member, own, base_url) for key, member in value.items()}
    reference = copy.get("reference")
    if isinstance(reference, str) and reference not in own and _RELATIVE.fullmatch(reference):
        copy["reference"] = f"{base_url}/{reference}"
    return copy
