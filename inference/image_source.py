"""A study as its EHR tells it, made into what an analysis is to be told: the same by whichever way it was heard of."""

from dataclasses import dataclass, replace
from typing import Final

from rayhook.auth.registry import EHR
from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.r4 import EndpointSummary, ImagingStudySummary
from rayhook.fhir.transport import origin_of
from rayhook.inference.study import StudyReference

# Spec: FHIR R4 ImagingStudy.status: nothing to analyse yet, or not any more.
WITHOUT_IMAGES: Final = frozenset({"cancelled", "entered-in-error", "registered"})


@dataclass(frozen=True, slots=True)
class LateEndpoints:
    """Endpoints that were not read, or that the FHIR server did not give in time: the analysis reads them itself."""

    ids: tuple[str, ...]


ImageSource = EndpointSummary | LateEndpoints | None


def study_reference(
    study: ImagingStudySummary, *, ehr_id: str, base_url: str, patient_id: str
) -> StudyReference | None:
    """Return what names the study's analysis, without the place of its images; None without a Study Instance UID.

    All that a job's key is made of is in it.
    """
    if study.study_instance_uid is None:
        return None
    return StudyReference(
        ehr_id=ehr_id,
        fhir_base_url=base_url,
        patient_id=patient_id,
        imaging_study_id=study.id,
        study_instance_uid=study.study_instance_uid,
        dicomweb_url="",
        token_required=False,
        source_version=study.source_version,
        started=study.started,
        modalities=study.modalities,
        description=study.description,
        service_request=study.based_on,
        number_of_instances=study.number_of_instances,
    )


def located(reference: StudyReference, source: EndpointSummary | LateEndpoints) -> StudyReference:
    if isinstance(source, LateEndpoints):
        return replace(reference, endpoint_ids=source.ids)
    return replace(reference, dicomweb_url=source.address, token_required=source.requires_access_token)


def is_registered(address: str, ehr: EHR) -> bool:
    """Return whether images may be fetched from that address."""
    try:
        return origin_of(address) in ehr.image_origins
    except InvalidRequest:
        return False
