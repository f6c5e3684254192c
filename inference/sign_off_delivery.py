"""Bringing what was signed to the EHR, as new versions of the EHR's own resources.

Spec: FHIR R4 http.html#update, http.html#concurrency (If-Match), http.html#transaction
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rayhook.auth.registry import EHR
from rayhook.auth.scopes import ScopeSet
from rayhook.fhir.client import FHIRClient
from rayhook.fhir.codes import BundleType
from rayhook.fhir.errors import RayhookError, UpstreamConflict, UpstreamError, UpstreamRefused
from rayhook.fhir.transport import Transport
from rayhook.inference.delivery import DEADLINE_S
from rayhook.inference.job_table import Authorization
from rayhook.inference.report import creation_condition, transaction
from rayhook.inference.results import DeliveryState, StoredResult

Resource = dict[str, Any]

_VERSIONED = re.compile(
    r"(?:.*/)?(?P<type>[A-Z][A-Za-z]+)/(?P<id>[A-Za-z0-9.-]{1,64})(?:/_history/(?P<version>[A-Za-z0-9.-]{1,64}))?"
)
_ETAG = re.compile(r'(?:W/)?"(?P<version>[A-Za-z0-9.-]{1,64})"')
_REVISED_TYPES = ("DiagnosticReport", "Observation")
# What an EHR keeps as it got it, and in which no two versions are alike: each has the instant of its own act.
_TELLING = ("status", "issued", "conclusion", "valueString")


@dataclass(frozen=True, slots=True)
class SignedDelivery:
    """What became of a signed version at the EHR; `written` as in Signature."""

    state: DeliveryState
    detail: str | None = None
    written: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Copy:
    """The EHR's current copy of one of our resources."""

    id: str
    version: str
    status: str
    content: Resource = field(repr=False)


def may_revise(scopes: ScopeSet) -> bool:
    """Return whether what was signed may be looked for, created and updated, in whatever context."""
    revised = all(scopes.permits(None, kind, act) for kind in _REVISED_TYPES for act in "us")
    return revised and all(
        scopes.permits(None, kind, "c") for kind in ("Device", "Observation", "Provenance")
    )


def write_signed(
    transport: Transport,
    ehr: EHR,
    stored: StoredResult,
    resources: Sequence[Resource],
    authorization: Authorization,
    *,
    written_before: Mapping[str, str],
    is_forced: bool,
) -> SignedDelivery:
    """Write one signed version; told, never raised.

    written_before: the EHR's versions that we wrote last.  is_forced: whether the EHR's copy is to be
    replaced although somebody else has changed it.
    The model's own version is written first where the EHR does not have it: it belongs to the history.
    """
    client = FHIRClient(
        transport,
        stored.reference.fhir_base_url,
        allowed_origins=ehr.fhir_origins,
        access_token=authorization.access_token,
    )
    writer = _Writer(client, stored, resources, written_before, is_forced)
    try:
        return SignedDelivery(DeliveryState.DELIVERED, written=writer.write())
    except UpstreamConflict as error:
        return SignedDelivery(DeliveryState.CONFLICT, error.code)
    except UpstreamRefused as error:
        return SignedDelivery(DeliveryState.NOT_PERMITTED, error.code)
    except RayhookError as error:
        return SignedDelivery(DeliveryState.FAILED, error.code)


