"""Many small studies of as many patients: one FLAIR slice of a phantom each, alike but for names and some noise."""

from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import dcmread

from rayhook.deploy.demo.catalogue import Catalogue, DemoInstance, DemoStudy
from rayhook.deploy.demo.phantom import PIXEL_SPACING_MM, head_flair
from tests.unit.inference.images import encoded

_ROOT = "1.2.826.0.1.3680043.8.498.77"
_MR = "1.2.840.10008.5.1.4.1.1.4"
_STARTED = datetime(2026, 2, 1, 8, 0, tzinfo=UTC)
_SLICE = 5
_SEED = 39


def patient_id(number: int) -> str:
    return f"fault-{number:04d}"


def many_studies(folder: Path, count: int) -> Catalogue:
    """Return the catalogue, its files below `folder`; the model answers on every one of them."""
    folder.mkdir(parents=True, exist_ok=True)
    slices = head_flair(_SEED, lesion=False)
    template = dcmread(BytesIO(encoded(slices[_SLICE], 1, PixelSpacing=[PIXEL_SPACING_MM] * 2)))
    noise = np.random.default_rng(_SEED)
    return Catalogue(tuple(_study(folder, number, template, noise) for number in range(count)))


def _study(folder: Path, number: int, template, noise) -> DemoStudy:
    uid = f"{_ROOT}.{number + 1}"
    template.StudyInstanceUID, template.SeriesInstanceUID = uid, f"{uid}.1"
    template.SOPInstanceUID = template.file_meta.MediaStorageSOPInstanceUID = f"{uid}.1.1"
    template.PatientID, template.PatientName = f"FAULT-{number:04d}", f"PHANTOM^FAULT{number:04d}"
    pixels = template.pixel_array.astype(np.int32)
    speckled = pixels + noise.integers(-2, 3, pixels.shape)
    path = folder / f"{number:04d}.dcm"
    kept = template.PixelData
    template.PixelData = np.clip(speckled, 0, 4095).astype(np.uint16).tobytes()
    template.save_as(path, enforce_file_format=True)
    template.PixelData = kept
    return DemoStudy(
        patient_id=patient_id(number),
        patient_display=f"PHANTOM {number:04d} (no patient)",
        dicom_patient_id=f"FAULT-{number:04d}",
        study_instance_uid=uid,
        modality="MR",
        description="MR head FLAIR (phantom)",
        body_part="BRAIN",
        started=(_STARTED + timedelta(minutes=number)).isoformat(),
        is_phantom=True,
        instances=(DemoInstance(path, f"{uid}.1.1", _MR, f"{uid}.1"),),
    )
