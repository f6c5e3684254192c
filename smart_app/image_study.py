"""Which of the launched patient's studies a handle names, and where its images are.

A handle is made of a study's UID under our own key: it can be looked up among the patient's studies, and
nowhere else, and tells nothing to who finds it in a log.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from rayhook.auth.keys import Keyring
from rayhook.fhir.client import FHIRClient
from rayhook.fhir.errors import NotFound, RayhookError
from rayhook.fhir.r4 import ImagingStudySummary
from rayhook.fhir.transport import Transport
from rayhook.inference.endpoint import endpoint_ids, image_endpoint, readable_endpoints
from rayhook.inference.image_source import located, study_reference
from rayhook.inference.study import StudyReference
from rayhook.smart_app.access import Viewer

_READ_DEADLINE_S = 5.0
_HANDLE_DIGITS = 32


def study_handle(keyring: Keyring, study_instance_uid: str) -> str:
    return _handle(keyring, study_instance_uid, "smart_app.study")


def series_handle(keyring: Keyring, series_instance_uid: str) -> str:
    return _handle(keyring, series_instance_uid, "smart_app.series")


def image_handle(keyring: Keyring, sop_instance_uid: str) -> str:
    return _handle(keyring, sop_instance_uid, "smart_app.image")


def _handle(keyring: Keyring, uid: str, purpose: str) -> str:
    return keyring.blind_index(uid, purpose=purpose)[:_HANDLE_DIGITS]


def find_study(
    keyring: Keyring,
    handle: str,
    *,
    analysed: Iterable[StudyReference],
    listed: Callable[[], Iterable[ImagingStudySummary]],
    viewer: Viewer,
) -> StudyReference:
    """Return the patient's study, of those that were analysed or else of the EHR's list.

    Raises NotFound for another patient's as for one that does not exist.
    """
    for reference in analysed:
        if study_handle(keyring, reference.study_instance_uid) == handle:
            return reference
    for study in listed():
        if study.study_instance_uid and study_handle(keyring, study.study_instance_uid) == handle:
            return reference_of(study, viewer)
    raise NotFound("this patient has no such study", code="study_not_found")


def reference_of(study: ImagingStudySummary, viewer: Viewer) -> StudyReference:
    """Return what an analysis has to know of a study that has a UID."""
    base_url = viewer.session.fhir_base_url
    reference = study_reference(study, ehr_id=viewer.ehr.id, base_url=base_url, patient_id=viewer.patient_id)
    assert reference is not None
    contained = image_endpoint(study.contained_endpoints)
    reference = replace(reference, endpoint_ids=endpoint_ids(study, base_url))
    return reference if contained is None else located(reference, contained)


def locate_images(transport: Transport, reference: StudyReference, viewer: Viewer) -> StudyReference:
    """Return the reference with the address of its images, read from the EHR where it is not known.

    Raises NotFound where no Endpoint serves WADO-RS, and what FHIRClient raises.
    """
    if reference.dicomweb_url:
        return reference
    client = FHIRClient(
        transport, reference.fhir_base_url, viewer.ehr.fhir_origins, viewer.session.access_token
    )
    endpoint = image_endpoint(readable_endpoints(_endpoints(client, reference.endpoint_ids)))
    if endpoint is None:
        raise NotFound("no Endpoint of the study serves WADO-RS", code="no_dicomweb_endpoint")
    return replace(reference, dicomweb_url=endpoint.address, token_required=endpoint.requires_access_token)


def _endpoints(client: FHIRClient, ids: Iterable[str]) -> list[dict[str, object]]:
    found, failure = [], None
    for id_ in ids:
        try:
            found.append(client.read("Endpoint", id_, deadline_s=_READ_DEADLINE_S))
        except RayhookError as error:
            failure = error
    if not found and failure is not None:
        raise failure
    return found
