"""What the EHR is told of a result's DICOM objects: one DocumentReference an object, once the PACS has it.

Spec: FHIR R4 DocumentReference; DICOM PS3.18 10.4 (Retrieve), IHE RAD IMR (links to evidence)
"""

from collections.abc import Iterable, Sequence
from typing import Any

from rayhook.auth.registry import EHR
from rayhook.auth.scopes import ScopeSet
from rayhook.fhir import codes
from rayhook.fhir.client import FHIRClient
from rayhook.fhir.codes import DocumentReferenceStatus
from rayhook.fhir.r4 import validate
from rayhook.fhir.references import DICOM_UID_SYSTEM, oid_uri, parse_reference
from rayhook.fhir.transport import Transport
from rayhook.inference.dicom_table import ObjectNames
from rayhook.inference.dicom_uid import ObjectKind
from rayhook.inference.job_table import Authorization
from rayhook.inference.report import transaction
from rayhook.inference.report_key import result_key
from rayhook.inference.report_observation import Subject, tag_of
from rayhook.inference.report_text import narrative
from rayhook.inference.statement import cautions
from rayhook.inference.study import StudyReference, StudyResult

DEADLINE_S = 10.0

_URI = "urn:ietf:rfc:3986"
_TITLES = {
    ObjectKind.PARAMETRIC_MAP: "AI heatmap, DICOM Parametric Map",
    ObjectKind.SECONDARY_CAPTURE: "AI key image with heatmap, DICOM Secondary Capture",
    ObjectKind.SR: "AI report, DICOM Structured Report",
    ObjectKind.VERIFIED_SR: "AI report signed by a radiologist, DICOM Structured Report",
}
LINKED = frozenset(_TITLES)
"""The kinds that the EHR is told of: of a note that takes them back it knows by the report's own status."""
_RELATED = ("DiagnosticReport", "Observation")


def build_links(
    reference: StudyReference,
    result: StudyResult,
    objects: Iterable[tuple[str, ObjectNames]],
    *,
    written: Sequence[str] = (),
    organization: str,
    is_withdrawn: bool = False,
) -> list[dict[str, Any]]:
    """Return a DocumentReference for each object (kind, names).

    written: the EHR's own references to the result's resources, as far as they are known.
    is_withdrawn: a radiologist took the report back.
    Raises InvalidRequest if one were not valid R4.
    """
    subject = Subject(reference, result)
    related = [f"ImagingStudy/{reference.imaging_study_id}"]
    related += [one for one in written if parse_reference(one).type in _RELATED]
    status = DocumentReferenceStatus.ENTERED_IN_ERROR if is_withdrawn else DocumentReferenceStatus.CURRENT
    links = [
        _link(subject, ObjectKind(kind), names, related, organization=organization, status=status)
        for kind, names in objects
    ]
    for link in links:
        validate(link)
    return links


def may_link(scopes: ScopeSet) -> bool:
    """Return whether the EHR lets DocumentReferences be created."""
    return scopes.permits(None, "DocumentReference", "c")


def write_links(
    transport: Transport,
    ehr: EHR,
    reference: StudyReference,
    authorization: Authorization | None,
    links: Sequence[dict[str, Any]],
) -> None:
    """Write the links as a transaction of conditional creates. Raises as FHIRClient.transaction does."""
    client = FHIRClient(
        transport,
        reference.fhir_base_url,
        allowed_origins=ehr.fhir_origins,
        access_token=None if authorization is None else authorization.access_token,
    )
    client.transaction(transaction(links), deadline_s=DEADLINE_S)


def _link(
    subject: Subject,
    kind: ObjectKind,
    names: ObjectNames,
    related: Sequence[str],
    *,
    organization: str,
    status: DocumentReferenceStatus,
) -> dict[str, Any]:
    is_signed = kind is ObjectKind.VERIFIED_SR
    # A signed report comes in versions, each an object of its own.
    part = f"{kind.value}.{names.sop_instance_uid}" if is_signed else kind.value
    key = result_key(subject.reference, subject.result, part)
    title = _TITLES[kind]
    return {
        "resourceType": "DocumentReference",
        "id": key.id,
        "meta": {"security": [codes.AI_ASSERTED.json()], "tag": [tag_of(key)]},
        "text": narrative(f"{title}.", *cautions(subject.result.model)),
        "masterIdentifier": {"system": DICOM_UID_SYSTEM, "value": oid_uri(names.sop_instance_uid)},
        "identifier": [key.identifier],
        "status": status.value,
        "docStatus": "final" if is_signed else "preliminary",
        "type": codes.DIAGNOSTIC_IMAGING_STUDY.concept(title),
        "category": [codes.RADIOLOGY.concept()],
        "subject": {"reference": f"Patient/{subject.reference.patient_id}"},
        "date": subject.issued,
        "author": [{"type": "Organization", "display": organization}],
        "description": title,
        "content": [
            {
                "attachment": {"contentType": "application/dicom", "url": names.wado_url, "title": title},
                "format": {"system": _URI, "code": oid_uri(names.sop_class_uid)},
            }
        ],
        "context": {"related": [{"reference": one} for one in related]},
    }
