"""What the demo PACS holds and the demo EHR knows of: phantoms, a package's test files, a folder of one's own."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.data import get_testdata_files
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from rayhook.deploy.demo.dicom_series import Series, WrittenInstance, study_uid, write_series
from rayhook.deploy.demo.phantom import (
    CT_SLICES,
    FLAIR_SLICES,
    PIXEL_SPACING_MM,
    SLICE_THICKNESS_MM,
    chest_ct,
    head_flair,
)
from rayhook.fhir.errors import InvalidRequest

_MAX_PATIENTS = 6
# Seed 16 shows both kinds of answer. The model knows no phantoms: of 25 plain heads it marked 14 as positive.
_HEAD_SEED, _CHEST_SEED = 16, 11
_LABELS = "labels.csv"
_STARTED = datetime(2026, 1, 12, 9, 0, tzinfo=UTC)
_TEST_FILES = (
    "CT_small.dcm",
    "J2K_pixelrep_mismatch.dcm",
    "JPEG2000.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "SC_rgb_rle.dcm",
)
_HEADER_TAGS = (
    "BodyPartExamined",
    "Modality",
    "PatientID",
    "PatientName",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesDescription",
    "SeriesInstanceUID",
    "StudyDate",
    "StudyDescription",
    "StudyInstanceUID",
    "StudyTime",
)


@dataclass(frozen=True, slots=True)
class DemoInstance:
    path: Path
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str


@dataclass(frozen=True, slots=True)
class DemoStudy:
    """One study of one patient. `patient_id` is the FHIR logical id, `started` an ISO 8601 date and time."""

    patient_id: str
    patient_display: str
    dicom_patient_id: str
    study_instance_uid: str
    modality: str
    description: str
    body_part: str | None
    started: str
    is_phantom: bool
    instances: tuple[DemoInstance, ...]


@dataclass(frozen=True, slots=True)
class Catalogue:
    studies: tuple[DemoStudy, ...]


def build_catalogue(work_dir: Path, dataset: Path | None) -> Catalogue:
    """Return the studies, writing what has to be written below `work_dir`.

    dataset: a folder with `labels.csv` and images, as a labelled data set comes, or a folder of DICOM files.
    Raises InvalidRequest if it is neither.
    """
    studies = [*_phantoms(work_dir / "phantoms"), *_test_files()]
    if dataset is not None:
        studies += _own(dataset, work_dir / "dataset")
    return Catalogue(tuple(studies))


def _own(dataset: Path, work_dir: Path) -> Iterator[DemoStudy]:
    if (dataset / _LABELS).is_file():
        return _labelled_images(dataset, work_dir)
    files = sorted(path for path in dataset.rglob("*") if path.is_file())
    studies = list(_studies_in(files))
    if not studies:
        raise InvalidRequest(f"the dataset folder holds neither {_LABELS} nor DICOM files")
    return iter(studies[:_MAX_PATIENTS])


def _phantoms(folder: Path) -> Iterator[DemoStudy]:
    for number, (kind, lesion) in enumerate((("lesion", True), ("plain", False))):
        series = _flair_phantom(kind, _STARTED + timedelta(hours=number))
        # The lesion's phantom and its plain twin share a seed: they differ by the lesion alone.
        slices = partial(head_flair, _HEAD_SEED, lesion=lesion)
        written = write_series(series, slices, folder, count=FLAIR_SLICES)
        yield _study(
            series, f"phantom-{kind}", f"Phantom {kind.capitalize()} (no patient)", written, phantom=True
        )
    series = _ct_phantom(_STARTED + timedelta(hours=2))
    written = write_series(series, partial(chest_ct, _CHEST_SEED), folder, count=CT_SLICES)
    yield _study(series, "phantom-chest", "Phantom Chest (no patient)", written, phantom=True)


def _flair_phantom(kind: str, started: datetime) -> Series:
    return Series(
        name=f"phantom-{kind}",
        patient_id=f"PHANTOM-{kind.upper()}",
        patient_name=f"PHANTOM^{kind.upper()}",
        modality="MR",
        body_part="BRAIN",
        study_description="PHANTOM MR head",
        series_description="PHANTOM axial T2 FLAIR",
        started=started,
        spacing_mm=PIXEL_SPACING_MM,
        thickness_mm=SLICE_THICKNESS_MM,
        window=(1050, 2100),
        comment="Phantom made by software; of no patient",
        timing_ms=(9000, 120, 2500),
    )


def _ct_phantom(started: datetime) -> Series:
    return Series(
        name="phantom-chest",
        patient_id="PHANTOM-CHEST",
        patient_name="PHANTOM^CHEST",
        modality="CT",
        body_part="CHEST",
        study_description="PHANTOM CT chest",
        series_description="PHANTOM axial CT",
        started=started,
        spacing_mm=1.4,
        thickness_mm=10.0,
        window=(-400, 1500),
        comment="Phantom made by software; of no patient",
    )


def _study(
    series: Series, patient_id: str, display: str, written: tuple[WrittenInstance, ...], *, phantom: bool
) -> DemoStudy:
    return DemoStudy(
        patient_id=patient_id,
        patient_display=display,
        dicom_patient_id=series.patient_id,
        study_instance_uid=study_uid(series),
        modality=series.modality,
        description=series.study_description,
        body_part=series.body_part,
        started=series.started.isoformat(),
        is_phantom=phantom,
        instances=tuple(
            DemoInstance(one.path, one.sop_instance_uid, one.sop_class_uid, one.series_instance_uid)
            for one in written
        ),
    )


def _test_files() -> Iterator[DemoStudy]:
    """Yield pydicom's own test files, each in another transfer syntax."""
    paths = [Path(path) for name in _TEST_FILES for path in get_testdata_files(name)]
    return _studies_in(paths, kind="test file")


