"""Which of the patient's studies a call is about, and where their images are."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from rayhook.cds_hooks.models import JSONObject
from rayhook.cds_hooks.prefetch import Fetcher, Prefetched
from rayhook.cds_hooks.trust import check_subject
from rayhook.fhir.errors import InvalidRequest, RayhookError
from rayhook.fhir.r4 import EndpointSummary, ImagingStudySummary, read_endpoint, read_imaging_study
from rayhook.fhir.references import parse_reference

MAX_STUDIES = 3
WADO_RS = "dicom-wado-rs"

# Spec: FHIR R4 ImagingStudy.status: nothing to analyse yet, or not any more.
_WITHOUT_IMAGES = frozenset({"cancelled", "entered-in-error", "registered"})


def newest_studies(
    resources: Iterable[JSONObject], *, patient_id: str, base_url: str
) -> tuple[tuple[ImagingStudySummary, ...], bool]:
    """Return the newest studies that have images, and whether every study could be read.

    Raises IdentityConflict if any study, chosen or not, is another patient's.
    """
    studies: dict[str, ImagingStudySummary] = {}
    complete = True
    for resource in resources:
        _check_owner(resource, patient_id, base_url)
        study = _study(resource)
        if study is None:
            complete = False
        elif study.status not in _WITHOUT_IMAGES:
            studies[study.id] = study
    return tuple(sorted(studies.values(), key=_started, reverse=True)[:MAX_STUDIES]), complete


def _check_owner(resource: JSONObject, patient_id: str, base_url: str) -> None:
    subject = resource.get("subject")
    reference = subject.get("reference") if isinstance(subject, dict) else None
    check_subject(reference, patient_id=patient_id, base_url=base_url, path="ImagingStudy.subject")


def _study(resource: JSONObject) -> ImagingStudySummary | None:
    try:
        return read_imaging_study(resource)
    except InvalidRequest:
        return None


def image_sources(
    studies: Sequence[ImagingStudySummary], prefetched: Prefetched, fetcher: Fetcher | None, *, base_url: str
) -> dict[str, EndpointSummary | None]:
    """Return by study id the WADO-RS endpoint that has its images, None where none is known.

    Endpoints that did not come with the studies are read from the FHIR server.
    """
    known = {str(resource.get("id")): resource for resource in prefetched.endpoints}
    wanted = {study.id: _endpoint_ids(study, base_url) for study in studies if not _contained(study)}
    absent = {id_ for ids in wanted.values() for id_ in ids} - known.keys()
    if fetcher is not None and absent:
        read = fetcher.fetch({id_: f"Endpoint/{id_}" for id_ in sorted(absent)})
        known |= {id_: resource for id_, resource in read.items() if not isinstance(resource, RayhookError)}
    return {study.id: _contained(study) or _first(wanted[study.id], known) for study in studies}


def _contained(study: ImagingStudySummary) -> EndpointSummary | None:
    return next(filter(_serves_images, study.contained_endpoints), None)


def _first(ids: Iterable[str], known: Mapping[str, JSONObject]) -> EndpointSummary | None:
    endpoints = (_readable(known[id_]) for id_ in ids if id_ in known)
    return next((endpoint for endpoint in endpoints if endpoint and _serves_images(endpoint)), None)


def _readable(resource: JSONObject) -> EndpointSummary | None:
    try:
        return read_endpoint(resource)
    except InvalidRequest:
        return None


def _serves_images(endpoint: EndpointSummary) -> bool:
    return endpoint.active and endpoint.connection_type == WADO_RS


def _endpoint_ids(study: ImagingStudySummary, base_url: str) -> tuple[str, ...]:
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


def _started(study: ImagingStudySummary) -> datetime:
    """Return an instant to sort by; a study of unknown time is the oldest.

    Spec: FHIR R4 dateTime: a year, month or day alone is one too
    """
    text = study.started or ""
    padded = text + "0001-01-01"[len(text) :] if len(text) in {4, 7} else text
    try:
        instant = datetime.fromisoformat(padded)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
