"""DICOM objects of every bundled model, over phantoms and real images, before dciodvfy."""

import shutil
import subprocess
from pathlib import Path

import pytest

from rayhook.deploy.demo.catalogue import build_catalogue
from rayhook.deploy.dicomize import plan_dicomization
from rayhook.deploy.local import local_analyser
from rayhook.inference.local import write_objects
from tests.conftest import absent
from tests.unit.inference.dicom_objects import complaints

ALWAYS = ("Device UID", "Standard Extended SOP Class", "needed to build DICOMDIR")


def written(paths: list[Path], model: str, folder: Path) -> list[Path]:
    with local_analyser((model,)) as analyser:
        return list(write_objects(paths, analyser, folder, organization="Demo hospital"))


def films(dataset: Path, folder: Path) -> list[Path]:
    list(plan_dicomization(dataset, folder, limit=4).write())
    return [folder]


def check(paths: list[Path], folder: Path, kinds: set[str]) -> None:
    """dciodvfy has nothing to say but what is documented."""
    assert kinds <= {path.stem for path in paths}
    for path in paths:
        told = [
            one for one in complaints(path.read_bytes(), folder) if not any(known in one for known in ALWAYS)
        ]
        assert told == [], path.stem


def test_phantoms_of_heads(tmp_path):
    catalogue = build_catalogue(tmp_path / "pacs", None)
    paths = [i.path for study in catalogue.studies if study.is_phantom for i in study.instances]
    objects = written(paths, "mri-flair-tumour", tmp_path / "out")
    check(objects, tmp_path, {"sr", "parametric_map", "secondary_capture"})


@pytest.mark.dataset
def test_a_real_ct_series(tmp_path, lidc_dicom):
    objects = written(sorted(lidc_dicom.rglob("*.dcm"))[:20], "ct-lung-nodule", tmp_path / "out")
    check(objects, tmp_path, {"sr"})


@pytest.mark.dataset
def test_real_films_of_pneumonia(tmp_path, cxr_nih):
    objects = written(films(cxr_nih, tmp_path / "films"), "cxr-pneumonia", tmp_path / "out")
    check(objects, tmp_path, {"sr"})


@pytest.mark.dataset
def test_real_films_of_nodules(tmp_path, cxr_jsrt):
    objects = written(films(cxr_jsrt, tmp_path / "films"), "cxr-nodule", tmp_path / "out")
    check(objects, tmp_path, {"sr"})


@pytest.mark.dataset
def test_real_slices_of_heads(tmp_path, mri_lgg):
    objects = written(films(mri_lgg, tmp_path / "slices"), "mri-flair-tumour", tmp_path / "out")
    check(objects, tmp_path, {"sr"})


def test_dcmtk_reads_the_report(tmp_path, dsrdump):
    catalogue = build_catalogue(tmp_path / "pacs", None)
    study = next(study for study in catalogue.studies if study.is_phantom and study.modality == "MR")
    objects = written([i.path for i in study.instances], "mri-flair-tumour", tmp_path / "out")
    (report,) = (path for path in objects if path.stem == "sr")
    told = subprocess.run([dsrdump, report], capture_output=True, text=True, check=True, timeout=30)
    assert "Comprehensive 3D SR Document" in told.stdout
    assert "Neoplasm of brain" in told.stdout
    assert not [line for line in told.stderr.splitlines() if line.startswith("E:")]


@pytest.fixture
def dsrdump() -> str:
    program = shutil.which("dsrdump")
    if program is None:
        absent("dsrdump (Debian dcmtk)")
    return str(program)
