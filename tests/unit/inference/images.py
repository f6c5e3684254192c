"""DICOM slices made for a test, and a small model that answers on them as the test wants."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from rayhook.inference.engine import EngineOutput
from rayhook.inference.model import save_weights
from rayhook.inference.registry import REFERENCE, WEIGHTS, ModelPackage
from tests.leaks import WORD
from tests.unit.inference.samples import SERIES_UID, STUDY_UID, manifest

SIDE = 64
CT: dict[str, object] = {
    "SOPClassUID": CTImageStorage,
    "Modality": "CT",
    "RescaleIntercept": -1024,
    "RescaleSlope": 1,
    "RescaleType": "HU",
}


def dicom_slice(number: int = 1, *, lesion: bool = False, noise: bool = False, **changes: object) -> bytes:
    """Return an axial FLAIR slice: a disc of tissue, with a bright spot, or all noise."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    pixels = np.where(np.hypot(rows - 32, columns - 32) < 26, 300, 10).astype(np.uint16)
    if lesion:
        pixels[24:36, 24:36] = 900
    if noise:
        pixels = np.where((rows + columns) % 2, 900, 10).astype(np.uint16)
    pixels[0, 0] = number  # no two slices are alike
    return encoded(pixels, number, **changes)


def encoded(pixels: np.ndarray, number: int, **changes: object) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values: dict[str, object] = {
        "SOPClassUID": MRImageStorage,
        "SOPInstanceUID": f"{SERIES_UID}.{number}",
        "StudyInstanceUID": STUDY_UID,
        "SeriesInstanceUID": SERIES_UID,
        "PatientName": "PHANTOM^TEST",
        "PatientComments": f"{WORD} comments",
        "OtherPatientNames": f"{WORD}^MAIDEN",
        "PatientID": "MRN-1",
        "Modality": "MR",
        "BodyPartExamined": "BRAIN",
        "SeriesDescription": "AX T2 FLAIR",
        "StudyDescription": "MR brain",
        "ImageType": ["ORIGINAL", "PRIMARY", "M"],
        "InversionTime": 2500.0,
        "EchoTime": 120.0,
        "RepetitionTime": 9000.0,
        "InstanceNumber": number,
        "ImagePositionPatient": [-32.0, -32.0, 5.0 * number],
        "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "PixelSpacing": [1.0, 1.0],
        "SliceThickness": 5.0,
        "SliceLocation": 5.0 * number,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[-2],
        "Columns": pixels.shape[-1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        **changes,
    }
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = pixels.tobytes()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def without_pixels(number: int = 1, **changes: object) -> bytes:
    dataset = dcmread(BytesIO(dicom_slice(number, **changes)))
    del dataset.PixelData
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def truncated(data: bytes) -> bytes:
    return data[: len(data) - SIDE * SIDE]


def package(folder: Path) -> ModelPackage:
    """Return a package whose training images all have the feature (1, 0)."""
    digest = save_weights(folder / WEIGHTS, {REFERENCE: np.array([[1.0, 0.0]], np.float32)})
    described = manifest()
    ood = replace(described.ood, threshold=0.5, neighbour=1)
    return ModelPackage(folder, replace(described, weights_sha256=digest, ood=ood))


class SpotEngine:
    """Sees bright spots; what alternates from pixel to pixel has the feature (0, 1) and is unknown to it."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    @property
    def ready(self) -> bool:
        return True

    def run(self, batch: np.ndarray, timeout_s: float) -> EngineOutput:
        self.batches.append(len(batch))
        planes = batch[..., 0]
        bright = (planes > 1.0).mean(axis=(1, 2))
        strange = np.abs(np.diff(planes, axis=2)).mean(axis=(1, 2)) > 1.0
        logits = np.where(bright > 0.01, 3.0, -3.0).astype(np.float32)[:, None]
        features = np.where(strange[:, None], [[0.0, 1.0]], [[1.0, 0.0]]).astype(np.float32)
        cam = np.repeat(np.repeat(logits[:, None, None, :], 4, axis=1), 4, axis=2)
        return EngineOutput(
            logits=logits, features=features, early=np.zeros((len(batch), 0), np.float32), cam=cam
        )

    def close(self) -> None:
        """Nothing is held."""
