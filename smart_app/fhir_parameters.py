"""The search parameters of our FHIR endpoint: which there are, and what each says of a resource.

Spec: FHIR R4 search.html, searchparameter-registry.html
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from rayhook.fhir.errors import InvalidRequest

Resource = dict[str, Any]


class Kind(StrEnum):
    DATE = "date"
    REFERENCE = "reference"
    STRING = "string"
    TOKEN = "token"  # noqa: S105 - the name of a type


@dataclass(frozen=True, slots=True)
class Parameter:
    """One search parameter. `path` leads to its elements; `targets` are the types a bare id may mean.

    note: where our data make it mean less, or more, than the specification says.
    """

    kind: Kind
    path: str
    targets: tuple[str, ...] = ()
    note: str = ""


def _token(path: str) -> Parameter:
    return Parameter(Kind.TOKEN, path)


def _date(path: str) -> Parameter:
    return Parameter(Kind.DATE, path)


def _reference(path: str, *targets: str) -> Parameter:
    return Parameter(Kind.REFERENCE, path, targets)


_PATIENT = _reference("subject", "Patient")
_OF_RESULTS = "Those that belong to results of this patient."
_COMMON: Final = {"_id": _token("id"), "_lastUpdated": _date("meta.lastUpdated")}
_OF_PATIENT: Final = {**_COMMON, "identifier": _token("identifier"), "patient": _PATIENT, "subject": _PATIENT}
_REPORTED: Final = {
    **_OF_PATIENT,
    "based-on": _reference("basedOn", "ServiceRequest"),
    "category": _token("category"),
    "code": _token("code"),
    "date": _date("effectiveDateTime"),
    "status": _token("status"),
}

PARAMETERS: Final[Mapping[str, Mapping[str, Parameter]]] = {
    "Device": {
        **_COMMON,
        "device-name": Parameter(Kind.STRING, "deviceName.name"),
        "identifier": _token("identifier"),
        "manufacturer": Parameter(Kind.STRING, "manufacturer"),
        "model": Parameter(Kind.STRING, "modelNumber"),
        "patient": Parameter(Kind.REFERENCE, "patient", ("Patient",), _OF_RESULTS),
        "status": _token("status"),
        "type": _token("type"),
    },
    "DiagnosticReport": {
        **_REPORTED,
        "conclusion": _token("conclusionCode"),
        "issued": _date("issued"),
        "result": _reference("result", "Observation"),
    },
    "DocumentReference": {
        **_OF_PATIENT,
        "category": _token("category"),
        "contenttype": _token("content.attachment.contentType"),
        "date": _date("date"),
        "format": _token("content.format"),
        "related": _reference("context.related", "ImagingStudy"),
        "status": _token("status"),
        "type": _token("type"),
    },
    "ImagingStudy": {
        **_OF_PATIENT,
        "basedon": _reference("basedOn", "ServiceRequest"),
        "modality": _token("series.modality"),
        "series": _token("series.uid"),
        "started": _date("started"),
        "status": _token("status"),
    },
    "Observation": {
        **_REPORTED,
        "derived-from": _reference("derivedFrom", "ImagingStudy"),
        "device": _reference("device", "Device"),
        "has-member": _reference("hasMember", "Observation"),
        "part-of": _reference("partOf", "ImagingStudy"),
        "value-concept": _token("valueCodeableConcept"),
    },
    "Provenance": {
        **_COMMON,
        "agent": _reference("agent.who", "Device", "Practitioner"),
        "entity": _reference("entity.what", "ImagingStudy"),
        "patient": Parameter(Kind.REFERENCE, "target", ("Patient",), _OF_RESULTS),
        "recorded": _date("recorded"),
        "target": _reference("target", "DiagnosticReport", "Observation"),
    },
}
# These say whose resources are searched, before any is looked at.
OF_THE_PATIENT: Final = frozenset({"patient", "subject"})
INCLUDES: Final[Mapping[str, tuple[str, ...]]] = {
    "DiagnosticReport": ("DiagnosticReport:result",),
    "Observation": ("Observation:device", "Observation:has-member"),
    "Provenance": ("Provenance:agent", "Provenance:target"),
}
REVINCLUDES: Final[Mapping[str, tuple[str, ...]]] = {
    "Device": ("Observation:device",),
    "DiagnosticReport": ("Provenance:target",),
    "Observation": ("DiagnosticReport:result", "Observation:has-member", "Provenance:target"),
}

_MODIFIERS: Final[Mapping[Kind, frozenset[str]]] = {
    Kind.DATE: frozenset({"missing"}),
    Kind.REFERENCE: frozenset({"missing"}),
    Kind.STRING: frozenset({"contains", "exact", "missing"}),
    Kind.TOKEN: frozenset({"missing", "not"}),
}
_COMMA = re.compile(r"(?<!\\),")
_DATE = re.compile(
    r"(?P<prefix>eq|ne|lt|gt|le|ge|sa|eb|ap)?(?P<year>\d{4})(?:-(?P<month>\d\d)(?:-(?P<day>\d\d)"
    r"(?:T(?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?P<fraction>\.\d{1,9})?)?"
    r"(?P<zone>Z|[+-]\d\d:\d\d)?)?)?)?"
)


@dataclass(frozen=True, slots=True)
class Filter:
    """One parameter as given: several values mean any of them."""

    name: str
    modifier: str
    value: str

    @property
    def pair(self) -> tuple[str, str]:
        return (f"{self.name}:{self.modifier}" if self.modifier else self.name, self.value)


def read_filter(resource_type: str, name: str, value: str) -> Filter | None:
    """Return the filter; None where the parameter is not one of the type's.

    Raises InvalidRequest for a modifier or a value that the parameter does not take.
    Spec: FHIR R4 search.html#modifiers: a modifier that is not supported is refused, not ignored
    """
    bare, _, modifier = name.partition(":")
    parameter = PARAMETERS[resource_type].get(bare)
    if parameter is None:
        return None
    if modifier and modifier not in _MODIFIERS[parameter.kind] | set(parameter.targets):
        raise InvalidRequest(f"{bare}: this modifier is not supported", expression=bare)
    if not value:
        raise InvalidRequest(f"{bare}: must not be empty", expression=bare)
    if modifier == "missing" and value not in ("true", "false"):
        raise InvalidRequest(f"{bare}:missing: must be true or false", expression=bare)
    if parameter.kind is Kind.DATE and modifier != "missing":
        for one in _alternatives(value):
            date_period(one, bare)
    return Filter(bare, modifier, value)


def matches(resource: Resource, found: Filter, *, base_url: str = "") -> bool:
    """Say whether the filter finds the resource; `base_url` is ours, which a reference may spell out."""
    parameter = PARAMETERS[resource["resourceType"]][found.name]
    values = list(elements(resource, parameter.path))
    if found.modifier == "missing":
        return (not values) == (found.value == "true")
    test = _TESTS[parameter.kind]
    hit = any(
        test(value, one, _Asked(parameter, found.modifier, base_url))
        for one in _alternatives(found.value)
        for value in values
    )
    return not hit if found.modifier == "not" else hit


def elements(value: Any, path: str) -> Iterator[Any]:
    """Yield what lies at a dotted path, through every list on the way."""
    name, _, rest = path.partition(".")
    inner = value.get(name) if isinstance(value, Mapping) else None
    for one in inner if isinstance(inner, list) else [inner]:
        if one is None:
            continue
        if rest:
            yield from elements(one, rest)
        else:
            yield one


@dataclass(frozen=True, slots=True)
class _Asked:
    parameter: Parameter
    modifier: str
    base_url: str


def _alternatives(value: str) -> list[str]:
    """Spec: FHIR R4 search.html#escaping."""
    return [re.sub(r"\\([\\,|$])", r"\1", part) for part in _COMMA.split(value)]


