"""The SMART app beside a demo EHR and a demo PACS that has images, with faults to switch on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
from numpy.typing import NDArray

from rayhook.deploy.demo.catalogue import Catalogue, DemoInstance, DemoStudy
from rayhook.deploy.demo.ehr import create_ehr, demo_registry_toml
from rayhook.deploy.demo.pacs import Faults, create_pacs
from rayhook.deploy.demo.run import serving
from rayhook.inference import jobs
from rayhook.inference.explain import pack_heat
from rayhook.inference.study import KeyImage, Mark, StudyResult
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.image_study import image_handle, series_handle, study_handle
from tests.doubles.dicom_files import dataset, encode, picture
from tests.ports import free_url
from tests.unit.smart_app.conftest import MODEL, Clock, World, app_of, smart_service, study_result

ROOT = "1.2.826.0.1.3680043.8.498.77"
PATIENT, STRANGER = "phantom-a", "phantom-b"
COUNT = 6
KEY = 3


def pixels(number: int) -> NDArray[np.int16]:
    return picture(seed=number).astype(np.int16) - 2048


def ct_slice(study: str, number: int, **changes: Any) -> bytes:
    """A slice of a CT, signed; those with a higher InstanceNumber lie further to the feet."""
    series = f"{study}.1"
    return encode(
        dataset(
            pixels(number),
            SOPClassUID="1.2.840.10008.5.1.4.1.1.2",
            SOPInstanceUID=f"{series}.{number}",
            StudyInstanceUID=study,
            SeriesInstanceUID=series,
            Modality="CT",
            SeriesDescription="THORAX 5.0",
            SeriesNumber=2,
            InstanceNumber=number,
            ImagePositionPatient=[-10.0, -20.0, 100.0 - 5.0 * number],
            ImageOrientationPatient=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
            RescaleSlope=1,
            RescaleIntercept=-24,
            WindowCenter=[40, -600],
            WindowWidth=[400, 1500],
            WindowCenterWidthExplanation=["MEDIASTINUM", "LUNG"],
            **changes,
        )
    )


def study_of(folder: Path, patient: str, number: int, files: list[bytes], *, started: str) -> DemoStudy:
    uid = f"{ROOT}.{number}"
    (folder / uid).mkdir()
    instances = []
    for index, data in enumerate(files, start=1):
        path = folder / uid / f"{index}.dcm"
        path.write_bytes(data)
        instances.append(DemoInstance(path, f"{uid}.1.{index}", "1.2.840.10008.5.1.4.1.1.2", f"{uid}.1"))
    return DemoStudy(
        patient_id=patient,
        patient_display=f"PHANTOM {patient[-1].upper()}",
        dicom_patient_id=f"RH-{patient[-1].upper()}",
        study_instance_uid=uid,
        modality="CT",
        description="CT chest (phantom)",
        body_part="CHEST",
        started=started,
        is_phantom=True,
        instances=tuple(instances),
    )


def catalogue_in(folder: Path) -> Catalogue:
    def slices(number: int) -> list[bytes]:
        return [ct_slice(f"{ROOT}.{number}", index) for index in range(1, COUNT + 1)]

    return Catalogue(
        (
            study_of(folder, PATIENT, 1, slices(1), started="2026-05-01T10:00:00+00:00"),
            study_of(folder, PATIENT, 2, slices(2), started="2024-02-01T10:00:00+00:00"),
            study_of(folder, STRANGER, 3, slices(3), started="2026-04-01T10:00:00+00:00"),
        )
    )


def rated_study(study: str) -> StudyResult:
    series, uids = f"{study}.1", [f"{study}.1.{n}" for n in range(COUNT, 0, -1)]
    probabilities = (0.02, 0.1, 0.31, 0.87, 0.62, 0.05)
    marks = (Mark(20, 40, 0.9, 0.87, positive=True), Mark(30, 12, 0.4, None, positive=False))
    heat = np.zeros((48, 64), np.float32)
    heat[12:28, 30:50] = 0.9
    whole = study_result(study)
    images = tuple(
        replace(
            whole.instances[0],
            sop_instance_uid=uid,
            series_instance_uid=series,
            marks=marks if n == KEY else (),
        )
        for n, uid in enumerate(uids)
    )
    grey = bytes(cv2.imencode(".png", np.full((48, 64), 60, np.uint8))[1])
    return replace(
        whole,
        series_instance_uid=series,
        instances=images,
        slice_probabilities=probabilities,
        slice_uids=tuple(uids),
        key_image=KeyImage(uids[KEY], series, 48, 64, grey, grey, pack_heat(heat)),
    )


@dataclass
class Imaging:
    """The running parts, and the addresses that a test asks for."""

    world: World
    deps: SMARTDependencies
    pacs_url: str
    faults: Faults
    asked: list[str]

    def study(self, number: int = 1) -> str:
        return f"/studies/{study_handle(self.deps.keyring, f'{ROOT}.{number}')}"

    def series(self, number: int = 1) -> str:
        return f"{self.study(number)}/series/{series_handle(self.deps.keyring, f'{ROOT}.{number}.1')}"

    def image(self, index: int, number: int = 1, frame: int = 0) -> str:
        handle = image_handle(self.deps.keyring, f"{ROOT}.{number}.1.{index}")
        return f"{self.series(number)}/images/{handle}/{frame}"

    def get(self, browser: httpx.Client, path: str) -> httpx.Response:
        return browser.get(f"{self.world.base_url}{path}")

    def store_result(self, number: int = 1) -> str:
        """A result over the study's six slices, the fourth being the key image, with heat and two points."""
        reference = self.reference(number)
        with self.deps.sessions() as session:
            key = jobs.job_key(reference, [MODEL])
            row, _ = jobs.enqueue(session, self.deps.keyring, reference, None, key=key, request_id="test")
            session.commit()
        return self.world.complete(row.id, rated_study(f"{ROOT}.{number}"))

    def reference(self, number: int = 1, **changes: object) -> Any:
        return replace(
            self.world.reference(PATIENT, study=f"{ROOT}.{number}"),
            dicomweb_url=f"{self.pacs_url}/dicom-web",
            **changes,
        )


