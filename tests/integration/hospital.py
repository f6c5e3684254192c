"""A demo EHR and a demo PACS on loopback, with the few studies that the pipeline's tests need."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rayhook.deploy.demo.catalogue import Catalogue, DemoInstance, DemoStudy
from rayhook.deploy.demo.ehr import create_ehr
from rayhook.deploy.demo.ehr_faults import EHRFaults
from rayhook.deploy.demo.ehr_seed import imaging_study_id, order_id
from rayhook.deploy.demo.pacs import Faults, create_pacs
from rayhook.deploy.demo.run import serving
from rayhook.inference.job_table import Authorization
from rayhook.inference.study import StudyReference
from tests.leaks import WORD
from tests.ports import free_url
from tests.unit.inference.images import CT, dicom_slice, truncated
from tests.unit.inference.samples import SERIES_UID, STUDY_UID

READ = "patient/Patient.r patient/ImagingStudy.rs patient/Endpoint.r"
WRITE = " patient/Device.c patient/DiagnosticReport.c patient/Observation.c patient/Provenance.c"


def study_of(
    folder: Path, name: str, files: list[bytes], *, mrn: str = "MRN-1", uid: str = STUDY_UID
) -> DemoStudy:
    (folder / name).mkdir()
    instances = []
    for number, data in enumerate(files, start=1):
        path = folder / name / f"{number}.dcm"
        path.write_bytes(data)
        instances.append(DemoInstance(path, f"{uid}.{number}", "1.2.840.10008.5.1.4.1.1.4", SERIES_UID))
    return DemoStudy(
        patient_id=f"patient-{name}",
        patient_display=f"PHANTOM {name} {WORD}",
        dicom_patient_id=mrn,
        study_instance_uid=uid,
        modality="MR",
        description="MR brain (phantom)",
        body_part="BRAIN",
        started="2026-03-12T10:15:00+00:00",
        is_phantom=True,
        instances=tuple(instances),
    )


def slices(uid: str, **changes: object) -> list[bytes]:
    return [
        dicom_slice(
            n,
            lesion=3 <= n <= 5,
            StudyInstanceUID=uid,
            SOPInstanceUID=f"{uid}.{n}",
            FrameOfReferenceUID=f"{uid}.77",
            **changes,
        )
        for n in range(1, 9)
    ]


def catalogue_in(folder: Path) -> Catalogue:
    uids = {
        name: f"1.2.826.0.1.3680043.8.498.9{n}" for n, name in enumerate(("ct", "stranger", "half", "part"))
    }
    half = [truncated(one) for one in slices(uids["half"])]
    part = slices(uids["part"])
    return Catalogue(
        (
            study_of(folder, "lesion", slices(STUDY_UID)),
            study_of(folder, "ct", slices(uids["ct"], **CT), uid=uids["ct"]),
            study_of(folder, "stranger", slices(uids["stranger"]), uid=uids["stranger"], mrn="MRN-OTHER"),
            study_of(folder, "half", half, uid=uids["half"]),
            study_of(folder, "part", [*part[:-1], truncated(part[-1])], uid=uids["part"]),
        )
    )


@dataclass
class Hospital:
    """The demo EHR and PACS, what is wrong with them, and a pipeline beside them."""

    catalogue: Catalogue
    ehr_url: str
    pacs_url: str
    folder: Path
    ehr_faults: EHRFaults = field(default_factory=EHRFaults)
    pacs_faults: Faults = field(default_factory=Faults)
    on_introspection: list = field(default_factory=list)

    def study(self, name: str) -> DemoStudy:
        return next(s for s in self.catalogue.studies if s.patient_id == f"patient-{name}")

    def reference(self, name: str, **changes: object) -> StudyReference:
        study = self.study(name)
        return replace(
            StudyReference(
                ehr_id="ehr",
                fhir_base_url=f"{self.ehr_url}/fhir",
                patient_id=study.patient_id,
                imaging_study_id=imaging_study_id(study),
                study_instance_uid=study.study_instance_uid,
                dicomweb_url=f"{self.pacs_url}/dicom-web",
                token_required=True,
                source_version="1",
                started=study.started,
                service_request=f"ServiceRequest/{order_id(study)}",
            ),
            **changes,
        )

    def token(self, name: str, scope: str = READ + WRITE) -> Authorization:
        access_token = self.demo.authorization.issue(f"patient-{name}", scope)
        return Authorization(access_token, scope, time.time() + 300)

    def written(self, resource_type: str) -> list:
        return self.demo.store.search(resource_type, [])


@contextmanager
def open_hospital(catalogue: Catalogue, folder: Path) -> Iterator[Hospital]:
    """Serve EHR and PACS until the block ends; `folder` / "rayhook" is for the pipeline beside them."""
    hospital = Hospital(catalogue, free_url(), free_url(), folder / "rayhook")
    ehr = create_ehr(
        catalogue,
        base_url=hospital.ehr_url,
        cds_base_url="http://127.0.0.1:1",
        pacs_base_url=hospital.pacs_url,
        keys_dir=folder / "ehr-keys",
        faults=hospital.ehr_faults,
    )
    hospital.demo = ehr.state.demo

    def introspect(token: str) -> bool:
        for call in hospital.on_introspection:
            call()
        return ehr.state.accepts_token(token)

    pacs = create_pacs(catalogue, introspect=introspect, faults=hospital.pacs_faults)
    hospital.archive = pacs.state.demo.archive
    with ExitStack() as stack:
        stack.enter_context(serving(ehr, hospital.ehr_url))
        stack.enter_context(serving(pacs, hospital.pacs_url))
        yield hospital
