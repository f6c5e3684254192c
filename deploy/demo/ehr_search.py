"""The search parameters the demo EHR understands.

Spec: FHIR R4 search.html
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from rayhook.fhir.errors import InvalidRequest

Resource = dict[str, Any]
Matcher = Callable[[Resource, str], bool]


def matches(resource: Resource, parameters: Iterable[tuple[str, str]]) -> bool:
    """Tell whether `resource` satisfies every parameter; commas in a value mean "or"."""
    matchers = _MATCHERS[resource["resourceType"]]
    for name, value in parameters:
        if name not in matchers:
            raise InvalidRequest(f"search parameter {name} is not supported for this type", expression=name)
        if not any(matchers[name](resource, alternative) for alternative in value.split(",")):
            return False
    return True


def ordered(resources: list[Resource], sort: str | None) -> list[Resource]:
    """Return `resources` by one `_sort` key; without it, newest first.

    Spec: FHIR R4 search.html#sort
    """
    name = (sort or "-_lastUpdated").removeprefix("-")
    if name not in _SORT_PATHS:
        raise InvalidRequest("_sort: only started, date, authored and _lastUpdated are supported")
    path = _SORT_PATHS[name]
    return sorted(
        resources, key=lambda one: next(_strings(one, path), ""), reverse=(sort or "-").startswith("-")
    )


def page(resources: list[Resource], count: int, offset: int) -> list[Resource]:
    if count < 1 or offset < 0:
        raise InvalidRequest("_count must be at least 1 and _offset at least 0")
    return resources[offset : offset + count]


def _at(value: Any, path: tuple[str, ...]) -> Iterator[Any]:
    if isinstance(value, list):
        for member in value:
            yield from _at(member, path)
    elif not path:
        yield value
    elif isinstance(value, dict) and path[0] in value:
        yield from _at(value[path[0]], path[1:])


def _strings(resource: Resource, path: tuple[str, ...]) -> Iterator[str]:
    return (value for value in _at(resource, path) if isinstance(value, str))


def _identifier(*path: str) -> Matcher:
    return _token(path, code="value")


def _coding(*path: str) -> Matcher:
    return _token(path, code="code")


def _token(path: tuple[str, ...], *, code: str) -> Matcher:
    def match(resource: Resource, wanted: str) -> bool:
        system, bar, value = wanted.rpartition("|")
        return any(
            isinstance(item, dict)
            and item.get(code) == value
            and (not bar or item.get("system", "") == system)
            for item in _at(resource, path)
        )

    return match


def _string(*path: str) -> Matcher:
    return lambda resource, wanted: wanted in _strings(resource, path)


def _reference(target: str | None, *path: str) -> Matcher:
    def match(resource: Resource, wanted: str) -> bool:
        full = wanted if "/" in wanted or target is None else f"{target}/{wanted}"
        return full in _strings(resource, (*path, "reference"))

    return match


def _since(resource: Resource, wanted: str) -> bool:
    """Spec: FHIR R4 search.html#prefix; of the prefixes, `ge` alone."""
    if not wanted.startswith("ge"):
        raise InvalidRequest("_lastUpdated: only the prefix ge is supported", expression="_lastUpdated")
    instants = (datetime.fromisoformat(text) for text in (resource["meta"]["lastUpdated"], wanted[2:]))
    return next(instants) >= next(instants)


_COMMON: dict[str, Matcher] = {
    "_id": _string("id"),
    "_lastUpdated": _since,
    "_tag": _coding("meta", "tag"),
    "identifier": _identifier("identifier"),
}
_SUBJECT: dict[str, Matcher] = {
    "patient": _reference("Patient", "subject"),
    "subject": _reference(None, "subject"),
    "status": _string("status"),
}
_RESULT: dict[str, Matcher] = {
    "based-on": _reference(None, "basedOn"),
    "category": _coding("category", "coding"),
    "code": _coding("code", "coding"),
}
_MATCHERS: dict[str, dict[str, Matcher]] = {
    "Device": _COMMON,
    "DiagnosticReport": {**_COMMON, **_SUBJECT, **_RESULT},
    "DocumentReference": {**_COMMON, **_SUBJECT},
    "Endpoint": {**_COMMON, "status": _string("status")},
    "ImagingStudy": {**_COMMON, **_SUBJECT, "modality": _coding("modality")},
    "Observation": {**_COMMON, **_SUBJECT, **_RESULT},
    "Patient": _COMMON,
    "Practitioner": _COMMON,
    "Provenance": {
        "_id": _string("id"),
        "_tag": _coding("meta", "tag"),
        "target": _reference(None, "target"),
    },
    "ServiceRequest": {**_COMMON, **_SUBJECT},
    "Subscription": {
        "_id": _string("id"),
        "status": _string("status"),
        "url": _string("channel", "endpoint"),
    },
}
SEARCHABLE = {resource_type: tuple(sorted(matchers)) for resource_type, matchers in _MATCHERS.items()}

_SORT_PATHS = {
    "started": ("started",),
    "date": ("effectiveDateTime",),
    "authored": ("authoredOn",),
    "_lastUpdated": ("meta", "lastUpdated"),
}
