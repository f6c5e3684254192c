"""A labelled image as a DICOM file: what is known of it is said, what is not stays empty.

Every kind's stored values are the image file's own 0..255.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from rayhook.deploy.dicom_objects import ChestFilm, CTSlices, FlairSlices, Grid, ImageObject, Mammogram
from rayhook.deploy.dicom_series import Image, Patient, Series, WrittenInstance, write_image
from rayhook.deploy.labelled_images import LABELS, Kind, LabelledImage, series_number
from rayhook.fhir.errors import InvalidRequest

_MAX_SIDE = 65_535
_WHOLE_RANGE = (128.0, 256.0)
_NOMINAL_MR = Grid(spacing_mm=1.0, thickness_mm=5.0)
# JSRT: 2048 pixels of 0.175 mm, mini-MIAS: 1024 pixels of 0.2 mm; the data sets hold the whole films, smaller.
_JSRT_SIDE_MM = 2048 * 0.175
_MIAS_SIDE_MM = 1024 * 0.2
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class _Wording:
    """What is said of every image of a kind. `{}` in `series` is the series' name."""

    body_part: str
    study: str
    series: str
    derivation: str
    comment: str


_WORDINGS = {
    Kind.CT_LIDC: _Wording(
        "CHEST",
        "Data set CT chest",
        "axial CT, crop around {}",
        derivation="Cut around a nodule and scaled to 0..255 by the crop's own lowest and highest value: "
        "the values rise with the Hounsfield units, which cannot be had back.",
        comment="pixel and slice spacing as labelled; place in the body and direction of counting nominal",
    ),
    Kind.CXR_JSRT: _Wording(
        "CHEST",
        "Data set chest film",
        "chest frontal PA",
        derivation="Digitised film, made smaller and reduced to 8 bits.",
        comment="pixel spacing from that of the original film",
    ),
    Kind.CXR_NIH: _Wording(
        "CHEST",
        "Data set chest film",
        "chest frontal",
        derivation="Reduced to 8 bits, made smaller and kept as JPEG.",
        comment="PA or AP and pixel spacing unknown",
    ),
    Kind.MG_MIAS: _Wording(
        "BREAST",
        "Data set mammograms",
        "mammogram MLO {}",
        derivation="Digitised film, made smaller, reduced to 8 bits and kept as JPEG.",
        comment="side from the parity of the film's number; pixel spacing from that of the original film",
    ),
    Kind.MRI_LGG: _Wording(
        "BRAIN",
        "Data set MR head",
        "axial FLAIR",
        derivation="Reduced to 8 bits and kept as JPEG.",
        comment="spacing, thickness and position nominal",
    ),
}


def wrap(image: LabelledImage, path: Path, *, started: datetime | None = None) -> WrittenInstance:
    """Write the image as the DICOM file `path`.

    Raises InvalidRequest, naming the row, if the image file is not a whole 8-bit grey-scale image.
    """
    data = image.row.path.read_bytes()
    pixels = _read(data, image)
    ratio = pixels.size / len(data) if data.startswith(_JPEG_START) else None
    name = f"{image.number}/{hashlib.sha256(data).hexdigest()}"
    return write_image(series_of(image, started=started), Image(name, image.number, pixels, ratio), path)


def dicom_path(image: LabelledImage) -> PurePosixPath:
    """Return PATIENT/STUDY/SERIES/NNN.dcm, by the slice's number."""
    patient_id, study, series, number = image.place
    return PurePosixPath(patient_id, study, series, f"{number:03d}.dcm")


def series_of(image: LabelledImage, *, started: datetime | None = None) -> Series:
    """Return what is said of the series that the image is of."""
    row, kind = image.row, image.row.kind
    wording = _WORDINGS[kind]
    date = "unknown" if started is None else "nominal"
    return Series(
        study=f"{kind}/{row.patient_id}/{image.study}",
        name=image.series,
        patient=Patient(row.patient_id, f"DATASET^{row.patient_id}", image.sex, image.age),
        image_object=_image_object(image),
        body_part=wording.body_part,
        study_description=wording.study,
        series_description=wording.series.format(image.series),
        number=series_number(image),
        bits_stored=12 if kind is Kind.CT_LIDC else 8,
        comment=f"Wrapped from an image file: date {date}; {wording.comment}",
        started=started,
        window=None if kind is Kind.MRI_LGG else _WHOLE_RANGE,
        derivation=wording.derivation,
    )


def _image_object(image: LabelledImage) -> ImageObject:
    match image.row.kind:
        case Kind.CT_LIDC:
            assert image.spacing_mm is not None
            assert image.slice_mm is not None
            return CTSlices(Grid(image.spacing_mm, image.slice_mm), intercept=0, unit="US")
        case Kind.CXR_JSRT:
            return ChestFilm("PA", side_mm=_JSRT_SIDE_MM)
        case Kind.CXR_NIH:
            return ChestFilm("")
        case Kind.MG_MIAS:
            assert image.laterality is not None
            return Mammogram(image.laterality, side_mm=_MIAS_SIDE_MM)
        case Kind.MRI_LGG:
            return FlairSlices(_NOMINAL_MR)


def _read(data: bytes, image: LabelledImage) -> NDArray[np.uint8]:
    kind = image.row.kind
    if data.startswith(_JPEG_START) and not data.rstrip(b"\0").endswith(_JPEG_END):
        raise _refused(image, "is cut off")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if pixels is None:
        raise _refused(image, "is no image")
    if pixels.ndim != 2 or pixels.dtype != np.uint8 or max(pixels.shape) > _MAX_SIDE:  # noqa: PLR2004
        raise _refused(image, "must be 8-bit grey-scale")
    if kind in {Kind.CXR_JSRT, Kind.MG_MIAS} and pixels.shape[0] != pixels.shape[1]:
        raise _refused(image, "must be square, as the film is whose pixel spacing is known")
    return np.asarray(pixels, np.uint8)


def _refused(image: LabelledImage, rule: str) -> InvalidRequest:
    return InvalidRequest(
        f"{LABELS} row {image.row.line}: the file of column path {rule}", code="invalid_row"
    )
