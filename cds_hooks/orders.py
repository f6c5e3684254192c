"""Which draft orders are imaging orders, and whose they are."""

import re
from collections.abc import Iterator

from msgspec import Struct

from rayhook.cds_hooks.models import JSONObject, read
from rayhook.cds_hooks.trust import check_subject
from rayhook.fhir.errors import InvalidRequest

_SNOMED = "http://snomed.info/sct"
_DIAGNOSTIC_SERVICE = "http://terminology.hl7.org/CodeSystem/v2-0074"
_PATH = "context.draftOrders"
_DICOM = "http://dicom.nema.org/resources/ontology/DCM"

# Spec: FHIR R4 ServiceRequest.category (SNOMED CT 363679005 "Imaging"); HL7 v2 table 0074
_CATEGORIES = frozenset({(_SNOMED, "363679005")}) | frozenset(
    (_DIAGNOSTIC_SERVICE, code)
    for code in ("CT", "CUS", "IMG", "NMR", "NMS", "OUS", "RAD", "RUS", "RX", "VUS", "XRC")
)
# Many EHRs send local codes without a category: then only their words tell.
_WORDS = re.compile(
    r"\b(MRI?|CT|CTA|MRA|PET|SPECT|X-?ray|radiograph\w*|ultraso\w+|sonogra\w+|tomogra\w+|mammogra\w+|"
    r"magnetic resonance|imaging|fluoroscop\w+)\b",
    re.IGNORECASE,
)


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

    subject: _Reference | None = None
    category: tuple[_Concept, ...] = ()
    code: _Concept | None = None
    do_not_perform: bool = False


class _Entry(Struct, frozen=True):
    resource: JSONObject


class _Bundle(Struct, frozen=True, rename="camel"):
    resource_type: str
    entry: tuple[_Entry, ...] = ()


def concerns_imaging(draft_orders: JSONObject, *, patient_id: str, base_url: str) -> bool:
    """Say whether any ServiceRequest of `draft_orders` asks for imaging.

    Raises InvalidRequest unless `draft_orders` is a Bundle, IdentityConflict if an order is for another patient.
    """
    orders = list(_orders(draft_orders))
    for order in orders:
        _check_patient(order, patient_id, base_url)
    return any(_is_imaging(order) for order in orders)


def _orders(draft_orders: JSONObject) -> Iterator[_Order]:
    bundle = read(draft_orders, _Bundle, under=_PATH)
    if bundle.resource_type != "Bundle":
        raise InvalidRequest(f"{_PATH} must be a Bundle", expression=_PATH)
    for entry in bundle.entry:
        if entry.resource.get("resourceType") == "ServiceRequest":
            yield read(entry.resource, _Order, under=f"{_PATH}.entry.resource")


def _check_patient(order: _Order, patient_id: str, base_url: str) -> None:
    """A draft may lack its subject until it is signed: then the context says whose it is."""
    if order.subject is not None:
        path = f"{_PATH}.entry.resource.subject"
        check_subject(order.subject.reference, patient_id=patient_id, base_url=base_url, path=path)


def _is_imaging(order: _Order) -> bool:
    if order.do_not_perform:
        return False
    if any((c.system, c.code) in _CATEGORIES for concept in order.category for c in concept.coding):
        return True
    code = order.code or _Concept()
    texts = (code.text, *(coding.display for coding in code.coding))
    return any(coding.system == _DICOM for coding in code.coding) or any(
        _WORDS.search(text) is not None for text in texts if text
    )
