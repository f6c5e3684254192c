"""Which of the patient's studies a call is about, and where their images are."""

from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from rayhook.cds_hooks.models import JSONObject
from rayhook.cds_hooks.prefetch import Fetcher, Prefetched
from rayhook.cds_hooks.trust import check_subject
from rayhook.fhir.errors import InvalidRequest, RayhookError
from rayhook.fhir.r4 import ImagingStudySummary, read_imaging_study
from rayhook.inference.endpoint import endpoint_ids, image_endpoint, readable_endpoints
from rayhook.inference.image_source import WITHOUT_IMAGES, ImageSource, LateEndpoints, study_reference
from rayhook.inference.study import StudyReference
from rayhook.inference.withdrawal import WITHDRAWN

MAX_STUDIES = 3


def studies_with_images(
    resources: Iterable[JSONObject], *, patient_id: str, base_url: str
) -> tuple[tuple[ImagingStudySummary, ...], bool]:
    """Return the studies that have images, the newest first, and whether every study could be read.

    Raises IdentityConflict if any study, with images or without, is another patient's.
    """
    studies: dict[str, ImagingStudySummary] = {}
    complete = True
    for resource in resources:
        _check_owner(resource, patient_id, base_url)
        study = _study(resource)
        if study is None:
            complete = False
        elif study.status not in WITHOUT_IMAGES:
            studies[study.id] = study
    return tuple(sorted(studies.values(), key=_age, reverse=True)), complete


def withdrawn_studies(
    resources: Iterable[JSONObject], *, ehr_id: str, patient_id: str, base_url: str
) -> tuple[StudyReference, ...]:
    """Return those that the EHR takes back, of a patient whom studies_with_images has checked."""
    read = (_study(resource) for resource in resources)
    named = (
        study_reference(study, ehr_id=ehr_id, base_url=base_url, patient_id=patient_id)
        for study in read
        if study is not None and study.status in WITHDRAWN
    )
    return tuple(reference for reference in named if reference is not None)


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
) -> dict[str, ImageSource]:
    """Return by study id the WADO-RS endpoint that has its images, None where none is known.

    Endpoints that did not come with the studies are read from the FHIR server.
    """
    known = {str(resource.get("id")): resource for resource in prefetched.endpoints}
    wanted = {
        study.id: endpoint_ids(study, base_url)
        for study in studies
        if image_endpoint(study.contained_endpoints) is None
    }
    absent = {id_ for ids in wanted.values() for id_ in ids} - known.keys()
    late: set[str] = set()
    if fetcher is not None and absent:
        read = fetcher.fetch({id_: f"Endpoint/{id_}" for id_ in sorted(absent)})
        known |= {id_: resource for id_, resource in read.items() if not isinstance(resource, RayhookError)}
        late = {id_ for id_, error in read.items() if isinstance(error, RayhookError) and error.retryable}
    return {study.id: _source(study, wanted.get(study.id, ()), known, late) for study in studies}


def known_sources(
    studies: Sequence[ImagingStudySummary], prefetched: Prefetched, *, base_url: str
) -> dict[str, ImageSource]:
    """Return by study id where its images are, nothing being read for it: the analysis does that later."""
    known = image_sources(studies, prefetched, None, base_url=base_url)
    named = {study.id: endpoint_ids(study, base_url) for study in studies}
    return {
        id_: source or (LateEndpoints(named[id_]) if named[id_] else None) for id_, source in known.items()
    }


def _source(
    study: ImagingStudySummary, ids: Sequence[str], known: Mapping[str, JSONObject], late: Container[str]
) -> ImageSource:
    read = readable_endpoints(known[id_] for id_ in ids if id_ in known)
    found = image_endpoint(study.contained_endpoints) or image_endpoint(read)
    missed = tuple(id_ for id_ in ids if id_ in late)
    return found or (LateEndpoints(missed) if missed else None)


def started_at(study: ImagingStudySummary) -> datetime | None:
    """Return when the study was begun; the first instant of a year, month or day alone, None where unknown.

    Spec: FHIR R4 dateTime
    """
    text = study.started or ""
    padded = text + "0001-01-01"[len(text) :] if len(text) in {4, 7} else text
    try:
        instant = datetime.fromisoformat(padded)
    except ValueError:
        return None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _age(study: ImagingStudySummary) -> datetime:
    return started_at(study) or datetime.min.replace(tzinfo=UTC)