@contextmanager
def open_imaging(folder: Path, images: list[bytes] | None = None) -> Iterator[Imaging]:
    """Serve the phantom's studies, or one study of the patient that is made of `images`."""
    base_url, ehr_url, pacs_url = free_url(), free_url(), free_url()
    if images is None:
        files = catalogue_in(folder)
    else:
        files = Catalogue((study_of(folder, PATIENT, 1, images, started="2026-05-01T10:00:00+00:00"),))
    registry_file = folder / "ehrs.toml"
    registry_file.write_text(demo_registry_toml(ehr_base_url=ehr_url, pacs_base_url=pacs_url))
    faults, asked = Faults(), []
    with ExitStack() as stack:
        ehr_app = create_ehr(
            files,
            base_url=ehr_url,
            cds_base_url=base_url,
            pacs_base_url=pacs_url,
            keys_dir=folder / "ehr-keys",
        )

        def introspect(token: str) -> bool:
            asked.append(token)
            return ehr_app.state.accepts_token(token)

        deps, database, own_tokens = smart_service(stack, folder, registry_file, base_url=base_url)
        stack.enter_context(serving(app_of(deps), base_url))
        stack.enter_context(serving(ehr_app, ehr_url))
        stack.enter_context(serving(create_pacs(files, introspect=introspect, faults=faults), pacs_url))
        assert isinstance(deps.clock, Clock)
        world = World(base_url, ehr_url, ehr_app.state.demo, database, deps.keyring, deps.clock, own_tokens)
        yield Imaging(world, deps, pacs_url, faults, asked)
