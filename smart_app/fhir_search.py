"""A search as asked, and its answer page by page.

Spec: FHIR R4 search.html, http.html#search, http.html#paging
"""

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal
from urllib.parse import urlencode

from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import InvalidRequest, NotFound, RayhookError
from rayhook.smart_app.fhir_parameters import (
    INCLUDES,
    OF_THE_PATIENT,
    PARAMETERS,
    REVINCLUDES,
    Filter,
    Kind,
    elements,
    matches,
    read_filter,
)
from rayhook.smart_app.fhir_resources import PatientResources, Served

Resource = dict[str, Any]
Pair = tuple[str, str]

CURSOR: Final = "_cursor"
MAX_COUNT: Final = 200

_DEFAULT_COUNT: Final = 50
_CURSOR_LIFE_S: Final = 3600.0
_MAX_PARAMETERS: Final = 64
_MAX_VALUE: Final = 1024
_NOT_OF_THE_SEARCH: Final = frozenset({"_format", "_pretty"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """`filters` find the resources; the rest is what of them is told, and how.

    patient_id: the one that the parameters name.  as_of: what came to be later is of no page.
    ignored: names of parameters that we do not know, and were told to leave out.
    """

    resource_type: str
    filters: tuple[Filter, ...] = ()
    patient_id: str | None = None
    count: int = _DEFAULT_COUNT
    offset: int = 0
    as_of: float = 0.0
    counts_only: bool = False
    with_total: bool = True
    sort: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    revincludes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def pairs(self) -> list[Pair]:
        """The parameters that were used, as the link `self` tells them."""
        pairs = [one.pair for one in self.filters]
        pairs += [("_include", one) for one in self.includes] + [
            ("_revinclude", one) for one in self.revincludes
        ]
        pairs += [("_sort", ",".join(self.sort))] if self.sort else []
        pairs += [] if self.with_total else [("_total", "none")]
        return [*pairs, ("_summary", "count") if self.counts_only else ("_count", str(self.count))]


def parse_search(
    resource_type: str, parameters: Iterable[Pair], *, as_of: float, lenient: bool = False
) -> Search:
    """Return the search; a parameter that is not known is refused unless `lenient`: left out, it widens the answer.

    Spec: FHIR R4 search.html#errors, `Prefer: handling`
    """
    require_served(resource_type)
    given = [(name, value) for name, value in parameters if name not in _NOT_OF_THE_SEARCH]
    if len(given) > _MAX_PARAMETERS or any(len(value) > _MAX_VALUE for _, value in given):
        raise InvalidRequest("the search has too many parameters, or one that is too long")
    filters, asked, ignored = [], dict[str, list[str]](), []
    for name, value in given:
        if name in _CONTROLS:
            asked.setdefault(name, []).append(value)
        elif (found := read_filter(resource_type, name, value)) is not None:
            filters.append(found)
        elif lenient:
            ignored.append(name)
        else:
            shown = name.partition(":")[0][:40]
            raise InvalidRequest(f"search parameter {shown} is not supported", expression=shown)
    count = _count(asked)
    return Search(
        resource_type=resource_type,
        filters=tuple(filters),
        patient_id=_patient_in(filters),
        count=min(count, MAX_COUNT),
        as_of=as_of,
        counts_only=count == 0 or _choice(asked, "_summary", ("count", "false")) == "count",
        with_total=_choice(asked, "_total", ("accurate", "estimate", "none")) != "none",
        sort=_sort(resource_type, asked),
        includes=_listed(asked, "_include", INCLUDES.get(resource_type, ())),
        revincludes=_listed(asked, "_revinclude", REVINCLUDES.get(resource_type, ())),
        ignored=tuple(ignored),
    )


def require_served(resource_type: str) -> None:
    if resource_type not in PARAMETERS:
        raise NotFound("this resource type is not served here", code="type_not_served")


_CONTROLS: Final = frozenset({"_count", "_include", "_revinclude", "_sort", "_summary", "_total"})


def _patient_in(filters: Sequence[Filter]) -> str | None:
    """Return the one patient that the filters name; the bare id, whether or not the type is beside it."""
    named = {
        one.value.removeprefix("Patient/")
        for one in filters
        if one.name in OF_THE_PATIENT and one.modifier in ("", "Patient")
    }
    if len(named) > 1:
        raise InvalidRequest("patient: must be one", expression="patient")
    return next(iter(named), None)


def _count(asked: dict[str, list[str]]) -> int:
    value = asked.get("_count", [str(_DEFAULT_COUNT)])[-1]
    if not value.isascii() or not value.isdecimal() or len(value) > 9:  # noqa: PLR2004 - digits
        raise InvalidRequest("_count: must be a whole number from 0", expression="_count")
    return int(value)


def _choice(asked: dict[str, list[str]], name: str, allowed: Sequence[str]) -> str | None:
    value = asked.get(name, [None])[-1]
    if value is not None and value not in allowed:
        raise InvalidRequest(f"{name}: must be one of {', '.join(allowed)}", expression=name)
    return value


def _listed(asked: dict[str, list[str]], name: str, allowed: Sequence[str]) -> tuple[str, ...]:
    given = tuple(dict.fromkeys(asked.get(name, [])))
    if not set(given) <= set(allowed):
        raise InvalidRequest(f"{name}: this one is not supported", expression=name)
    return given


def _sort(resource_type: str, asked: dict[str, list[str]]) -> tuple[str, ...]:
    keys = tuple(filter(None, ",".join(asked.get("_sort", [])).split(",")))
    known = PARAMETERS[resource_type]
    if any(
        known.get(key.removeprefix("-")) is None or _kind(resource_type, key) is not Kind.DATE for key in keys
    ):
        raise InvalidRequest("_sort: must be parameters of type date", expression="_sort")
    return keys


def _kind(resource_type: str, key: str) -> Kind:
    return PARAMETERS[resource_type][key.removeprefix("-")].kind


def found_in(
    search: Search, resources: PatientResources, *, allows: Callable[[Resource], bool], base_url: str
) -> list[Served]:
    """Return what the search finds among one patient's resources, and may be shown; the newest first."""
    tested = [one for one in search.filters if one.name not in OF_THE_PATIENT]
    found = [
        one
        for one in resources.current(search.resource_type)
        if resources.versions[one.key][0].at <= search.as_of
        and allows(one.resource)
        and all(matches(one.resource, test, base_url=base_url) for test in tested)
    ]
    for key in reversed(search.sort):
        path = PARAMETERS[search.resource_type][key.removeprefix("-")].path
        found.sort(
            key=lambda one, path=path: min(map(str, elements(one.resource, path)), default=""),  # type: ignore[misc]
            reverse=key.startswith("-"),
        )
    return found


def included_with(
    search: Search,
    shown: Sequence[Served],
    resources: PatientResources,
    *,
    allows: Callable[[Resource], bool],
) -> list[Served]:
    """Return what `_include` and `_revinclude` bring along, each once, as far as it may be shown.

    Spec: FHIR R4 search.html#include, search.html#revinclude
    """
    matched = {one.key for one in shown}
    found: dict[tuple[str, str], Served] = {}
    for path in _paths(search.includes):
        for one in shown:
            for element in elements(one.resource, path):
                kind, _, resource_id = str(element.get("reference", "")).partition("/")
                target = resources.read(kind, resource_id)
                if target is not None:
                    found[target.key] = target
    for kind, path in ((one.partition(":")[0], path) for one, path in _named_paths(search.revincludes)):
        for one in resources.current(kind):
            references = {str(e.get("reference", "")) for e in elements(one.resource, path)}
            if references & {"/".join(key) for key in matched}:
                found[one.key] = one
    return [one for key, one in found.items() if key not in matched and allows(one.resource)]


def _paths(names: Sequence[str]) -> list[str]:
    return [path for _, path in _named_paths(names)]


def _named_paths(names: Sequence[str]) -> list[Pair]:
    split = [(name, *name.split(":")) for name in names]
    return [(name, PARAMETERS[kind][parameter].path) for name, kind, parameter in split]


def searchset(
    search: Search,
    found: Sequence[Served],
    *,
    included: Sequence[Served],
    base_url: str,
    cursor_at: Callable[[int], str],
) -> Resource:
    """Return one page; its links onward are opaque, for what they hold may be a patient's.

    Spec: FHIR R4 http.html#paging, bundle.html#searchset
    """
    links = [_link("self", base_url, search.resource_type, urlencode(search.pairs))]
    onward = search.offset + search.count
    if not search.counts_only and onward < len(found):
        links.append(_link("next", base_url, search.resource_type, f"{CURSOR}={cursor_at(onward)}"))
    if not search.counts_only and search.offset:
        before = max(0, search.offset - search.count)
        links.append(_link("previous", base_url, search.resource_type, f"{CURSOR}={cursor_at(before)}"))
    entries = [_entry(one, "match", base_url) for one in page_of(search, found)]
    entries += [_entry(one, "include", base_url) for one in included]
    entries += [_told(search.ignored)] if search.ignored else []
    bundle: Resource = {"resourceType": "Bundle", "type": "searchset", "link": links}
    if search.with_total or search.counts_only:
        bundle["total"] = len(found)
    return {**bundle, "entry": entries} if entries else bundle


def page_of(search: Search, found: Sequence[Served]) -> Sequence[Served]:
    return () if search.counts_only else found[search.offset : search.offset + search.count]


def _link(relation: str, base_url: str, resource_type: str, query: str) -> Resource:
    return {"relation": relation, "url": f"{base_url}/{resource_type}?{query}"}


def _entry(one: Served, mode: Literal["match", "include"], base_url: str) -> Resource:
    return {
        "fullUrl": f"{base_url}/{'/'.join(one.key)}",
        "resource": one.resource,
        "search": {"mode": mode},
    }


def _told(ignored: Sequence[str]) -> Resource:
    """Spec: FHIR R4 search.html#errors: a lenient server tells what it left out."""
    issues = [
        {
            "severity": "warning",
            "code": "not-supported",
            "diagnostics": f"search parameter {name.partition(':')[0][:40]} is not supported, and was left out",
        }
        for name in ignored
    ]
    return {"resource": {"resourceType": "OperationOutcome", "issue": issues}, "search": {"mode": "outcome"}}


def seal_cursor(keyring: Keyring, search: Search, *, offset: int, holder: str) -> str:
    """Return the page at `offset` as a token that only `holder` can use, and nobody can read."""
    content = {
        "type": search.resource_type,
        "pairs": search.pairs,
        "offset": offset,
        "as_of": search.as_of,
    }
    sealed = keyring.seal(json.dumps(content).encode(), table="fhir_search", column="cursor", row=holder)
    return base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def open_cursor(keyring: Keyring, text: str, *, resource_type: str, holder: str, now: float) -> Search:
    """Raise InvalidRequest for a cursor of another caller or type, one that was changed, or one too old."""
    try:
        sealed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        content = json.loads(keyring.open(sealed, table="fhir_search", column="cursor", row=holder))
    except (ValueError, RayhookError) as error:
        raise InvalidRequest("_cursor: is not one of yours", expression=CURSOR) from error
    if content["type"] != resource_type:
        raise InvalidRequest("_cursor: is of another search", expression=CURSOR)
    if now - content["as_of"] > _CURSOR_LIFE_S:
        raise InvalidRequest("_cursor: is too old; search again", code="cursor_expired", expression=CURSOR)
    pairs = [(name, value) for name, value in content["pairs"]]
    search = parse_search(resource_type, pairs, as_of=content["as_of"])
    return replace(search, offset=content["offset"])
