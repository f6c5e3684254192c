"""The service as a process of its own, whose KMS is away when it starts and comes back."""

import os
import subprocess
import sys
import time
from urllib.parse import urlsplit

import httpx
import pytest
from moto.server import ThreadedMotoServer

from rayhook.deploy.demo.ehr import demo_registry_toml
from rayhook.deploy.kms import open_keyring
from rayhook.deploy.storage_settings import StorageSettings
from tests.doubles.kms import make_key
from tests.doubles.object_store import object_store
from tests.ports import free_url

AWAIT_S = 120.0


@pytest.fixture
def address():
    """Where the KMS will be."""
    return free_url()


@pytest.fixture
def service(tmp_path, address):
    """Yield the base URL of a service whose keyring is wrapped by a KMS that does not answer now."""
    url = free_url()
    with object_store():
        key = make_key()
        open_keyring(StorageSettings(data_dir=tmp_path / "data", kms_key=key.uri))
    (tmp_path / "ehrs.toml").write_text(
        demo_registry_toml(ehr_base_url="http://127.0.0.1:9", pacs_base_url="http://127.0.0.1:9")
    )
    environment = os.environ | {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": address,
        "RAYHOOK_DATA_DIR": str(tmp_path / "data"),
        "RAYHOOK_EHR_REGISTRY": str(tmp_path / "ehrs.toml"),
        "RAYHOOK_ENVIRONMENT": "development",
        "RAYHOOK_KMS_KEY": key.uri,
        "RAYHOOK_MODELS": "mri-flair-tumour",
        "RAYHOOK_PORT": str(urlsplit(url).port),
        "RAYHOOK_PUBLIC_BASE_URL": url,
    }
    command = "from rayhook.deploy.cli import main; main()"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", command, "serve"], env=environment, stdout=log, stderr=log
        )
        try:
            yield url
        finally:
            process.kill()
            process.wait(timeout=30)


def until(url, holds):
    """Ask until the answer is as it should be; return it."""
    deadline = time.monotonic() + AWAIT_S
    answer = None
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(url, timeout=5)
            if holds(answer):
                return answer
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"{url} did not become as it should; last: {answer and answer.text}")


def test_it_reads_nothing_and_says_so_until_the_kms_is_back(service, address, tmp_path):
    ready = until(f"{service}/health/ready", lambda answer: "kms" in answer.text)
    assert (ready.status_code, ready.json()["checks"]) == (503, {"kms": "unavailable"})
    assert httpx.get(f"{service}/health/live").status_code == 200
    refused = httpx.get(f"{service}/cds-services")
    assert (refused.status_code, "kms_unavailable" in refused.text) == (503, True)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["keyring.json"]

    kms = ThreadedMotoServer(ip_address="127.0.0.1", port=urlsplit(address).port, verbose=False)
    kms.start()
    try:
        until(f"{service}/cds-services", lambda answer: answer.status_code == 200)
    finally:
        kms.stop()
    assert "kms" not in httpx.get(f"{service}/health/ready").json()["checks"]
