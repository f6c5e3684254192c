"""FHIR R4 resources: models to build with, a check of what leaves, and readers for what comes in.

The models are those of `fhir.resources.R4B` (there is no R4 in that library; for the resources used here the
elements are the same). Importing them takes half a second, so that happens at first use; the readers, which
the answer to a hook waits for, work on plain JSON.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from rayhook.fhir.codes import REQUIRES_ACCESS_TOKEN_EXTENSION, EndpointStatus
from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.references import is_fhir_id, reference_to, study_uid_from_identifiers

if TYPE_CHECKING:
    from fhir.resources.R4B.auditevent import AuditEvent
    from fhir.resources.R4B.bundle import Bundle
    from fhir.resources.R4B.device import Device
    from fhir.resources.R4B.diagnosticreport import DiagnosticReport
    from fhir.resources.R4B.endpoint import Endpoint
    from fhir.resources.R4B.imagingstudy import ImagingStudy
    from fhir.resources.R4B.observation import Observation
    from fhir.resources.R4B.operationoutcome import OperationOutcome
    from fhir.resources.R4B.patient import Patient
    from fhir.resources.R4B.provenance import Provenance

__all__ = [
    "AuditEvent",
    "Bundle",
    "Device",
    "DiagnosticReport",
    "Endpoint",
    "EndpointSummary",
    "ImagingStudy",
    "ImagingStudySummary",
    "Observation",
    "OperationOutcome",
    "Patient",
    "Provenance",
    "bundle_resources",
    "decimal",
    "decode_json",
    "encode_json",
    "operation_outcome_in",
    "read_endpoint",
    "read_imaging_study",
    "validate",
]

_Struct = TypeVar("_Struct", bound=msgspec.Struct)
_encoder = msgspec.json.Encoder(decimal_format="number")


def __getattr__(name: str) -> Any:
    """Import a model when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fhir.resources.R4B import get_fhir_model_class

    return get_fhir_model_class(name)


def validate(resource: Mapping[str, Any]) -> None:
    """Raise InvalidRequest, which names the element, unless `resource` is valid R4 as far as is checked here.

    Checked: structure, cardinality, one value of a choice, primitive types, required bindings, the types that
    references may point to, references inside a Bundle, invariants att-1, ext-1, obs-6, obs-7 and qty-3, base64,
    and noise in decimals.
    """
    from rayhook.fhir.validation import check

    check(resource)


def decimal(value: float, *, places: int = 4) -> Decimal:
    """Return `value` with exactly `places` decimals: 0.9300, for in FHIR their number says how precise it is.

    Spec: FHIR R4 datatypes.html#decimal
    """
    if not math.isfinite(value):
        raise InvalidRequest("a decimal has to be finite")
    return Decimal(f"{float(value):.{places}f}")


