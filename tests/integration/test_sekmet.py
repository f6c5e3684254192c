"""Backend services against sekmet-fhir: a FHIR R4 server that verifies assertions and enforces system scopes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from rayhook.auth.backend import BackendTokens
from rayhook.auth.key_rotation import rotate_client_keys
from rayhook.auth.keyring_file import KeyringFile
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, BackendClient, CDSClient
from rayhook.auth.scopes import ScopeSet
from rayhook.auth.smart import public_jwks
from rayhook.fhir.errors import RayhookError, UpstreamRefused
from rayhook.fhir.transport import Transport
from rayhook.inference.authority import Authority, AuthorizedReader
from rayhook.inference.delivery import Delivery, deliver
from rayhook.inference.job_table import Authorization
from rayhook.inference.report import build_resources
from rayhook.inference.results import DeliveryState
from tests.conftest import absent
from tests.ports import free_port
from tests.unit.inference import samples

pytestmark = pytest.mark.sekmet

OPERATOR = "operator-of-the-test"
READS = ("system/Patient.r", "system/Endpoint.rs")
# sekmet asks for the right to create anything before it looks into a transaction.
WRITES = ("system/*.crs",)


@dataclass(frozen=True)
class Server:
    origin: str
    folder: Path
    keyring: Keyring
    transport: Transport

    @property
    def fhir(self) -> str:
        return f"{self.origin}/fhir"

    def ehr(self, *scopes: str, client_id: str = "rayhook") -> EHR:
        return EHR(
            id="sekmet",
            name="sekmet",
            fhir_base_urls=(self.fhir,),
            cds_client=CDSClient(issuer=self.origin, jwks_url=f"{self.origin}/jwks"),
            backend=BackendClient(client_id=client_id, scopes=scopes),
        )

    def tokens(self, issued: list[str] | None = None) -> BackendTokens:
        told = [] if issued is None else issued
        return BackendTokens(self.transport, self.keyring, issued=lambda _, scopes: told.append(str(scopes)))

    def operator(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return httpx.request(
            method,
            f"{self.fhir}/{path}",
            json=body,
            headers={"Authorization": f"Bearer {OPERATOR}", "Content-Type": "application/fhir+json"},
            timeout=30,
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if find_spec("sekmet") is None:
        absent("sekmet-fhir")
    folder = tmp_path_factory.mktemp("sekmet")
    keyring = Keyring.load_or_create(folder / "keyring.json")
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    client = {"jwks": public_jwks(keyring)}
    # sekmet tries the keys in turn and fails on one of another type than the signature's.
    rsa = [key for key in public_jwks(keyring)["keys"] if key["kty"] == "RSA"]
    settings = {
        "base_url": f"{origin}/fhir",
        "host": "127.0.0.1",
        "port": port,
        "data_dir": str(folder / "data"),
        "simulator": {"enabled": False},
        "server_auth": {
            "types": ["bearer", "smart"],
            "tokens": [OPERATOR],
            "token_lifetime": 300,
            "smart_clients": [
                {"client_id": "rayhook", "scopes": " ".join((*READS, *WRITES)), **client},
                {"client_id": "reader", "scopes": " ".join(READS), **client},
                {"client_id": "rsa", "scopes": " ".join(READS), "jwks": {"keys": rsa}},
            ],
        },
    }
    (folder / "settings.yaml").write_text(json.dumps(settings))
    with ExitStack() as stack:
        log = stack.enter_context((folder / "server.log").open("wb"))
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("sekmet")), "serve", "--config", "settings.yaml"],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        )
        stack.callback(process.wait, timeout=20)
        stack.callback(process.terminate)
        _await(f"{origin}/fhir/.well-known/smart-configuration", process, folder / "server.log")
        transport = Transport(allow_loopback_http=True)
        stack.callback(transport.close)
        found = Server(origin, folder, keyring, transport)
        _fill(found)
        yield found


def _await(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(address, timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail("sekmet did not start in time")


def _fill(server: Server) -> None:
    """A patient with a study and its order, as a hospital's own systems would have made them."""
    subject = {"reference": "Patient/patient-1"}
    resources = [
        {"resourceType": "Patient", "id": "patient-1", "identifier": [{"system": "urn:x", "value": "RH-1"}]},
        {
            "resourceType": "ServiceRequest",
            "id": "order-1",
            "status": "active",
            "intent": "order",
            "subject": subject,
        },
        {
            "resourceType": "ImagingStudy",
            "id": "study-1",
            "status": "available",
            "subject": subject,
            "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{samples.STUDY_UID}"}],
        },
    ]
    for resource in resources:
        answer = server.operator("PUT", f"{resource['resourceType']}/{resource['id']}", resource)
        assert answer.is_success, answer.text


@pytest.fixture
def ehr(server: Server) -> EHR:
    return server.ehr(*READS, *WRITES)


def write(server: Server, ehr: EHR, authority: Authority, hook: Authorization | None = None) -> Delivery:
    reference = samples.reference(fhir_base_url=server.fhir)
    result = samples.analysed()
    resources = build_resources(reference, result, samples.manifest(), organization="Test site")
    return deliver(
        server.transport, ehr, reference, hook, result=result, resources=resources, authority=authority
    )


