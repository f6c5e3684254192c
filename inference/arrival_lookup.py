"""What an EHR says of a study that was told of: whose it is, where its images are, and how urgent it was ordered."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.auth.registry import EHR
from rayhook.auth.scopes import ScopeSet
from rayhook.fhir.client import FHIRClient
from rayhook.fhir.errors import InvalidRequest, NotFound, RayhookError
from rayhook.fhir.r4 import EndpointSummary, ImagingStudySummary, read_imaging_study
from rayhook.fhir.references import DICOM_UID_SYSTEM, oid_uri, parse_reference
from rayhook.fhir.transport import Transport
from rayhook.inference.arrival import Arrival
from rayhook.inference.authority import Authority
from rayhook.inference.endpoint import endpoint_ids, image_endpoint, readable_endpoints
from rayhook.inference.image_source import (
    WITHOUT_IMAGES,
    LateEndpoints,
    is_registered,
    located,
    study_reference,
)
from rayhook.inference.job_table import Authorization, Priority
from rayhook.inference.study import StudyReference
from rayhook.inference.withdrawal import WITHDRAWN

AGENT: Final = "rayhook"
ADDRESS_REFUSED: Final = "dicomweb_address_not_registered"
_READ_DEADLINE_S: Final = 5.0

Answer = TypeVar("Answer")
Resource = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """One analysis to ask for."""

    reference: StudyReference
    priority: Priority


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of looking: analyses to ask for, what goes into the audit, and a reason where there are none."""

    requests: tuple[Request, ...]
    accesses: tuple[AuditEntry, ...]
    reason: str | None = None
    withdrawn: tuple[StudyReference, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalLookup:
    """Reads with our own token; a client says what only its EHR knows, nobody else is believed.

    is_received: whether all images of a study are here already, so that nobody need say where they are.
    """

    transport: Transport
    authority: Authority
    is_received: Callable[[StudyReference], bool] = lambda _: False

    def find(self, ehr: EHR, arrival: Arrival) -> Finding:
        """Raise NotFound where the EHR does not know the study yet, InvalidRequest where we may not ask it at all."""
        if not self.authority.has_own(ehr):
            raise InvalidRequest(
                "studies that arrive by themselves need a backend client at their EHR",
                code="backend_not_registered",
            )
        requests: list[Request] = []
        accesses: list[AuditEntry] = []
        reasons: list[str] = []
        withdrawn: list[StudyReference] = []
        for base_url, resource, included in self._resources(ehr, arrival):
            study = read_imaging_study(resource, base_url=base_url)
            accesses.append(_access(arrival, study.patient_id, _names(study)))
            withdrawn += _withdrawn(study, ehr, base_url)
            found = self._reference(ehr, arrival, study, included, base_url=base_url)
            if isinstance(found, StudyReference):
                priority, reads = self._priority(ehr, arrival, found)
                requests.append(Request(found, priority))
                accesses += reads
            else:
                reasons.append(found)
                if found == ADDRESS_REFUSED:
                    accesses.append(_address_refused(arrival, study))
        if not accesses:
            raise NotFound("the EHR does not know the study yet", code="study_not_in_ehr")
        reason = None if requests else reasons[0]
        return Finding(tuple(requests), tuple(accesses), reason, tuple(withdrawn))

    def _resources(self, ehr: EHR, arrival: Arrival) -> Iterator[tuple[str, Resource, list[Resource]]]:
        """Yield the FHIR base, the ImagingStudy and what came with it; it is hardly ever more than one."""
        if arrival.imaging_study_id is not None:
            base_url = arrival.fhir_base_url or ehr.fhir_base_urls[0]
            yield base_url, self._read(ehr, base_url, "ImagingStudy", arrival.imaging_study_id), []
            return
        uid = arrival.study_instance_uid or ""
        # Some servers keep the bare UID.
        identifier = f"{DICOM_UID_SYSTEM}|{oid_uri(uid)},{DICOM_UID_SYSTEM}|{uid}"
        parameters = [("identifier", identifier), ("_include", "ImagingStudy:endpoint")]
        for base_url in ehr.fhir_base_urls:
            found = self._ask(
                ehr,
                base_url,
                lambda client: client.search("ImagingStudy", parameters, deadline_s=_READ_DEADLINE_S),
                allowing=("ImagingStudy", "s"),
            )
            for resource in found:
                if resource.get("resourceType") == "ImagingStudy":
                    yield base_url, resource, found

    def _reference(
        self,
        ehr: EHR,
        arrival: Arrival,
        study: ImagingStudySummary,
        included: Iterable[Resource],
        *,
        base_url: str,
    ) -> StudyReference | str:
        """Return what the analysis is to be told, or why there is nothing to analyse."""
        if study.status in WITHOUT_IMAGES:
            return "study_without_images"
        if study.patient_id is None:
            return "no_patient"
        reference = study_reference(study, ehr_id=ehr.id, base_url=base_url, patient_id=study.patient_id)
        if reference is None:
            return "no_study_instance_uid"
        if arrival.study_instance_uid not in (None, reference.study_instance_uid):
            return "another_study"
        return self._located(ehr, arrival, study, included, reference)

    def _located(
        self,
        ehr: EHR,
        arrival: Arrival,
        study: ImagingStudySummary,
        included: Iterable[Resource],
        reference: StudyReference,
    ) -> StudyReference | str:
        ids = endpoint_ids(study, reference.fhir_base_url)
        endpoint = image_endpoint([*study.contained_endpoints, *_of_study(included, ids)])
        if endpoint is not None:
            return located(reference, endpoint) if is_registered(endpoint.address, ehr) else ADDRESS_REFUSED
        if ids:
            return located(reference, LateEndpoints(ids))
        if arrival.dicomweb_url is not None:
            return replace(
                reference, dicomweb_url=arrival.dicomweb_url, token_required=arrival.token_required
            )
        return reference if self.is_received(reference) else "no_dicomweb_endpoint"

    def _priority(
        self, ehr: EHR, arrival: Arrival, reference: StudyReference
    ) -> tuple[Priority, tuple[AuditEntry, ...]]:
        """Return the order's priority; that it cannot be read is no reason to let the study wait."""
        if reference.service_request is None or not self.authority.permits(
            ehr, None, _reads("ServiceRequest")
        ):
            return arrival.priority, ()
        order_id = parse_reference(reference.service_request).id
        try:
            order = self._read(ehr, reference.fhir_base_url, "ServiceRequest", order_id)
        except RayhookError:
            return arrival.priority, ()
        read = _access(arrival, reference.patient_id, (reference.service_request,))
        try:
            return arrival.priority.at_least(Priority(str(order.get("priority")))), (read,)
        except ValueError:
            return arrival.priority, (read,)

    def _read(self, ehr: EHR, base_url: str, resource_type: str, resource_id: str) -> Resource:
        return self._ask(
            ehr,
            base_url,
            lambda client: client.read(resource_type, resource_id, deadline_s=_READ_DEADLINE_S),
            allowing=(resource_type, "r"),
        )

    def _ask(
        self, ehr: EHR, base_url: str, step: Callable[[FHIRClient], Answer], *, allowing: tuple[str, str]
    ) -> Answer:
        def ask(token: Authorization | None) -> Answer:
            access_token = None if token is None else token.access_token
            return step(FHIRClient(self.transport, base_url, ehr.fhir_origins, access_token))

        return self.authority.call(ehr, None, lambda scopes: scopes.permits(None, *allowing), ask)


def _reads(resource_type: str) -> Callable[[ScopeSet], bool]:
    return lambda scopes: scopes.permits(None, resource_type, "r")


def _of_study(included: Iterable[Resource], ids: Iterable[str]) -> Iterable[EndpointSummary]:
    """Return the Endpoints that came along, in the order in which the study names them."""
    known = {one.get("id"): one for one in included if one.get("resourceType") == "Endpoint"}
    return readable_endpoints(known[id_] for id_ in ids if id_ in known)


def _names(study: ImagingStudySummary) -> tuple[str, ...]:
    uid = study.study_instance_uid
    return (f"ImagingStudy/{study.id}", *(() if uid is None else (oid_uri(uid),)))


def _access(arrival: Arrival, patient_id: str | None, entities: tuple[str, ...]) -> AuditEntry:
    return AuditEntry(
        AuditKind.FHIR_RESOURCE_READ,
        ehr_id=arrival.ehr_id,
        agent=AGENT,
        patient_id=patient_id,
        entities=entities,
        detail={"way": arrival.way.value},
    )


def _address_refused(arrival: Arrival, study: ImagingStudySummary) -> AuditEntry:
    return AuditEntry(
        AuditKind.TRANSPORT_ADDRESS_REFUSED,
        Outcome.MINOR_FAILURE,
        ehr_id=arrival.ehr_id,
        agent=AGENT,
        patient_id=study.patient_id,
        entities=_names(study),
        detail={"reason": ADDRESS_REFUSED},
    )


def _withdrawn(study: ImagingStudySummary, ehr: EHR, base_url: str) -> list[StudyReference]:
    """Return the study where its EHR takes it back."""
    if study.status not in WITHDRAWN or study.patient_id is None:
        return []
    named = study_reference(study, ehr_id=ehr.id, base_url=base_url, patient_id=study.patient_id)
    return [] if named is None else [named]
