"""Which of a study's Endpoints its images are fetched from.

Spec: FHIR R4 Endpoint; IHE RAD IMR, Endpoint for WADO-RS
"""

from collections.abc import Iterable, Mapping
from typing import Any

from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.r4 import EndpointSummary, ImagingStudySummary, read_endpoint
from rayhook.fhir.references import parse_reference

_WADO_RS = "dicom-wado-rs"


def image_endpoint(endpoints: Iterable[EndpointSummary]) -> EndpointSummary | None:
    """Return the first that is active and serves WADO-RS."""
    return next((e for e in endpoints if e.active and e.connection_type == _WADO_RS), None)


def readable_endpoints(resources: Iterable[Mapping[str, Any]]) -> Iterable[EndpointSummary]:
    """Yield what can be read as an Endpoint, in the same order."""
    for resource in resources:
        try:
            yield read_endpoint(resource)
        except InvalidRequest:
            continue


def endpoint_ids(study: ImagingStudySummary, base_url: str) -> tuple[str, ...]:
    """Return the ids of Endpoints on the EHR's own server; others are not followed."""
    ids = []
    for text in study.endpoint_references:
        try:
            reference = parse_reference(text)
        except InvalidRequest:
            continue
        if reference.type == "Endpoint" and reference.is_at(base_url):
            ids.append(reference.id)
    return tuple(ids)
