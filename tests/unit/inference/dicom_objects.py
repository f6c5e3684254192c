"""Results to make DICOM objects from, and the judge of what comes out: dciodvfy, which is not ours."""

import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydicom import Dataset, dcmread

from rayhook.inference.analysis import Analyser
from rayhook.inference.decode import Decoder
from rayhook.inference.dicom_results import DICOMObject, build_objects
from rayhook.inference.registry import Coding, Manifest
from rayhook.inference.study import AnalysisStatus, Finding, Mark, StudyResult
from tests.unit.inference.images import SpotEngine, dicom_slice, package
from tests.unit.inference.samples import SNOMED

KINDS = ("sr", "parametric_map", "secondary_capture")
LUNG = Coding(SNOMED, "39607008", "Lung structure")
CANCER = Coding(SNOMED, "162573006", "Suspected lung cancer")
STUDY: dict[str, object] = {
    "PatientBirthDate": "19700101",
    "PatientSex": "F",
    "StudyDate": "20260312",
    "StudyTime": "101500",
    "StudyID": "S1",
    "AccessionNumber": "A1",
    "ReferringPhysicianName": "DOCTOR^DEMO",
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.1.77",
    "PositionReferenceIndicator": "",
}


@cache
def analysed(*, noise: bool = False, lesion: bool = True) -> tuple[StudyResult, Manifest]:
    """Return what the small model makes of a study: an answer, or none where the images are noise."""
    files = [dicom_slice(n, lesion=lesion and 3 <= n <= 5, noise=noise, **STUDY) for n in range(1, 9)]
    return analyse(files)


def analyse(files: list[bytes]) -> tuple[StudyResult, Manifest]:
    with TemporaryDirectory() as folder, Decoder() as decoder:
        model = package(Path(folder))
        result = Analyser((model,), {model.manifest.id: SpotEngine()}, decoder).study(files)
    return result, model.manifest


def radiograph(**changes: object) -> tuple[StudyResult, Manifest]:
    """Return a result over a chest film, whose header says what such headers say."""
    result, manifest = analysed()
    header = source(result)
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "FrameOfReferenceUID",
        "SliceThickness",
    ):
        if keyword in header:
            delattr(header, keyword)
    header.Modality, header.SOPClassUID = "DX", "1.2.840.10008.5.1.4.1.1.1.1"
    header.BodyPartExamined, header.PatientOrientation = "CHEST", ["L", "F"]
    header.ImagerPixelSpacing = [0.2, 0.2]
    for keyword, value in changes.items():
        setattr(header, keyword, value)
    lungs = replace(manifest.labels[0], finding=CANCER, body_site=LUNG)
    of_films = {"sop_class_uid": str(header.SOPClassUID), "sha256": "d" * 64}
    images = tuple(replace(i, **of_films) for i in result.instances)
    return (
        replace(result, source_header=written(header), instances=images, findings=(_cancer(),)),
        replace(manifest, labels=(lungs,), modality="DX"),
    )


def rated_points(count: int = 3) -> tuple[StudyResult, Manifest]:
    """Return a result of a model that rates points of a chest CT."""
    result, manifest = analysed()
    header = source(result)
    header.Modality, header.SOPClassUID, header.BodyPartExamined = "CT", "1.2.840.10008.5.1.4.1.1.2", "CHEST"
    marks = tuple(
        Mark(
            row=20 + n, column=30, score=0.9, probability=None if n == 1 else 0.8 - n / 1000, positive=n != 1
        )
        for n in range(count)
    )
    of_slices = {"sop_class_uid": str(header.SOPClassUID), "sha256": "c" * 64}
    first, *others = (replace(i, **of_slices) for i in result.instances)
    lungs = replace(manifest.labels[0], finding=CANCER, body_site=LUNG)
    return (
        replace(
            result,
            source_header=written(header),
            instances=(replace(first, marks=marks), *others),
            findings=(_cancer(),),
        ),
        replace(manifest, labels=(lungs,), modality="CT"),
    )


def _cancer() -> Finding:
    return Finding(
        code=CANCER.code,
        system=CANCER.system,
        display=CANCER.display,
        probability=0.8,
        threshold=0.4,
        positive=True,
        body_site_code=LUNG.code,
        body_site_display=LUNG.display,
    )


def source(result: StudyResult) -> Dataset:
    return dcmread(BytesIO(result.source_header), force=True)


def written(header: Dataset) -> bytes:
    buffer = BytesIO()
    header.save_as(buffer, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


def with_header(result: StudyResult, **changes: object) -> StudyResult:
    """Return the result with another header; None leaves an attribute out."""
    header = source(result)
    for keyword, value in changes.items():
        if value is None:
            header.pop(keyword, None)
        else:
            setattr(header, keyword, value)
    return replace(result, source_header=written(header))


def objects_of(result: StudyResult, manifest: Manifest) -> dict[str, DICOMObject]:
    made = build_objects(result.source_header, result, manifest, organization="Demo hospital", kinds=KINDS)
    return {one.kind: one for one in made}


def datasets_of(result: StudyResult, manifest: Manifest) -> dict[str, Dataset]:
    return {kind: dcmread(BytesIO(one.data)) for kind, one in objects_of(result, manifest).items()}


def complaints(data: bytes, folder: Path) -> list[str]:
    """Return what dciodvfy has to say, errors and warnings."""
    program = shutil.which("dciodvfy", path=str(Path(sys.executable).parent)) or "dciodvfy"
    path = folder / "object.dcm"
    path.write_bytes(data)
    told = subprocess.run([program, str(path)], capture_output=True, text=True, check=False, timeout=60)
    lines = (told.stdout + told.stderr).splitlines()
    return [line for line in lines if line.startswith(("Error", "Warning"))]


def errors(data: bytes, folder: Path) -> list[str]:
    return [line for line in complaints(data, folder) if line.startswith("Error")]


def concept(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def find(items: Dataset, name: str) -> list[Dataset]:
    """Return the content items of that name, at any depth."""
    found = []
    for item in items.get("ContentSequence", ()):
        if "ConceptNameCodeSequence" in item and concept(item) == name:
            found.append(item)
        found += find(item, name)
    return found


def is_answered(result: StudyResult) -> bool:
    return result.status is AnalysisStatus.ANALYSED


def grid(dataset: Dataset) -> np.ndarray:
    return np.frombuffer(dataset.FloatPixelData, np.float32).reshape(dataset.Rows, dataset.Columns)
