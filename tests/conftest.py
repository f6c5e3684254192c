"""Fixtures that every test may use. Real peers and real data: absent ones skip, and fail where they are required."""

import fcntl
import os
import tarfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayhook.auth.keys import Keyring
from rayhook.deploy.database import migrate
from tests import leaks, storage
from tests.stalls import StallWatch, forget_what_is_left

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = os.environ.get("RAYHOOK_REQUIRE_PEERS") == "1"
DATASETS = Path(os.environ.get("RAYHOOK_DATASETS", ROOT.parent / "shared" / "data"))
PROFILES = Path(os.environ.get("RAYHOOK_PROFILES", ROOT.parent / "shared" / "profiles"))
UNPACKED = ROOT / ".cache" / "datasets"
STALLS = StallWatch()


def absent(what: str) -> None:
    """Skip the test, or fail it where every peer is required."""
    if REQUIRED:
        pytest.fail(f"{what} is required here and was not found", pytrace=False)
    pytest.skip(f"{what} was not found")


def pytest_configure() -> None:
    STALLS.start()


def pytest_collection_finish() -> None:
    forget_what_is_left()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Between modules, whose fixtures have ended."""
    result = yield
    if nextitem is None or nextitem.path != item.path:
        forget_what_is_left()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where every peer is required nothing is skipped, whoever skips it. Nothing printed tells of a patient."""
    report = yield
    if REQUIRED and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped where nothing may be: {report.longrepr}"
    leak = leaks.in_output(report) if report.passed else None
    if leak is not None:
        report.outcome, report.longrepr = "failed", leak
        leaks.told_by(item.config, [f"{item.nodeid}: {leak}"])
    if report.failed:
        STALLS.tell(report)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    leaks.search_logs(session)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    leaks.told_by(node.config, getattr(node, "workeroutput", {}).get("leaks", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    leaks.summary(terminalreporter)


def _unpack(archive: str, folder: str, *, source_folder: Path = DATASETS) -> Path:
    target = UNPACKED / folder
    if (target / ".complete").exists():
        return target
    source = source_folder / archive
    if not source.exists():
        absent(archive)
    target.mkdir(parents=True, exist_ok=True)
    with (target / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker must not write over what this one reads
        if not (target / ".complete").exists():
            with tarfile.open(source) as tar:
                tar.extractall(target, filter="data")
            (target / ".complete").touch()
    return target


@pytest.fixture(scope="module")
def keyring_to_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A keyring to copy: making RSA keys takes a second."""
    path = tmp_path_factory.mktemp("prepared") / "keyring.json"
    Keyring.load_or_create(path)
    return path


@pytest.fixture(scope="session")
def mri_lgg() -> Path:
    """The labelled FLAIR slices: a folder with `images/` and `labels.csv`."""
    return _unpack("mri_lgg.tar", "mri_lgg") / "mri_lgg"


@pytest.fixture(scope="session")
def ct_lidc() -> Path:
    """The labelled crops around lung nodules."""
    return _unpack("ct_lidc.tar", "ct_lidc") / "ct_lidc"


@pytest.fixture(scope="session")
def cxr_nih() -> Path:
    """The labelled chest films: pneumonia or no finding."""
    return _unpack("cxr_nih.tar", "cxr_nih") / "cxr_nih"


@pytest.fixture(scope="session")
def cxr_jsrt() -> Path:
    """The labelled chest films: nodules."""
    return _unpack("cxr_jsrt.tar", "cxr_jsrt") / "cxr_jsrt"


@pytest.fixture(scope="session")
def mg_mias() -> Path:
    """The labelled mammograms."""
    return _unpack("mg_mias.tar", "mg_mias") / "mg_mias"


@pytest.fixture(scope="session")
def lidc_dicom() -> Path:
    """One patient's original CT slices: a folder of DICOM files."""
    return _unpack("dicom_lidc_0001.tar.xz", "dicom_lidc_0001")


@pytest.fixture(scope="session")
def judges() -> Any:
    """Validators of FHIR R4 that are not ours, with the profiles of BALP and AI Transparency."""
    core = _unpack("hl7.fhir.r4.core-4.0.1.tar.gz", "fhir_r4_core", source_folder=PROFILES)
    _unpack("balp_aitransparency_profiles.tar.gz", "fhir_profiles", source_folder=PROFILES)
    from tests.conformance.fhir_judges import Judges
    from tests.peers.npm import installed

    installed("fhir")
    folders = [core / "hl7.fhir.r4.core#4.0.1" / "package", core.parent / "fhir_profiles" / "balp-norm"]
    return Judges(tuple(folders))


@pytest.fixture(scope="session")
def fhir_examples() -> Path:
    """The guides' own resources, which every set-up of the judges has to let pass."""
    return _unpack("official_examples.tar.gz", "fhir_examples", source_folder=PROFILES)


@pytest.fixture(scope="session")
def wheel_of_postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[storage.Wheel]:
    """One PostgreSQL of this process of the tests; started where a test asks for it."""
    with storage.wheel(tmp_path_factory.mktemp("postgresql")) as wheel:
        yield wheel


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "rayhook.sqlite3"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[storage.Storage]:
    """An empty, migrated database of the test's own: the test runs on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        yield storage.sqlite(tmp_path / "storage", request.getfixturevalue("migrated_sqlite"))
        return
    with request.getfixturevalue("wheel_of_postgresql").copied() as made:
        yield made
