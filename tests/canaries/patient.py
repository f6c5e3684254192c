"""A patient whose every value is a canary, as the EHR and the PACS have them."""

from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread

from rayhook.deploy.demo.catalogue import Catalogue, DemoInstance, DemoStudy
from rayhook.deploy.demo.ehr_seed import MRN_SYSTEM, imaging_study_id, order_id
from rayhook.deploy.demo.phantom import FLAIR_SLICES, PIXEL_SPACING_MM, head_flair
from tests.canaries.canaries import PIXELS, PLANTED, ROOT_UID
from tests.unit.inference.images import encoded

Resource = dict[str, Any]

_MR = "1.2.840.10008.5.1.4.1.1.4"
_STARTED = "2026-03-12T10:15:00+00:00"
_HEAD_SEED = 39
GOOD, DAMAGED, WAITING, ARRIVING = "1", "2", "3", "4"


def catalogue_in(folder: Path) -> Catalogue:
    """One study that is analysed, one whose images are damaged, one that is in hand at a crash, one that arrives."""
    slices = head_flair(_HEAD_SEED, lesion=True)
    good = [_image(slices[n], GOOD, n + 1) for n in range(FLAIR_SLICES)]
    damaged = [_image(slices[n], DAMAGED, n + 1)[:-40_000] for n in range(3)]
    waiting = [_image(slices[n], WAITING, n + 1) for n in range(4, 8)]
    arriving = [_image(slices[n], ARRIVING, n + 1) for n in range(4, 8)]
    patient = PLANTED["patient id"]
    return Catalogue(
        (
            _study(folder, GOOD, good, patient=patient),
            _study(folder, DAMAGED, damaged, patient=f"{patient}-2"),
            _study(folder, WAITING, waiting, patient=f"{patient}-3"),
            _study(folder, ARRIVING, arriving, patient=f"{patient}-4"),
        )
    )


def _image(pixels: Any, study: str, number: int) -> bytes:
    pixels = pixels.copy()
    pixels[0, : len(PIXELS)] = PIXELS
    series = f"{ROOT_UID}.{study}1"
    dataset = dcmread(BytesIO(encoded(pixels, number, PixelSpacing=[PIXEL_SPACING_MM] * 2)))
    changes = {
        "AccessionNumber": PLANTED["accession"],
        "DeviceSerialNumber": PLANTED["device serial"],
        "InstitutionName": PLANTED["institution"],
        "OperatorsName": PLANTED["operator"],
        "PatientBirthDate": "19310729",
        "PatientBirthName": PLANTED["maiden name"],
        "PatientComments": PLANTED["patient comments"],
        "PatientID": PLANTED["record number"],
        "PatientName": f"{PLANTED['family name']}^{PLANTED['given name']}^{PLANTED['middle name']}",
        "ProtocolName": PLANTED["protocol"],
        "ReferringPhysicianName": PLANTED["referrer"],
        "SOPInstanceUID": f"{series}.{number}",
        "SeriesDescription": PLANTED["series description"],
        "SeriesInstanceUID": series,
        "StudyDescription": PLANTED["study description"],
        "StudyInstanceUID": f"{ROOT_UID}.{study}",
    }
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.private_block(0x0099, "RAYHOOK CANARY", create=True).add_new(1, "LO", PLANTED["private tag"])
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _study(folder: Path, number: str, files: list[bytes], *, patient: str) -> DemoStudy:
    series = f"{ROOT_UID}.{number}1"
    (folder / number).mkdir(parents=True)
    instances = []
    for index, data in enumerate(files, start=1):
        path = folder / number / f"{index}.dcm"
        path.write_bytes(data)
        instances.append(DemoInstance(path, f"{series}.{index}", _MR, series))
    return DemoStudy(
        patient_id=patient,
        patient_display=f"{PLANTED['given name']} {PLANTED['family name']}",
        dicom_patient_id=PLANTED["record number"],
        study_instance_uid=f"{ROOT_UID}.{number}",
        modality="MR",
        description=PLANTED["study description"],
        body_part="BRAIN",
        started=_STARTED,
        is_phantom=True,
        instances=tuple(instances),
    )


def chart(study: DemoStudy) -> list[Resource]:
    """Return what the EHR knows of the patient beyond what a demo patient has."""
    return [
        {
            "resourceType": "Patient",
            "id": study.patient_id,
            "identifier": [
                {"system": MRN_SYSTEM, "value": PLANTED["record number"]},
                {"system": "urn:insurance", "value": PLANTED["insurance number"]},
            ],
            "active": True,
            "name": [
                {
                    "family": PLANTED["family name"],
                    "given": [PLANTED["given name"], PLANTED["middle name"]],
                    "text": study.patient_display,
                },
                {"use": "maiden", "family": PLANTED["maiden name"]},
            ],
            "telecom": [
                {"system": "phone", "value": PLANTED["phone"]},
                {"system": "email", "value": PLANTED["e-mail"]},
            ],
            "address": [
                {
                    "line": [PLANTED["address"]],
                    "city": PLANTED["city"],
                    "postalCode": PLANTED["postal code"],
                }
            ],
            "gender": "female",
            "birthDate": PLANTED["birth"],
        },
        order(study, id=order_id(study), status="active"),
    ]


def order(study: DemoStudy, **changes: Any) -> Resource:
    return {
        "resourceType": "ServiceRequest",
        "status": "draft",
        "intent": "order",
        "identifier": [{"system": "urn:accession", "value": PLANTED["accession"]}],
        "category": [{"coding": [{"system": "http://snomed.info/sct", "code": "363679005"}]}],
        "code": {"text": PLANTED["study description"]},
        "subject": {"reference": f"Patient/{study.patient_id}", "display": study.patient_display},
        "encounter": {"reference": f"Encounter/{PLANTED['encounter']}"},
        "reasonCode": [{"text": PLANTED["order reason"]}],
        "note": [{"text": PLANTED["order note"]}],
        "requester": {"reference": "Practitioner/demo-clinician", "display": PLANTED["referrer"]},
    } | changes


def assigned(study: DemoStudy) -> dict[str, str]:
    """Return the ids that the EHR gave to the patient's resources."""
    return {"study's id": imaging_study_id(study), "order's id": order_id(study)}