def test_a_token_comes_with_the_scopes_that_were_asked_for(server: Server, ehr: EHR) -> None:
    token = server.tokens().token(ehr)
    assert token.scopes == ScopeSet.parse(" ".join((*READS, *WRITES)))


def test_a_background_read_goes_with_our_own_token(server: Server, ehr: EHR) -> None:
    reader = AuthorizedReader(server.transport, ehr, server.fhir, Authority(server.tokens()))
    assert reader.read("Patient", "patient-1", hook=None)["id"] == "patient-1"


def test_the_server_refuses_what_the_scopes_do_not_cover(server: Server) -> None:
    ehr = server.ehr(*READS, client_id="reader")
    reader = AuthorizedReader(server.transport, ehr, server.fhir, Authority(server.tokens()))
    with pytest.raises(UpstreamRefused):
        reader.read("ServiceRequest", "order-1", hook=None)


def test_a_result_is_written_without_any_hooks_token(server: Server, ehr: EHR) -> None:
    delivery = write(server, ehr, Authority(server.tokens()))
    assert (delivery.state, delivery.detail) == (DeliveryState.DELIVERED, None)
    types = {reference.partition("/")[0] for reference in delivery.written}
    assert {"DiagnosticReport", "Observation", "Device", "Provenance"} <= types


def test_the_written_report_is_of_the_patient_and_preliminary(server: Server, ehr: EHR) -> None:
    delivery = write(server, ehr, Authority(server.tokens()))
    path = next(one for one in delivery.written if one.startswith("DiagnosticReport/"))
    report = server.operator("GET", path).json()
    assert (report["subject"]["reference"], report["status"]) == ("Patient/patient-1", "preliminary")


def test_a_result_written_twice_is_there_once(server: Server, ehr: EHR) -> None:
    for _ in range(2):
        write(server, ehr, Authority(server.tokens()))
    found = server.operator("GET", "DiagnosticReport?subject=Patient/patient-1").json()
    assert found["total"] == 1


def test_a_hooks_token_that_may_not_write_gives_way_to_our_own(server: Server, ehr: EHR) -> None:
    hook = Authorization("hook-token", "patient/Patient.r", time.time() + 300)
    assert write(server, ehr, Authority(server.tokens()), hook).state is DeliveryState.DELIVERED


def test_a_hooks_token_that_the_server_does_not_know_gives_way_to_our_own(server: Server, ehr: EHR) -> None:
    hook = Authorization("revoked-meanwhile", "patient/*.cruds", time.time() + 300)
    assert write(server, ehr, Authority(server.tokens()), hook).state is DeliveryState.DELIVERED


def test_without_the_right_to_write_nothing_is_written(server: Server) -> None:
    ehr = server.ehr(*READS, client_id="reader")
    delivery = write(server, ehr, Authority(server.tokens()))
    assert (delivery.state, delivery.detail) == (DeliveryState.NOT_PERMITTED, "no_authorization")


def test_scopes_beyond_the_registration_are_not_granted(server: Server) -> None:
    token = server.tokens().token(server.ehr(*READS, *WRITES, client_id="reader"))
    assert not token.scopes.permits("system", "DiagnosticReport", "c")


def test_a_client_that_is_not_registered_gets_no_token(server: Server) -> None:
    with pytest.raises(UpstreamRefused) as refusal:
        server.tokens().token(server.ehr(*READS, client_id="stranger"))
    assert refusal.value.code == "oauth_invalid_client"


def test_one_token_serves_until_it_runs_out(server: Server, ehr: EHR) -> None:
    issued: list[str] = []
    tokens = server.tokens(issued)
    assert tokens.token(ehr) is tokens.token(ehr)
    assert len(issued) == 1


def test_a_token_the_server_rejects_is_replaced_once(server: Server, ehr: EHR) -> None:
    tokens = server.tokens()
    slot = tokens._slot((ehr.id, READS + WRITES))
    slot.token = replace(tokens.token(ehr), access_token="a.b.c")
    assert write(server, ehr, Authority(tokens)).state is DeliveryState.DELIVERED


def test_rs384_is_understood_too(server: Server) -> None:
    client = BackendClient(client_id="rsa", scopes=READS, assertion_algorithm="RS384")
    assert server.tokens().token(replace(server.ehr(), backend=client)).access_token


def test_after_a_rotation_the_published_next_key_signs(server: Server, ehr: EHR) -> None:
    """The server still has the set from before: it holds the key that signs now."""
    before = server.keyring.assertion_key("ES384").kid
    rotate_client_keys(KeyringFile(server.folder / "keyring.json"))
    assert server.keyring.assertion_key("ES384").kid != before
    assert server.tokens().token(ehr).access_token


def test_an_authorization_server_that_is_down_leaves_the_hooks_token(server: Server, ehr: EHR) -> None:
    away = replace(ehr, fhir_base_urls=("http://127.0.0.1:9/fhir",))
    with pytest.raises(RayhookError):
        server.tokens().token(away)
    hook = Authorization("t", "patient/Patient.r", time.time() + 300)
    assert Authority(server.tokens()).choose(away, hook, lambda _: False) is hook
