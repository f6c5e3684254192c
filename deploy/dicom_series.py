"""Writing made-up or wrapped images as valid DICOM files, with UIDs that are the same on every run.

Spec: DICOM PS3.3 C.7 (common modules), C.12.1 (SOP Common), PS3.5 B.2 (UUID-derived UIDs)
"""

import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from rayhook.deploy.dicom_objects import ImageObject, decimal

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:rayhook:demo")
_JPEG = "ISO_10918_1"


@dataclass(frozen=True, slots=True)
class Patient:
    """`age` is an AS, such as 053Y; what is not known stays empty."""

    id: str
    name: str
    sex: Literal["", "F", "M"] = ""
    age: str | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """What is said of one series. `study` and `name` make the UIDs; no date is written where none is told.

    `window` is centre and width. `derivation` says how the pixels came to be, where a scanner did not make them.
    """

    study: str
    name: str
    patient: Patient
    image_object: ImageObject
    body_part: str
    study_description: str
    series_description: str
    number: int
    bits_stored: int
    comment: str
    manufacturer: str = ""
    started: datetime | None = None
    window: tuple[float, float] | None = None
    derivation: str | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """Stored values (rows, columns) and what makes the instance's UID within its series.

    jpeg_ratio: original to compressed size, where the pixels have been through lossy JPEG.
    """

    name: str
    number: int
    pixels: NDArray[Any]
    jpeg_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class WrittenInstance:
    path: Path
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    study_instance_uid: str


def uid_for(*names: str) -> str:
    """Return the UID that these names always get."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(names)).int}"


def written_instance(series: Series, image_name: str, path: Path) -> WrittenInstance:
    """Return what write_image returns for an image of that name."""
    return WrittenInstance(
        path=path,
        sop_instance_uid=uid_for("instance", series.study, series.name, image_name),
        sop_class_uid=series.image_object.sop_class_uid,
        series_instance_uid=uid_for("series", series.study, series.name),
        study_instance_uid=uid_for("study", series.study),
    )


def write_image(series: Series, image: Image, path: Path) -> WrittenInstance:
    """Write the file whole or not at all, and its folders."""
    instance = written_instance(series, image.name, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    try:
        _dataset(series, image, instance).save_as(unfinished, enforce_file_format=True)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return instance


def _dataset(series: Series, image: Image, instance: WrittenInstance) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(instance.sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(instance.sop_instance_uid)
    dataset = FileDataset(str(instance.path), {}, file_meta=meta, preamble=b"\0" * 128)
    _identify(dataset, instance)
    _describe_patient(dataset, series.patient)
    _describe_series(dataset, series)
    _date(dataset, series.started)
    _describe_image(dataset, series, image)
    _set_pixels(dataset, series, image.pixels)
    series.image_object.describe(dataset, image.number)
    if "ImagePositionPatient" in dataset:
        dataset.FrameOfReferenceUID = uid_for("frame", series.study, series.name)
    _tell_compression(dataset, image.jpeg_ratio)
    return dataset


def _identify(dataset: Dataset, instance: WrittenInstance) -> None:
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = instance.sop_class_uid
    dataset.SOPInstanceUID = instance.sop_instance_uid
    dataset.StudyInstanceUID = instance.study_instance_uid
    dataset.SeriesInstanceUID = instance.series_instance_uid


def _describe_patient(dataset: Dataset, patient: Patient) -> None:
    dataset.PatientName, dataset.PatientID = patient.name, patient.id
    dataset.PatientBirthDate, dataset.PatientSex = "", patient.sex
    if patient.age is not None:
        dataset.PatientAge = patient.age


def _describe_series(dataset: Dataset, series: Series) -> None:
    dataset.StudyID = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.SeriesNumber = series.number
    dataset.Modality, dataset.Manufacturer = series.image_object.modality, series.manufacturer
    dataset.BodyPartExamined = series.body_part
    dataset.StudyDescription, dataset.SeriesDescription = series.study_description, series.series_description


def _date(dataset: Dataset, started: datetime | None) -> None:
    """Study date and time are of type 2: empty where nobody told them; the others are left out."""
    if started is None:
        dataset.StudyDate = dataset.StudyTime = ""
        return
    for kind in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{kind}Date", started.strftime("%Y%m%d"))
        setattr(dataset, f"{kind}Time", started.strftime("%H%M%S"))
    dataset.TimezoneOffsetFromUTC = started.strftime("%z")


def _describe_image(dataset: Dataset, series: Series, image: Image) -> None:
    origin = "ORIGINAL" if series.derivation is None else "DERIVED"
    dataset.ImageType = [origin, "PRIMARY", *series.image_object.kind_of_image]
    dataset.InstanceNumber = image.number
    dataset.ImageComments = series.comment
    # It asks for text that names the patient and the date; side markers on a film are none.
    dataset.BurnedInAnnotation = "NO"
    if series.derivation is not None:
        dataset.DerivationDescription = series.derivation


def _set_pixels(dataset: Dataset, series: Series, pixels: NDArray[Any]) -> None:
    bits_allocated = series.image_object.bits_allocated
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.PixelRepresentation = bits_allocated, 0
    dataset.BitsStored, dataset.HighBit = series.bits_stored, series.bits_stored - 1
    if series.window is not None:
        dataset.WindowCenter, dataset.WindowWidth = series.window
    stored = np.ascontiguousarray(pixels, f"<u{bits_allocated // 8}").tobytes()
    dataset.PixelData = stored + b"\0" * (len(stored) % 2)
    dataset["PixelData"].VR = "OB" if bits_allocated == 8 else "OW"  # noqa: PLR2004


def _tell_compression(dataset: Dataset, jpeg_ratio: float | None) -> None:
    """Spec: DICOM PS3.3 C.7.6.1.1.5."""
    if jpeg_ratio is not None:
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionRatio = decimal(round(jpeg_ratio, 2))
        dataset.LossyImageCompressionMethod = _JPEG
