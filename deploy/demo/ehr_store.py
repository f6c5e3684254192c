"""The demo EHR's FHIR resources, in memory."""

import copy
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from rayhook.deploy.demo.ehr_search import matches
from rayhook.fhir.errors import InvalidRequest, NotFound, RayhookError
from rayhook.fhir.r4 import validate

Resource = dict[str, Any]

WRITABLE = frozenset({"Device", "DiagnosticReport", "Observation", "Provenance", "ServiceRequest"})


class PreconditionFailed(RayhookError):
    """Spec: FHIR R4 http.html#ccreate: multiple matches for If-None-Exist."""

    status = 412
    issue_type = "multiple-matches"
    code = "multiple_matches"


@dataclass(frozen=True, slots=True)
class Created:
    resource: Resource
    created: bool

    @property
    def reference(self) -> str:
        return f"{self.resource['resourceType']}/{self.resource['id']}"


class ResourceStore:
    """Create and read, no update: the demo's results are never overwritten."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._resources: dict[tuple[str, str], Resource] = {}
        self._lock = threading.RLock()
        self._clock = clock

    def seed(self, resources: Iterable[Resource]) -> None:
        """Store resources under the ids they carry."""
        for resource in resources:
            self._insert(resource, resource["id"])

    def read(self, resource_type: str, resource_id: str) -> Resource:
        with self._lock:
            found = self._resources.get((resource_type, resource_id))
        if found is None:
            raise NotFound(f"{resource_type}: no resource has this id")
        return copy.deepcopy(found)

    def search(self, resource_type: str, parameters: Iterable[tuple[str, str]]) -> list[Resource]:
        """Return the matches of every one of `parameters`, oldest first."""
        wanted = list(parameters)
        with self._lock:
            candidates = [stored for (kind, _), stored in self._resources.items() if kind == resource_type]
        return [copy.deepcopy(stored) for stored in candidates if matches(stored, wanted)]

    def create(self, resource: Resource, *, if_none_exist: str | None = None) -> Created:
        """Store `resource` under a new id, unless `if_none_exist` already has a match.

        Spec: FHIR R4 http.html#create, http.html#ccreate
        """
        _check(resource)
        with self._lock:
            match = self._match(resource["resourceType"], if_none_exist)
            if match is not None:
                return Created(match, created=False)
            return Created(self._insert(resource, str(uuid.uuid4())), created=True)

    def transaction(self, bundle: Resource) -> list[Created]:
        """Create all entries or none, with `urn:uuid` references resolved.

        Spec: FHIR R4 http.html#transaction
        """
        entries = [_TransactionEntry.of(entry, index) for index, entry in enumerate(bundle.get("entry", []))]
        with self._lock:
            for entry in entries:
                _check(entry.resource)
            existing = [self._match(entry.resource["resourceType"], entry.if_none_exist) for entry in entries]
            ids = [match["id"] if match else str(uuid.uuid4()) for match in existing]
            references = {
                entry.full_url: f"{entry.resource['resourceType']}/{new_id}"
                for entry, new_id in zip(entries, ids, strict=True)
            }
            return [
                Created(match, created=False)
                if match is not None
                else Created(self._insert(_resolved(entry.resource, references), new_id), created=True)
                for entry, match, new_id in zip(entries, existing, ids, strict=True)
            ]

    def _match(self, resource_type: str, condition: str | None) -> Resource | None:
        if condition is None:
            return None
        found = self.search(resource_type, parse_qsl(condition, strict_parsing=True))
        if len(found) > 1:
            raise PreconditionFailed("ifNoneExist: more than one resource matches")
        return found[0] if found else None

    def _insert(self, resource: Resource, resource_id: str) -> Resource:
        meta = {
            **resource.get("meta", {}),
            "versionId": "1",
            "lastUpdated": datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds"),
        }
        stored = copy.deepcopy({**resource, "id": resource_id, "meta": meta})
        with self._lock:
            self._resources[(resource["resourceType"], resource_id)] = stored
        return copy.deepcopy(stored)


@dataclass(frozen=True, slots=True)
class _TransactionEntry:
    full_url: str
    resource: Resource
    if_none_exist: str | None

    @classmethod
    def of(cls, entry: object, index: int) -> "_TransactionEntry":
        where = f"Bundle.entry[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("resource"), dict):
            raise InvalidRequest("a transaction entry needs a resource", expression=where)
        request = entry.get("request")
        if not isinstance(request, dict) or request.get("method") != "POST":
            raise InvalidRequest("only POST entries are supported", expression=f"{where}.request.method")
        return cls(str(entry.get("fullUrl", "")), entry["resource"], request.get("ifNoneExist"))


def _check(resource: Resource) -> None:
    if resource.get("resourceType") not in WRITABLE:
        raise InvalidRequest("resources of this type cannot be created here", expression="resourceType")
    validate(resource)


def _resolved(value: Any, references: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(member, references) for key, member in value.items()}
    if isinstance(value, list):
        return [_resolved(member, references) for member in value]
    return references.get(value, value) if isinstance(value, str) else value


def included_endpoints(store: ResourceStore, studies: Iterable[Resource]) -> Iterator[Resource]:
    """Yield each Endpoint the studies refer to once.

    Spec: FHIR R4 search.html#include, `ImagingStudy:endpoint`
    """
    references = {endpoint["reference"] for study in studies for endpoint in study.get("endpoint", [])}
    for reference in sorted(references):
        yield store.read(*reference.split("/", 1))
