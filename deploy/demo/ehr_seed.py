"""The demo catalogue told as an EHR's FHIR resources."""

import hashlib
from collections.abc import Iterator
from typing import Any

from rayhook.deploy.demo.catalogue import Catalogue, DemoStudy

Resource = dict[str, Any]

ENDPOINT_ID = "demo-pacs"
PRACTITIONER_ID = "demo-clinician"
PRACTITIONER_NAME = "Demo Clinician"
RADIOLOGIST_ID = "demo-radiologist"
USERS = {PRACTITIONER_ID: PRACTITIONER_NAME, RADIOLOGIST_ID: "Demo Radiologist"}
MRN_SYSTEM = "urn:rayhook:demo:mrn"

_SNOMED_BODY_SITES = {
    "BRAIN": ("12738006", "Brain structure"),
    "CHEST": ("51185008", "Thoracic structure"),
    "HEAD": ("69536005", "Head structure"),
}


def seed_resources(catalogue: Catalogue, *, dicomweb_url: str) -> Iterator[Resource]:
    """Yield what the EHR knows before Rayhook is asked: people, orders, studies and where images are."""
    yield from map(_practitioner, USERS)
    yield _endpoint(dicomweb_url)
    known: set[str] = set()
    for study in catalogue.studies:
        if study.patient_id not in known:
            known.add(study.patient_id)
            yield _patient(study)
        yield from study_resources(study)


def study_resources(study: DemoStudy) -> Iterator[Resource]:
    yield _order(study)
    yield _imaging_study(study)


def imaging_study_id(study: DemoStudy) -> str:
    return f"study-{_short(study)}"


def order_id(study: DemoStudy) -> str:
    return f"order-{_short(study)}"


def _short(study: DemoStudy) -> str:
    return hashlib.sha256(study.study_instance_uid.encode()).hexdigest()[:16]


def _practitioner(user_id: str) -> Resource:
    given, family = USERS[user_id].split()
    return {
        "resourceType": "Practitioner",
        "id": user_id,
        "active": True,
        "name": [{"text": USERS[user_id], "family": family, "given": [given]}],
    }


def _endpoint(address: str) -> Resource:
    """Spec: SMART App Launch 2.2, StructureDefinition requires-access-token; FHIR R4 Endpoint."""
    return {
        "resourceType": "Endpoint",
        "id": ENDPOINT_ID,
        "extension": [
            {
                "url": "http://hl7.org/fhir/smart-app-launch/StructureDefinition/requires-access-token",
                "valueBoolean": True,
            }
        ],
        "status": "active",
        "connectionType": {
            "system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type",
            "code": "dicom-wado-rs",
            "display": "DICOM WADO-RS",
        },
        "name": "Demo PACS",
        "payloadType": [
            {
                "coding": [
                    {
                        "system": "http://dicom.nema.org/resources/ontology/DCM",
                        "code": "113014",
                        "display": "Study",
                    }
                ]
            }
        ],
        "payloadMimeType": ["application/dicom"],
        "address": address,
    }


_RECORD_NUMBER: Resource = {
    "coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "MR"}]
}


def _patient(study: DemoStudy) -> Resource:
    return {
        "resourceType": "Patient",
        "id": study.patient_id,
        "identifier": [{"type": _RECORD_NUMBER, "system": MRN_SYSTEM, "value": study.dicom_patient_id}],
        "active": True,
        "name": [{"text": study.patient_display}],
        "gender": "unknown",
    }


def _order(study: DemoStudy) -> Resource:
    return {
        "resourceType": "ServiceRequest",
        "id": order_id(study),
        "status": "active",
        "intent": "order",
        "category": [
            {
                "coding": [
                    {"system": "http://snomed.info/sct", "code": "363679005", "display": "Imaging"},
                ]
            }
        ],
        "code": {"text": study.description},
        "subject": {"reference": f"Patient/{study.patient_id}"},
        "authoredOn": study.started,
        "requester": {"reference": f"Practitioner/{PRACTITIONER_ID}", "display": PRACTITIONER_NAME},
    }


def _imaging_study(study: DemoStudy) -> Resource:
    """Spec: FHIR R4 ImagingStudy; identifier as urn:dicom:uid with an urn:oid value."""
    modality = {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": study.modality}
    return {
        "resourceType": "ImagingStudy",
        "id": imaging_study_id(study),
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{study.study_instance_uid}"}],
        "status": "available",
        "modality": [modality],
        "subject": {"reference": f"Patient/{study.patient_id}"},
        "started": study.started,
        "basedOn": [{"reference": f"ServiceRequest/{order_id(study)}"}],
        "endpoint": [{"reference": f"Endpoint/{ENDPOINT_ID}"}],
        "numberOfSeries": len({instance.series_instance_uid for instance in study.instances}),
        "numberOfInstances": len(study.instances),
        "description": study.description,
        "series": _series(study, modality),
    }


def _series(study: DemoStudy, modality: Resource) -> list[Resource]:
    by_uid: dict[str, list[Resource]] = {}
    for instance in study.instances:
        by_uid.setdefault(instance.series_instance_uid, []).append(
            {
                "uid": instance.sop_instance_uid,
                "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{instance.sop_class_uid}"},
            }
        )
    return [
        {
            "uid": uid,
            "modality": modality,
            "numberOfInstances": len(instances),
            **_body_site(study.body_part),
            "instance": instances,
        }
        for uid, instances in by_uid.items()
    ]


def _body_site(body_part: str | None) -> Resource:
    code = _SNOMED_BODY_SITES.get((body_part or "").upper())
    if code is None:
        return {}
    return {"bodySite": {"system": "http://snomed.info/sct", "code": code[0], "display": code[1]}}