def encode_json(resource: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> bytes:
    """Return a resource, or several, as it goes over the wire; a `Decimal` keeps its trailing zeros.

    Spec: FHIR R4, 2.6.2.1 "JSON representation of primitive elements"
    """
    return _encoder.encode(resource)


def decode_json(text: bytes) -> Any:
    """Return what `encode_json` wrote, its decimals with their trailing zeros."""
    return json.loads(text, parse_float=Decimal)


@dataclass(frozen=True, slots=True)
class EndpointSummary:
    """Where images can be had. `connection_type` and `payload` are bare codes.

    Spec: FHIR R4 Endpoint; HL7 SMART Imaging Access
    """

    address: str
    connection_type: str
    payload: tuple[str, ...]
    active: bool
    requires_access_token: bool
    id: str | None = None


@dataclass(frozen=True, slots=True)
class ImagingStudySummary:
    """What Rayhook needs of an ImagingStudy.

    `patient_id` is None unless the subject is a Patient. `endpoint_references` are those of the study and then of
    its series, as written, `#contained` ones left out, whose endpoints are in `contained_endpoints`.
    `source_version` changes when the study does. `based_on` is a ServiceRequest, as `Type/id`.
    """

    id: str
    patient_id: str | None
    study_instance_uid: str | None
    started: str | None
    status: str
    modalities: tuple[str, ...]
    description: str | None
    endpoint_references: tuple[str, ...]
    contained_endpoints: tuple[EndpointSummary, ...]
    number_of_instances: int | None
    source_version: str
    body_sites: tuple[str, ...]
    based_on: str | None


class _Coding(msgspec.Struct):
    code: str | None = None
    display: str | None = None


class _Concept(msgspec.Struct):
    coding: list[_Coding] = []


class _Extension(msgspec.Struct, rename="camel"):
    url: str
    value_boolean: bool | None = None


class _Endpoint(msgspec.Struct, rename="camel"):
    status: str
    connection_type: _Coding
    address: str
    id: str | None = None
    payload_type: list[_Concept] = []
    extension: list[_Extension] = []


class _Reference(msgspec.Struct):
    reference: str | None = None


class _Meta(msgspec.Struct, rename="camel"):
    version_id: str | None = None
    last_updated: str | None = None


class _Series(msgspec.Struct, rename="camel"):
    modality: _Coding | None = None
    number_of_instances: int | None = None
    body_site: _Coding | None = None
    endpoint: list[_Reference] = []


class _ImagingStudy(msgspec.Struct, rename="camel"):
    id: str
    status: str
    subject: _Reference
    meta: _Meta = msgspec.field(default_factory=_Meta)
    identifier: list[dict[str, Any]] = []
    modality: list[_Coding] = []
    started: str | None = None
    based_on: list[_Reference] = []
    endpoint: list[_Reference] = []
    number_of_instances: int | None = None
    description: str | None = None
    series: list[_Series] = []
    contained: list[dict[str, Any]] = []


def read_imaging_study(json: Mapping[str, Any], *, base_url: str | None = None) -> ImagingStudySummary:
    """Read an ImagingStudy of the server at `base_url`; given that, a subject elsewhere is no patient of ours.

    Raises InvalidRequest where it is not an ImagingStudy, or its identifiers do not name one study.
    """
    study = _convert(json, _ImagingStudy, "ImagingStudy")
    if not is_fhir_id(study.id):
        raise InvalidRequest("ImagingStudy.id is not a FHIR id", expression="ImagingStudy.id")
    references = [study.endpoint, *(series.endpoint for series in study.series)]
    sites = [series.body_site for series in study.series if series.body_site is not None]
    return ImagingStudySummary(
        id=study.id,
        patient_id=_patient_id(study.subject, base_url),
        study_instance_uid=study_uid_from_identifiers(study.identifier),
        started=study.started,
        status=study.status,
        modalities=_unique(m.code for m in [*study.modality, *(s.modality for s in study.series)] if m),
        description=study.description,
        endpoint_references=_unique(
            r.reference for group in references for r in group if not (r.reference or "#").startswith("#")
        ),
        contained_endpoints=tuple(
            read_endpoint(resource)
            for resource in study.contained
            if resource.get("resourceType") == "Endpoint"
        ),
        number_of_instances=_instances(study),
        source_version=study.meta.version_id or study.meta.last_updated or str(_instances(study) or ""),
        body_sites=_unique(site.display or site.code for site in sites),
        based_on=_service_request(study.based_on),
    )


def read_endpoint(json: Mapping[str, Any]) -> EndpointSummary:
    """Read an Endpoint; raises InvalidRequest where it is not one."""
    endpoint = _convert(json, _Endpoint, "Endpoint")
    return EndpointSummary(
        address=endpoint.address.rstrip("/"),
        connection_type=endpoint.connection_type.code or "",
        payload=_unique(coding.code for concept in endpoint.payload_type for coding in concept.coding),
        active=endpoint.status == EndpointStatus.ACTIVE,
        requires_access_token=any(
            extension.url == REQUIRES_ACCESS_TOKEN_EXTENSION and extension.value_boolean is True
            for extension in endpoint.extension
        ),
        id=endpoint.id,
    )


def bundle_resources(json: Mapping[str, Any], type: str | None = None) -> list[dict[str, Any]]:  # noqa: A002 - FHIR's word
    """Return the resources in a Bundle, or the one resource given, of `type` where one is asked for."""
    if json.get("resourceType") != "Bundle":
        found = [dict(json)]
    else:
        entries = json.get("entry") or []
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise InvalidRequest("Bundle.entry has to be a list of objects", expression="Bundle.entry")
        found = [entry["resource"] for entry in entries if isinstance(entry.get("resource"), dict)]
    return [resource for resource in found if type is None or resource.get("resourceType") == type]


def operation_outcome_in(json: Mapping[str, Any]) -> bool:
    """Say whether `json` tells of a failure: an OperationOutcome, or a Bundle with one of an error in it.

    Spec: CDS Hooks 2.0.1, "Prefetch": a client may send the OperationOutcome of a failed query
    """
    if json.get("resourceType") == "OperationOutcome":
        return True
    return any(map(_is_failure, bundle_resources(json, "OperationOutcome")))


def _is_failure(outcome: Mapping[str, Any]) -> bool:
    issues = outcome.get("issue")
    found = [issue for issue in issues if isinstance(issue, Mapping)] if isinstance(issues, list) else []
    return any(issue.get("severity") in ("error", "fatal") for issue in found)


def _convert(json: Mapping[str, Any], struct: type[_Struct], resource_type: str) -> _Struct:
    """Msgspec's messages name the type and the path, never the value."""
    if json.get("resourceType") != resource_type:
        raise InvalidRequest(f"the resource has to be of type {resource_type}", expression="resourceType")
    try:
        return msgspec.convert(json, struct)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{resource_type}: {error}", expression=resource_type) from error


def _patient_id(subject: _Reference, base_url: str | None) -> str | None:
    reference = reference_to({"reference": subject.reference}, "Patient")
    if reference is None or (base_url is not None and not reference.is_at(base_url)):
        return None
    return reference.id


def _service_request(references: Iterable[_Reference]) -> str | None:
    found = (reference_to({"reference": item.reference}, "ServiceRequest") for item in references)
    return next((f"{reference.type}/{reference.id}" for reference in found if reference is not None), None)


def _instances(study: _ImagingStudy) -> int | None:
    if study.number_of_instances is not None:
        return study.number_of_instances
    counts = [series.number_of_instances for series in study.series]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _unique(values: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value))
