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

WRITABLE = frozenset(
    {
        "Device",
        "DiagnosticReport",
        "DocumentReference",
        "Observation",
        "Provenance",
        "ServiceRequest",
        "Subscription",
    }
)


class PreconditionFailed(RayhookError):
    """Spec: FHIR R4 http.html#ccreate: multiple matches for If-None-Exist."""

    status = 412
    issue_type = "multiple-matches"
    code = "multiple_matches"


class VersionConflict(RayhookError):
    """Spec: FHIR R4 http.html#concurrency: If-Match names another version than the current one."""

    status = 412
    issue_type = "conflict"
    code = "version_conflict"


@dataclass(frozen=True, slots=True)
class Created:
    resource: Resource
    created: bool

    @property
    def reference(self) -> str:
        return f"{self.resource['resourceType']}/{self.resource['id']}"


class ResourceStore:
    """Create, read, update and delete; every version of a resource is kept. `listeners` hear of each one stored."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._resources: dict[tuple[str, str], Resource] = {}
        self._versions: dict[tuple[str, str], list[Resource]] = {}
        self._lock = threading.RLock()
        self._clock = clock
        self.listeners: list[Callable[[Resource], None]] = []

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

    def delete(self, resource_type: str, resource_id: str) -> None:
        """Spec: FHIR R4 http.html#delete."""
        with self._lock:
            self._resources.pop((resource_type, resource_id), None)

    def history(self, resource_type: str, resource_id: str) -> list[Resource]:
        """Return all versions, the oldest first.

        Spec: FHIR R4 http.html#history
        """
        self.read(resource_type, resource_id)
        with self._lock:
            return copy.deepcopy(self._versions[resource_type, resource_id])

    def update(self, resource: Resource, *, if_match: str | None = None) -> Created:
        """Store `resource` as the next version of the one that has its id.

        Spec: FHIR R4 http.html#update, http.html#concurrency
        """
        _check(resource)
        with self._lock:
            self._expect(resource, if_match)
            return Created(self._insert(resource, resource["id"]), created=False)

    def _expect(self, resource: Resource, if_match: str | None) -> None:
        """Raise NotFound where there is nothing to update, VersionConflict where it is not that version."""
        current = self.read(resource["resourceType"], str(resource.get("id")))
        if if_match is not None and if_match != etag_of(current):
            raise VersionConflict("If-Match names another version than the current one")

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
        """Create and update all entries or none, with `urn:uuid` references resolved.

        Spec: FHIR R4 http.html#transaction
        """
        entries = [_TransactionEntry.of(entry, index) for index, entry in enumerate(bundle.get("entry", []))]
        with self._lock:
            for entry in entries:
                _check(entry.resource)
                if entry.is_update:
                    self._expect(entry.resource, entry.if_match)
            existing = [self._match(entry.resource["resourceType"], entry.if_none_exist) for entry in entries]
            ids = [
                entry.resource["id"] if entry.is_update else match["id"] if match else str(uuid.uuid4())
                for entry, match in zip(entries, existing, strict=True)
            ]
            references = {
                entry.full_url: f"{entry.resource['resourceType']}/{new_id}"
                for entry, new_id in zip(entries, ids, strict=True)
            }
            return [
                Created(match, created=False)
                if match is not None
                else Created(
                    self._insert(_resolved(entry.resource, references), new_id), created=not entry.is_update
                )
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
        key = (resource["resourceType"], resource_id)
        with self._lock:
            versions = self._versions.setdefault(key, [])
            meta = {
                **resource.get("meta", {}),
                "versionId": str(len(versions) + 1),
                "lastUpdated": datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds"),
            }
            stored = copy.deepcopy({**resource, "id": resource_id, "meta": meta})
            versions.append(stored)
            self._resources[key] = stored
        for listener in self.listeners:
            listener(stored)
        return copy.deepcopy(stored)


def etag_of(resource: Resource) -> str:
    """Return the weak ETag of a stored resource.

    Spec: FHIR R4 http.html#versioning
    """
    return f'W/"{resource["meta"]["versionId"]}"'


@dataclass(frozen=True, slots=True)
class _TransactionEntry:
    full_url: str
    resource: Resource
    is_update: bool
    if_none_exist: str | None
    if_match: str | None

    @classmethod
    def of(cls, entry: object, index: int) -> "_TransactionEntry":
        where = f"Bundle.entry[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("resource"), dict):
            raise InvalidRequest("a transaction entry needs a resource", expression=where)
        request, resource = entry.get("request"), entry["resource"]
        method = request.get("method") if isinstance(request, dict) else None
        if not isinstance(request, dict) or method not in {"POST", "PUT"}:
            raise InvalidRequest(
                "only POST and PUT entries are supported", expression=f"{where}.request.method"
            )
        is_update = method == "PUT"
        if is_update and request.get("url") != f"{resource.get('resourceType')}/{resource.get('id')}":
            raise InvalidRequest("the url of a PUT must be Type/id", expression=f"{where}.request.url")
        return cls(
            str(entry.get("fullUrl", "")),
            resource,
            is_update,
            None if is_update else request.get("ifNoneExist"),
            request.get("ifMatch") if is_update else None,
        )


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
