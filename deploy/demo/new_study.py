"""A study that arrives while the demo runs: a phantom once more, as if it had just been scanned."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from fastapi import APIRouter
from pydicom import dcmread
from starlette.responses import RedirectResponse, Response

from rayhook.deploy.demo.catalogue import Catalogue, DemoInstance, DemoStudy
from rayhook.deploy.demo.ehr_seed import study_resources
from rayhook.deploy.demo.ehr_store import ResourceStore
from rayhook.deploy.demo.pacs_archive import Archive
from rayhook.deploy.dicom_series import uid_for


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class NewStudies:
    """Puts images into the PACS first, then the study into the EHR, which tells its subscribers."""

    catalogue: Catalogue
    archive: Archive
    store: ResourceStore
    folder: Path
    clock: Callable[[], datetime] = _now
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def arrive(self) -> DemoStudy:
        """Return the study, which is of the first patient and made now."""
        with self._lock:
            now = self.clock()
            study = copied_study(
                self.catalogue.studies[0], self.folder / now.strftime("%Y%m%dT%H%M%S%f"), now
            )
            for instance in study.instances:
                archived = self.archive.read(instance.path.read_bytes())
                assert archived is not None
                self.archive.store(archived)
            self.store.seed(study_resources(study))
        return study

    def router(self) -> APIRouter:
        router = APIRouter(include_in_schema=False)

        @router.post("/new-study")
        def arrive() -> Response:
            return RedirectResponse(f"/patients/{self.arrive().patient_id}", status_code=303)

        return router


def copied_study(study: DemoStudy, folder: Path, now: datetime) -> DemoStudy:
    """Return a study of the same images and patient under UIDs of its own, written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    study_uid = uid_for("arrived", folder.name, study.study_instance_uid)
    instances = []
    for number, instance in enumerate(study.instances, start=1):
        image = dcmread(instance.path)
        image.StudyInstanceUID = study_uid
        image.SeriesInstanceUID = uid_for("arrived", folder.name, instance.series_instance_uid)
        image.SOPInstanceUID = uid_for("arrived", folder.name, instance.sop_instance_uid)
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.StudyDate, image.StudyTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
        path = folder / f"{number:03d}.dcm"
        image.save_as(path)
        instances.append(
            DemoInstance(path, image.SOPInstanceUID, instance.sop_class_uid, image.SeriesInstanceUID)
        )
    return replace(study, study_instance_uid=study_uid, started=now.isoformat(), instances=tuple(instances))