@dataclass(frozen=True, slots=True)
class _Writer:
    client: FHIRClient
    stored: StoredResult
    resources: Sequence[Resource]
    written_before: Mapping[str, str]
    is_forced: bool

    def write(self) -> dict[str, str]:
        copies = self._copies()
        if not copies:
            self.client.transaction(transaction(self.stored.resources), deadline_s=DEADLINE_S)
            copies = self._copies()
            if self._missing(copies):
                # Its index is behind: a conditional create would find them after all, and change nothing.
                raise UpstreamError("the EHR does not find what it took", code="not_found_at_ehr")
        taken = self._taken_before(copies)
        if taken:
            return taken
        if not self.is_forced:
            self._expect_ours(copies)
        sent = (*self._supporting(), *self.resources)
        links = _links(sent, copies)
        entries = [self._entry(one, copies.get(local_reference(one)), links) for one in sent]
        bundle = {"resourceType": "Bundle", "type": BundleType.TRANSACTION.value, "entry": entries}
        answer = self.client.transaction(bundle, deadline_s=DEADLINE_S)
        return dict(zip(map(local_reference, sent), map(_written, answer["entry"]), strict=True))

    def _supporting(self) -> Iterator[Resource]:
        """Yield what the signed resources refer to and nobody revises, such as the Device."""
        revised = (*_REVISED_TYPES, "Provenance")
        return (one for one in self.stored.resources if one["resourceType"] not in revised)

    def _copies(self) -> dict[str, _Copy]:
        """Return the EHR's copies of our report and Observations, by our own reference."""
        ours = (one for one in (*self.stored.resources, *self.resources) if _is_revised(one))
        wanted = {_keys(one)[0]: local_reference(one) for one in ours}
        copies: dict[str, _Copy] = {}
        for kind in _REVISED_TYPES:
            keys = sorted(key for key, local in wanted.items() if local.startswith(f"{kind}/"))
            query = [("identifier", ",".join(keys)), ("patient", self.stored.patient_id)]
            for one in self.client.search(kind, query, deadline_s=DEADLINE_S):
                local = next((wanted[key] for key in _keys(one) if key in wanted), None)
                if local is not None and one["resourceType"] == kind:
                    version = str(one.get("meta", {}).get("versionId", ""))
                    copies[local] = _Copy(one["id"], version, str(one.get("status")), one)
        return copies

    def _taken_before(self, copies: Mapping[str, _Copy]) -> dict[str, str]:
        """Return the EHR's versions where it has this one: it took it, and its answer was lost on the way to us.

        A transaction is taken as a whole or not at all, so one resource that differs was changed since.
        """
        wanted = {local_reference(one): one for one in self.resources if _is_revised(one)}
        if not all(
            local in copies and _tells_the_same(copies[local].content, one) for local, one in wanted.items()
        ):
            return {}
        return {
            local: f"{local.partition('/')[0]}/{copies[local].id}/_history/{copies[local].version}"
            for local in wanted
        }

    def _missing(self, copies: Mapping[str, _Copy]) -> bool:
        return any(local_reference(one) not in copies for one in self.stored.resources if _is_revised(one))

    def _expect_ours(self, copies: Mapping[str, _Copy]) -> None:
        """Raise UpstreamConflict where the EHR's copy is not the one that was written last, or was deleted."""
        if self._missing(copies):
            raise UpstreamConflict("the EHR's copy was deleted by somebody else", code="deleted_at_ehr")
        made = {local_reference(one): str(one["status"]) for one in self.stored.resources if _is_revised(one)}
        for local, copy in copies.items():
            last = self.written_before.get(local)
            is_ours = copy.status == made.get(local)
            if last is not None:
                is_ours = last == f"{local.partition('/')[0]}/{copy.id}/_history/{copy.version}"
            if not is_ours:
                raise UpstreamConflict("the EHR's copy was changed by somebody else", code="changed_at_ehr")

    def _entry(self, resource: Resource, copy: _Copy | None, links: Mapping[str, str]) -> Resource:
        content = _relinked({key: value for key, value in resource.items() if key != "id"}, links)
        kind = resource["resourceType"]
        if copy is None:
            request = {"method": "POST", "url": kind, "ifNoneExist": creation_condition(resource)}
            return {"fullUrl": f"urn:uuid:{resource['id']}", "resource": content, "request": request}
        request = {"method": "PUT", "url": f"{kind}/{copy.id}"}
        if copy.version:
            request["ifMatch"] = f'W/"{copy.version}"'
        return {
            "fullUrl": f"{self.client.base_url.rstrip('/')}/{kind}/{copy.id}",
            "resource": {"resourceType": kind, "id": copy.id} | content,
            "request": request,
        }


def local_reference(resource: Mapping[str, Any]) -> str:
    """Return `Type/id` of one of our own resources."""
    return f"{resource['resourceType']}/{resource['id']}"


def _links(sent: Sequence[Resource], copies: Mapping[str, _Copy]) -> dict[str, str]:
    """Return what our references become: the EHR's own ids, and this transaction's for what is new."""
    links = {local_reference(one): f"urn:uuid:{one['id']}" for one in sent}
    for local, copy in copies.items():
        theirs = f"{local.partition('/')[0]}/{copy.id}"
        # The version before is the one that this transaction replaces, whatever number it has there.
        links |= {local: theirs, f"{local}/_history": f"{theirs}/_history/{copy.version}"}
    return links


def _relinked(value: Any, links: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_relinked(member, links) for member in value]
    if not isinstance(value, dict):
        return value
    copy = {key: _relinked(member, links) for key, member in value.items()}
    reference = copy.get("reference")
    if isinstance(reference, str):
        plain, marker, _ = reference.partition("/_history/")
        copy["reference"] = links.get(f"{plain}/_history" if marker else plain, reference)
    return copy


def _tells_the_same(theirs: Resource, ours: Resource) -> bool:
    """Return whether both are one version: an instant has many spellings. Spec: FHIR R4 datatypes.html#instant."""
    return all(_told(theirs, element) == _told(ours, element) for element in _TELLING)


def _told(resource: Resource, element: str) -> object:
    value = resource.get(element)
    if element != "issued" or not isinstance(value, str):
        return value
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return value


def _is_revised(resource: Mapping[str, Any]) -> bool:
    return resource["resourceType"] in _REVISED_TYPES


def _keys(resource: Mapping[str, Any]) -> tuple[str, ...]:
    """Return all identifiers: our own is our resources' first, but an EHR may put one of its own before it."""
    return tuple(f"{one.get('system', '')}|{one.get('value', '')}" for one in resource.get("identifier", []))


def _written(entry: Mapping[str, Any]) -> str:
    """Return the EHR's `Type/id/_history/version`, as far as it says.

    Spec: FHIR R4 http.html#transaction-response
    """
    response = entry["response"]
    location = _VERSIONED.fullmatch(str(response.get("location", "")))
    if location is None:
        raise UpstreamError("the EHR did not say where a resource went", code="upstream_malformed")
    etag = _ETAG.fullmatch(str(response.get("etag", "")))
    version = location["version"] or (etag["version"] if etag else "")
    return f"{location['type']}/{location['id']}/_history/{version}"