def _token_fits(element: Any, value: str, _: _Asked) -> bool:
    """Spec: FHIR R4 search.html#token."""
    system, bar, code = value.rpartition("|")
    return any(
        (not code or found == code) and (not bar or found_system == system)
        for found_system, found in _codes(element)
    )


def _codes(element: Any) -> Iterator[tuple[str, str]]:
    """Yield system and code of whatever a token parameter may point to."""
    if isinstance(element, str):
        yield "", element
    elif "coding" in element:
        for coding in element["coding"]:
            yield from _codes(coding)
    else:
        yield element.get("system", ""), element.get("code", element.get("value", ""))


def _reference_fits(element: Any, value: str, asked: _Asked) -> bool:
    """Spec: FHIR R4 search.html#reference."""
    found = str(element.get("reference", ""))
    wanted = value.removeprefix(f"{asked.base_url}/") if asked.base_url else value
    if "/" in wanted:
        return found == wanted or (wanted.count("/") == 1 and found.endswith(f"/{wanted}"))
    types = (asked.modifier,) if asked.modifier else asked.parameter.targets
    return any(f"/{found}".endswith(f"/{one}/{wanted}") for one in types)


def _string_fits(element: Any, value: str, asked: _Asked) -> bool:
    """Spec: FHIR R4 search.html#string."""
    found = str(element)
    if asked.modifier == "exact":
        return found == value
    found, wanted = found.casefold(), value.casefold()
    return wanted in found if asked.modifier == "contains" else found.startswith(wanted)


