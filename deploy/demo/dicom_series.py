"""Writing made-up or wrapped slices as valid DICOM series, with UIDs that are the same on every run.

Spec: DICOM PS3.3 A.3 (CT Image IOD), A.4 (MR Image IOD), PS3.5 B.2 (UUID-derived UIDs)
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:rayhook:demo")
_CT_INTERCEPT = -1024


@dataclass(frozen=True, slots=True)
class Series:
    """What is said of one series; a study of this demo has one.

    `name` makes the UIDs. `window` is centre and width. `bits_stored` is for MR; CT is written with 12.
    """

    name: str
    patient_id: str
    patient_name: str
    modality: str
    body_part: str
    study_description: str
    series_description: str
    started: datetime
    spacing_mm: float
    thickness_mm: float
    window: tuple[float, float] | None
    comment: str
    bits_stored: int = 12
    timing_ms: tuple[float, float, float] | None = None
    origin: Literal["ORIGINAL", "DERIVED"] = "ORIGINAL"


@dataclass(frozen=True, slots=True)
class WrittenInstance:
    path: Path
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str


def uid_for(*names: str) -> str:
    """Return the UID that these names always get."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(names)).int}"


def study_uid(series: Series) -> str:
    return uid_for("study", series.name)


def write_series(
    series: Series, slices: Callable[[], NDArray[Any]], folder: Path, *, count: int
) -> tuple[WrittenInstance, ...]:
    """Return the files of the series; `slices` is only called, for (count, rows, columns), where one is missing.

    CT slices come in Hounsfield units.
    """
    target = folder / series.name
    written = tuple(_written(series, index, target) for index in range(count))
    if not all(instance.path.exists() for instance in written):
        target.mkdir(parents=True, exist_ok=True)
        for index, (pixels, instance) in enumerate(zip(slices(), written, strict=True)):
            dataset = _dataset(series, index, pixels, instance)
            dataset.save_as(instance.path, enforce_file_format=True)
    return written


def _written(series: Series, index: int, target: Path) -> WrittenInstance:
    return WrittenInstance(
        path=target / f"{index + 1:03d}.dcm",
        sop_instance_uid=uid_for("instance", series.name, str(index)),
        sop_class_uid=CTImageStorage if series.modality == "CT" else MRImageStorage,
        series_instance_uid=uid_for("series", series.name),
    )


def _dataset(series: Series, index: int, pixels: NDArray[Any], instance: WrittenInstance) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(instance.sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(instance.sop_instance_uid)
    dataset = FileDataset(str(instance.path), {}, file_meta=meta, preamble=b"\0" * 128)
    _identify(dataset, series, index, instance)
    _place(dataset, series, index)
    _describe_acquisition(dataset, series)
    _set_pixels(dataset, series, pixels)
    return dataset


def _identify(dataset: Dataset, series: Series, index: int, instance: WrittenInstance) -> None:
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = [series.origin, "PRIMARY", "AXIAL" if series.modality == "CT" else "M"]
    dataset.SOPClassUID = instance.sop_class_uid
    dataset.SOPInstanceUID = instance.sop_instance_uid
    dataset.StudyInstanceUID = study_uid(series)
    dataset.SeriesInstanceUID = instance.series_instance_uid
    dataset.FrameOfReferenceUID = uid_for("frame", series.name)
    dataset.PositionReferenceIndicator = ""
    dataset.StudyID = dataset.AccessionNumber = ""
    dataset.SeriesNumber = dataset.AcquisitionNumber = 1
    dataset.InstanceNumber = index + 1
    for kind in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{kind}Date", series.started.strftime("%Y%m%d"))
        setattr(dataset, f"{kind}Time", series.started.strftime("%H%M%S"))
    dataset.TimezoneOffsetFromUTC = series.started.strftime("%z")
    dataset.PatientName, dataset.PatientID = series.patient_name, series.patient_id
    dataset.PatientBirthDate = dataset.PatientSex = dataset.ReferringPhysicianName = ""
    dataset.Modality, dataset.Manufacturer = series.modality, "Rayhook demo"
    dataset.BodyPartExamined, dataset.PatientPosition = series.body_part, "HFS"
    dataset.StudyDescription, dataset.SeriesDescription = series.study_description, series.series_description
    dataset.ImageComments = series.comment
    dataset.BurnedInAnnotation = "NO"


def _place(dataset: Dataset, series: Series, index: int) -> None:
    position = index * series.thickness_mm
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-128 * series.spacing_mm, -128 * series.spacing_mm, position]
    dataset.SliceLocation = position
    dataset.SliceThickness = series.thickness_mm
    dataset.PixelSpacing = [series.spacing_mm, series.spacing_mm]


def _describe_acquisition(dataset: Dataset, series: Series) -> None:
    if series.modality == "CT":
        dataset.KVP = None
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = _CT_INTERCEPT, 1, "HU"
        return
    dataset.ScanningSequence, dataset.SequenceVariant = ["SE", "IR"], "SK"
    dataset.ScanOptions, dataset.MRAcquisitionType = "", "2D"
    dataset.EchoTrainLength = None
    repetition, echo, inversion = series.timing_ms or (None, None, None)
    dataset.RepetitionTime, dataset.EchoTime, dataset.InversionTime = repetition, echo, inversion


def _set_pixels(dataset: Dataset, series: Series, pixels: NDArray[Any]) -> None:
    stored = pixels - _CT_INTERCEPT if series.modality == "CT" else pixels
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.PixelRepresentation = 16, 0
    dataset.BitsStored = series.bits_stored
    dataset.HighBit = series.bits_stored - 1
    if series.window is not None:
        dataset.WindowCenter, dataset.WindowWidth = series.window
    dataset.PixelData = np.ascontiguousarray(stored, "<u2").tobytes()
