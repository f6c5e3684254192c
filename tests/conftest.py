"""Fixtures that every test may use. Real peers and real data: absent ones skip, and fail where they are required."""

import os
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = os.environ.get("RAYHOOK_REQUIRE_PEERS") == "1"
DATASETS = Path(os.environ.get("RAYHOOK_DATASETS", ROOT.parent / "shared" / "data"))
UNPACKED = ROOT / ".cache" / "datasets"


def absent(what: str) -> None:
    """Skip the test, or fail it where every peer is required."""
    if REQUIRED:
        pytest.fail(f"{what} is required here and was not found", pytrace=False)
    pytest.skip(f"{what} was not found")


def _unpack(archive: str, folder: str) -> Path:
    target = UNPACKED / folder
    if (target / ".complete").exists():
        return target
    source = DATASETS / archive
    if not source.exists():
        absent(f"the data set {archive}")
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(source) as tar:
        tar.extractall(target, filter="data")
    (target / ".complete").touch()
    return target


@pytest.fixture(scope="session")
def mri_lgg() -> Path:
    """The labelled FLAIR slices: a folder with `images/` and `labels.csv`."""
    return _unpack("mri_lgg.tar", "mri_lgg") / "mri_lgg"


@pytest.fixture(scope="session")
def lidc_dicom() -> Path:
    """One patient's original CT slices: a folder of DICOM files."""
    return _unpack("dicom_lidc_0001.tar.xz", "dicom_lidc_0001")