def _date_fits(element: Any, value: str, asked: _Asked) -> bool:
    """Spec: FHIR R4 search.html#date, search.html#prefix."""
    prefix, low, high = date_period(value, asked.parameter.path)
    _, start, end = date_period(str(element), asked.parameter.path)
    if prefix == "ap":
        leeway = abs(datetime.now(UTC) - low) / 10
        low, high = low - leeway, high + leeway
        return start < high and end > low
    within = low <= start and end <= high
    return {
        "eq": within,
        "ne": not within,
        "gt": end > high,
        "lt": start < low,
        "ge": end > high or within,
        "le": start < low or within,
        "sa": start >= high,
        "eb": end <= low,
    }[prefix]


def date_period(text: str, name: str) -> tuple[str, datetime, datetime]:
    """Return the prefix, and the instants between which the time lies that `text` may mean."""
    found = _DATE.fullmatch(text)
    refusal = InvalidRequest(f"{name}: must be a date, alone or after a prefix", expression=name)
    if found is None:
        raise refusal
    try:
        start = _start(found)
        return found["prefix"] or "eq", start, _end(found, start)
    except (ValueError, OverflowError):
        raise refusal from None


def _start(found: re.Match[str]) -> datetime:
    zone = found["zone"] or "Z"
    clock = f"{found['hour'] or '00'}:{found['minute'] or '00'}:{found['second'] or '00'}"
    day = f"{found['year']}-{found['month'] or '01'}-{found['day'] or '01'}"
    fraction = (found["fraction"] or ".0")[:7]
    return datetime.fromisoformat(f"{day}T{clock}{fraction.ljust(7, '0')}{zone}").astimezone(UTC)


def _end(found: re.Match[str], start: datetime) -> datetime:
    if found["fraction"]:
        return start + timedelta(microseconds=max(1, 10 ** (7 - len(found["fraction"]))))
    if found["second"]:
        return start + timedelta(seconds=1)
    if found["hour"]:
        return start + timedelta(minutes=1)
    if found["day"]:
        return start + timedelta(days=1)
    if found["month"]:
        return (start.replace(day=28) + timedelta(days=4)).replace(day=1)
    return start.replace(year=start.year + 1)


_TESTS: Mapping[Kind, Callable[[Any, str, _Asked], bool]] = {
    Kind.DATE: _date_fits,
    Kind.REFERENCE: _reference_fits,
    Kind.STRING: _string_fits,
    Kind.TOKEN: _token_fits,
}