def _studies_in(paths: Iterable[Path], *, kind: str = "DICOM folder") -> Iterator[DemoStudy]:
    """Yield the studies that the files belong to; what is no image of a study is left out."""
    by_uid: dict[str, tuple[Path, Dataset]] = {}
    for path in paths:
        header = _header(path)
        if header is not None:
            by_uid.setdefault(str(header.SOPInstanceUID), (path, header))
    headers = sorted(
        by_uid.values(),
        key=lambda pair: (str(pair[1].StudyInstanceUID), str(pair[1].SeriesInstanceUID)),
    )
    for uid, group in groupby(headers, key=lambda pair: str(pair[1].StudyInstanceUID)):
        yield _read_study(uid, list(group), kind)


def _header(path: Path) -> Dataset | None:
    try:
        header = dcmread(path, specific_tags=list(_HEADER_TAGS), stop_before_pixels=True)
    except InvalidDicomError:
        return None
    needed = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality")
    return header if all(header.get(keyword) for keyword in needed) else None


def _read_study(uid: str, files: list[tuple[Path, Dataset]], kind: str) -> DemoStudy:
    first = files[0][1]
    dicom_patient_id = str(first.get("PatientID") or "")
    return DemoStudy(
        patient_id=_logical_id(kind, dicom_patient_id or uid),
        patient_display=f"{_display(first)} ({kind})",
        dicom_patient_id=dicom_patient_id,
        study_instance_uid=uid,
        modality=str(first.Modality),
        description=str(first.get("StudyDescription") or first.get("SeriesDescription") or first.Modality),
        body_part=str(first.get("BodyPartExamined") or "") or None,
        started=_started(first),
        is_phantom=False,
        instances=tuple(
            DemoInstance(
                path, str(header.SOPInstanceUID), str(header.SOPClassUID), str(header.SeriesInstanceUID)
            )
            for path, header in files
        ),
    )


def _display(header: Dataset) -> str:
    name = " ".join(str(header.get("PatientName") or "").split("^")).strip()
    return name or str(header.get("PatientID") or "Unnamed")


def _started(header: Dataset) -> str:
    """Return StudyDate and StudyTime as if they were UTC; the epoch of this demo where there are none."""
    text = f"{header.get('StudyDate') or ''}{str(header.get('StudyTime') or '000000')[:6]}"
    try:
        return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC).isoformat()
    except ValueError:
        return _STARTED.isoformat()


def _logical_id(kind: str, name: str) -> str:
    """Spec: FHIR R4 datatypes, id: letters, digits, hyphen and dot, at most 64."""
    words = f"{kind}-{name}".lower()
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in words)[:64]


def _labelled_images(dataset: Path, work_dir: Path) -> Iterator[DemoStudy]:
    """Wrap the slices of a few patients into DICOM, those held out from training first."""
    with (dataset / _LABELS).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"path", "patient_id", "slice"} <= rows[0].keys():
        raise InvalidRequest(f"{_LABELS} needs the columns path, patient_id and slice")
    rows.sort(key=lambda row: (row.get("split") != "val", row["patient_id"], int(row["slice"])))
    patients = [list(group) for _, group in groupby(rows, key=lambda row: row["patient_id"])]
    for number, slices in enumerate(patients[:_MAX_PATIENTS]):
        yield _wrap(dataset, slices, work_dir, _STARTED + timedelta(days=1, hours=number))


def _wrap(dataset: Path, rows: list[dict[str, str]], work_dir: Path, started: datetime) -> DemoStudy:
    patient = rows[0]["patient_id"].replace("_", "-")
    series = Series(
        name=f"dataset-{patient}",
        patient_id=patient,
        patient_name=f"DATASET^{patient}",
        modality="MR",
        body_part="BRAIN",
        study_description="Data set MR head",
        series_description="axial FLAIR",
        started=started,
        spacing_mm=1.0,
        thickness_mm=5.0,
        window=None,
        comment="Wrapped from an image file: date, spacing and position are nominal",
        bits_stored=8,
        origin="DERIVED",
    )
    paths = [dataset / row["path"] for row in rows]
    written = write_series(series, partial(_read_images, paths), work_dir, count=len(paths))
    return _study(series, _logical_id("dataset", patient), f"{patient} (data set)", written, phantom=False)


def _read_images(paths: list[Path]) -> NDArray[Any]:
    images = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image is None:
            raise InvalidRequest(f"{path.name} is no image")
    return np.stack([image for image in images if image is not None])
