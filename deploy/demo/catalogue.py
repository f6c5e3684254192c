"""What the demo PACS holds and the demo EHR knows of: phantoms, a package's test files, a folder of one's own."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.data import get_testdata_files
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from rayhook.deploy.demo.phantom import (
    CT_SLICES,
    FLAIR_SLICES,
    PIXEL_SPACING_MM,
    SLICE_THICKNESS_MM,
    chest_ct,
    head_flair,
)
from rayhook.deploy.dicom_objects import HU_INTERCEPT, CTSlices, FlairSlices, Grid, ImageObject
from rayhook.deploy.dicom_series import Image, Patient, Series, WrittenInstance, write_image, written_instance
from rayhook.deploy.labelled_images import LABELS, LabelledImage, read_labelled_images
from rayhook.deploy.wrap import dicom_path, series_of, wrap
from rayhook.fhir.errors import InvalidRequest

_MAX_PATIENTS = 6
# Seed 39 shows both kinds of answer. The model knows no phantoms: of 60 plain heads it marked 4 and declined 51.
_HEAD_SEED, _CHEST_SEED = 39, 11
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
    if (dataset / LABELS).is_file():
        return _labelled_images(dataset, work_dir)
    files = sorted(path for path in dataset.rglob("*") if path.is_file())
    studies = list(_studies_in(files))
    if not studies:
        raise InvalidRequest(f"the dataset folder holds neither {LABELS} nor DICOM files")
    return iter(studies[:_MAX_PATIENTS])


def many_heads(work_dir: Path, count: int, *, images: int, first: int = 0) -> Catalogue:
    """Return `count` small studies, each of another patient, for whoever needs much to do.

    The pixels are the same in all of them, what names them is not.  images: of each study, from the head's middle.
    first: number of the first study, to make more of them later.
    """
    pixels: list[NDArray[Any]] = []

    def slices() -> NDArray[Any]:
        if not pixels:
            middle = (FLAIR_SLICES - images) // 2
            pixels.append(head_flair(_HEAD_SEED, lesion=True)[middle : middle + images])
        return pixels[0]

    return Catalogue(
        tuple(
            _phantom_study(
                _flair_phantom(f"bench-{number}", _STARTED + timedelta(minutes=number)),
                slices,
                work_dir,
                count=images,
            )
            for number in range(first, first + count)
        )
    )


def _phantoms(folder: Path) -> Iterator[DemoStudy]:
    for number, (kind, lesion) in enumerate((("lesion", True), ("plain", False))):
        # The lesion's phantom and its plain twin share a seed: they differ by the lesion alone.
        slices = partial(head_flair, _HEAD_SEED, lesion=lesion)
        yield _phantom_study(_flair_phantom(kind, _STARTED + timedelta(hours=number)), slices, folder)
    series = _ct_phantom(_STARTED + timedelta(hours=2))
    yield _phantom_study(series, lambda: chest_ct(_CHEST_SEED) - HU_INTERCEPT, folder, count=CT_SLICES)
    # One patient with two studies a year apart: what was there before stands beside what is there now.
    for kind, started, lesion in (
        ("before", _STARTED - timedelta(days=364), False),
        ("after", _STARTED, True),
    ):
        slices = partial(head_flair, _HEAD_SEED, lesion=lesion)
        yield _phantom_study(
            _flair_phantom(f"follow-up-{kind}", started, patient="follow-up"), slices, folder
        )


def _phantom_study(
    series: Series, slices: Callable[[], NDArray[Any]], folder: Path, *, count: int = FLAIR_SLICES
) -> DemoStudy:
    """Return the study of `count` images; `slices` is only called where a file is missing."""
    paths = [folder / series.study / series.name / f"{number:03d}.dcm" for number in range(1, count + 1)]
    if not all(path.exists() for path in paths):
        for number, (path, pixels) in enumerate(zip(paths, slices(), strict=True), start=1):
            write_image(series, Image(str(number), number, pixels), path)
    written = tuple(written_instance(series, str(number), path) for number, path in enumerate(paths, start=1))
    patient_id = series.patient.id.lower()
    display = patient_id.replace("-", " ").title()
    return _study(
        series,
        written,
        patient_id=patient_id,
        display=f"{display} (no patient)",
        started=series.started or _STARTED,
        phantom=True,
    )


def _flair_phantom(kind: str, started: datetime, *, patient: str | None = None) -> Series:
    return _phantom_series(
        kind,
        patient or kind,
        FlairSlices(Grid(PIXEL_SPACING_MM, SLICE_THICKNESS_MM, "HFS"), timing_ms=(9000, 120, 2500)),
        body_part="BRAIN",
        study_description="PHANTOM MR head",
        series_description="PHANTOM axial T2 FLAIR",
        started=started,
        window=(1050, 2100),
    )


def _ct_phantom(started: datetime) -> Series:
    return _phantom_series(
        "chest",
        "chest",
        CTSlices(Grid(1.4, 10.0, "HFS"), intercept=HU_INTERCEPT, unit="HU"),
        body_part="CHEST",
        study_description="PHANTOM CT chest",
        series_description="PHANTOM axial CT",
        started=started,
        window=(-400, 1500),
    )


def _phantom_series(
    kind: str,
    patient: str,
    image_object: ImageObject,
    *,
    body_part: str,
    study_description: str,
    series_description: str,
    started: datetime,
    window: tuple[float, float],
) -> Series:
    return Series(
        study=f"phantom-{kind}",
        name="1",
        patient=Patient(f"PHANTOM-{patient.upper()}", f"PHANTOM^{patient.upper()}"),
        image_object=image_object,
        body_part=body_part,
        study_description=study_description,
        series_description=series_description,
        number=1,
        bits_stored=12,
        comment="Phantom made by software; of no patient",
        manufacturer="Rayhook demo",
        started=started,
        window=window,
    )


def _study(
    series: Series,
    written: tuple[WrittenInstance, ...],
    *,
    patient_id: str,
    display: str,
    started: datetime,
    phantom: bool = False,
) -> DemoStudy:
    return DemoStudy(
        patient_id=patient_id,
        patient_display=display,
        dicom_patient_id=series.patient.id,
        study_instance_uid=written[0].study_instance_uid,
        modality=series.image_object.modality,
        description=series.study_description,
        body_part=series.body_part,
        started=started.isoformat(),
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
    """Wrap the images of a few patients into DICOM, those held out from training first."""
    images = sorted(
        read_labelled_images(dataset),
        key=lambda image: (image.row.columns.get("split") != "val", *image.place),
    )
    patients = [list(group) for _, group in groupby(images, key=lambda image: image.row.patient_id)]
    few = [image for patient in patients[:_MAX_PATIENTS] for image in patient]
    for number, (_, study) in enumerate(groupby(few, key=lambda image: image.place[:2])):
        yield _wrapped_study(list(study), work_dir, _STARTED + timedelta(days=1, hours=number))


def _wrapped_study(images: list[LabelledImage], work_dir: Path, started: datetime) -> DemoStudy:
    patient = images[0].row.patient_id
    written = tuple(wrap(image, work_dir / dicom_path(image), started=started) for image in images)
    return _study(
        series_of(images[0], started=started),
        written,
        patient_id=_logical_id("dataset", patient),
        display=f"{patient} (data set)",
        started=started,
    )
