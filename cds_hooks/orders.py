"""Which orders and appointments ask for imaging, of what, and whose they are."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from msgspec import Struct

from rayhook.cds_hooks.models import JSONObject, read
from rayhook.cds_hooks.trust import check_subject
from rayhook.fhir.codes import DCM, SNOMED
from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.references import is_fhir_id
from rayhook.inference.anatomy import DIAGNOSTIC_SERVICE, Region, modality_of, regions_of
from rayhook.inference.job_table import Priority

_DRAFTS = "context.draftOrders"
_APPOINTMENTS = "context.appointments"

# Spec: FHIR R4 ServiceRequest.category (SNOMED CT 363679005 "Imaging"); HL7 v2 table 0074;
# FHIR R4 Appointment.specialty (SNOMED CT 394914008 "Radiology")
_CATEGORIES = frozenset({(SNOMED, "363679005"), (SNOMED, "394914008")}) | frozenset(
    (DIAGNOSTIC_SERVICE, code)
    for code in ("CT", "CUS", "IMG", "NMR", "NMS", "OUS", "RAD", "RUS", "RX", "VUS", "XRC")
)
# Many EHRs send local codes without a category: then only their words tell.
_WORDS = re.compile(
    r"\b(MRI?|CT|CTA|MRA|PET|SPECT|X-?ray|radiograph\w*|radiology|ultraso\w+|sonogra\w+|tomogra\w+|mammogra\w+|"
    r"magnetic resonance|imaging|fluoroscop\w+)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ImagingOrder:
    """An order or appointment for imaging. `reference` is None where it has no id yet.

    `title` is the EHR's own text. `modality` and `regions` are what could be told of it for certain.
    """

    reference: str | None
    title: str
    modality: str | None
    regions: frozenset[Region]
    priority: Priority = Priority.ROUTINE

    @property
    def is_request(self) -> bool:
        return self.reference is not None and self.reference.startswith("ServiceRequest/")


class _Coding(Struct, frozen=True):
    system: str | None = None
    code: str | None = None
    display: str | None = None


class _Concept(Struct, frozen=True):
    coding: tuple[_Coding, ...] = ()
    text: str | None = None


class _Reference(Struct, frozen=True):
    reference: str | None = None


class _Order(Struct, frozen=True, rename="camel"):
    """What is read of a ServiceRequest. Spec: FHIR R4 ServiceRequest."""

    id: str | None = None
    subject: _Reference | None = None
    category: tuple[_Concept, ...] = ()
    code: _Concept | None = None
    body_site: tuple[_Concept, ...] = ()
    do_not_perform: bool = False
    priority: str | None = None


class _Participant(Struct, frozen=True):
    actor: _Reference | None = None


class _Appointment(Struct, frozen=True, rename="camel"):
    """What is read of an Appointment. Spec: FHIR R4 Appointment; STU3 has one serviceCategory, not several."""

    id: str | None = None
    service_category: tuple[_Concept, ...] | _Concept = ()
    service_type: tuple[_Concept, ...] = ()
    specialty: tuple[_Concept, ...] = ()
    participant: tuple[_Participant, ...] = ()


class _Entry(Struct, frozen=True):
    resource: JSONObject


class _Bundle(Struct, frozen=True, rename="camel"):
    resource_type: str
    entry: tuple[_Entry, ...] = ()


def draft_orders(bundle: JSONObject, *, patient_id: str, base_url: str) -> tuple[ImagingOrder, ...]:
    """Return the imaging orders among the drafts.

    Raises InvalidRequest unless `bundle` is a Bundle, IdentityConflict if any order is for another patient.
    """
    resources = _resources(bundle, "ServiceRequest", _DRAFTS)
    return imaging_orders(resources, patient_id=patient_id, base_url=base_url, path=_DRAFTS)


def imaging_orders(
    resources: Iterable[JSONObject], *, patient_id: str, base_url: str, path: str
) -> tuple[ImagingOrder, ...]:
    """Return those of the ServiceRequests that ask for imaging. Raises as draft_orders does."""
    orders = [read(resource, _Order, under=f"{path}.entry.resource") for resource in resources]
    for order in orders:
        _check_patient(order.subject, patient_id, base_url, f"{path}.entry.resource.subject")
    return tuple(_imaging_order(order) for order in orders if _is_imaging(order))


def appointments(
    proposed: JSONObject | Sequence[JSONObject], *, patient_id: str, base_url: str
) -> tuple[ImagingOrder, ...]:
    """Return the appointments for imaging. Raises as draft_orders does."""
    resources = (
        _resources(proposed, "Appointment", _APPOINTMENTS)
        if isinstance(proposed, dict)
        else [resource for resource in proposed if resource.get("resourceType") == "Appointment"]
    )
    found = [read(resource, _Appointment, under=f"{_APPOINTMENTS}.entry.resource") for resource in resources]
    for appointment in found:
        for person in appointment.participant:
            named = None if person.actor is None else person.actor.reference
            if named is not None and _is_patient(named):
                path = f"{_APPOINTMENTS}.entry.resource.participant"
                _check_patient(person.actor, patient_id, base_url, path)
    return tuple(_booked(appointment) for appointment in found if _is_imaging_appointment(appointment))


def _resources(bundle: JSONObject, resource_type: str, path: str) -> Iterator[JSONObject]:
    read_bundle = read(bundle, _Bundle, under=path)
    if read_bundle.resource_type != "Bundle":
        raise InvalidRequest(f"{path} must be a Bundle", expression=path)
    for entry in read_bundle.entry:
        if entry.resource.get("resourceType") == resource_type:
            yield entry.resource


def _check_patient(subject: _Reference | None, patient_id: str, base_url: str, path: str) -> None:
    """A draft may lack its subject until it is signed: then the context says whose it is."""
    if subject is not None:
        check_subject(subject.reference, patient_id=patient_id, base_url=base_url, path=path)


def _is_patient(reference: str) -> bool:
    return "Patient" in reference.split("/")


def _is_imaging(order: _Order) -> bool:
    if order.do_not_perform:
        return False
    code = (order.code,) if order.code is not None else ()
    return (
        any(pair in _CATEGORIES for pair in _codes(order.category))
        or any(system == DCM for system, _ in _codes(code))
        or any(_WORDS.search(text) is not None for text in _texts(code))
    )


def _imaging_order(order: _Order) -> ImagingOrder:
    code = (order.code,) if order.code is not None else ()
    texts = tuple(_texts(code))
    return ImagingOrder(
        reference=_reference("ServiceRequest", order.id),
        title=next(iter(texts), "imaging"),
        modality=modality_of((*_codes(code), *_codes(order.category)), texts),
        regions=regions_of((*_codes(order.body_site), *_codes(code)), (*texts, *_texts(order.body_site))),
        priority=_priority(order.priority),
    )


def _priority(code: str | None) -> Priority:
    """Spec: FHIR R4 ServiceRequest.priority: where it is absent, the order is routine."""
    return next((priority for priority in Priority if priority.value == code), Priority.ROUTINE)


def _is_imaging_appointment(appointment: _Appointment) -> bool:
    concepts = _concepts(appointment)
    return any(pair in _CATEGORIES for pair in _codes(concepts)) or any(
        _WORDS.search(text) is not None for text in _texts(concepts)
    )


def _booked(appointment: _Appointment) -> ImagingOrder:
    concepts = _concepts(appointment)
    texts = tuple(_texts(concepts))
    return ImagingOrder(
        reference=_reference("Appointment", appointment.id),
        title=next(iter(_texts(appointment.service_type)), "imaging"),
        modality=modality_of(_codes(concepts), texts),
        regions=regions_of(_codes(concepts), texts),
    )


def _concepts(appointment: _Appointment) -> tuple[_Concept, ...]:
    category = appointment.service_category
    categories = (category,) if isinstance(category, _Concept) else category
    return (*appointment.service_type, *categories, *appointment.specialty)


def _reference(resource_type: str, id_: str | None) -> str | None:
    return f"{resource_type}/{id_}" if id_ is not None and is_fhir_id(id_) else None


def _codes(concepts: Iterable[_Concept]) -> tuple[tuple[str | None, str | None], ...]:
    return tuple((coding.system, coding.code) for concept in concepts for coding in concept.coding)


def _texts(concepts: Iterable[_Concept]) -> Iterator[str]:
    for concept in concepts:
        yield from (text for text in (concept.text, *(c.display for c in concept.coding)) if text)
