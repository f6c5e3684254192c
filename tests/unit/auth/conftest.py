"""Parts that the tests of this folder share: a registered EHR with its keys, a database, a key server."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey
from sqlmodel import SQLModel

from rayhook.auth.database_types import Sessions
from rayhook.auth.jose import read_key_set
from rayhook.auth.jwks import JWKSCache
from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import PatientKeyRow
from rayhook.auth.registry import EHR, CDSClient, EHRRegistry, SMARTClient
from rayhook.auth.replay import UsedJTI
from rayhook.auth.sessions import SMARTLaunchRow, SMARTSessionRow
from rayhook.deploy.database import Database, create_database
from rayhook.fhir.transport import Transport

AUDIENCE = "https://rayhook.example.org/cds-services/rayhook-patient-view"
ISSUER = "https://ehr.example.org"
FHIR_BASE = "https://fhir.example.org/r4"
TABLES = [
    SQLModel.metadata.tables[str(row.__tablename__)]
    for row in (PatientKeyRow, UsedJTI, SMARTLaunchRow, SMARTSessionRow)
]


@dataclass
class Clock:
    """Time that moves when the test says so."""

    now: float = field(default_factory=lambda: float(int(time.time())))

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class KeyServer:
    """A small web server whose answers a test sets by path; it counts what it was asked."""

    base_url: str
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    delay_s: float = 0.0

    def answer(self, path: str, document: object, *, status: int = 200) -> None:
        self.answers[path] = (status, json.dumps(document).encode())

    def count(self, path: str) -> int:
        return sum(asked == path for _, asked, _ in self.requests)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring.load_or_create(tmp_path_factory.mktemp("keyring") / "keyring.json")


@pytest.fixture(scope="module")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('database') / 'auth.db'}"


@pytest.fixture(scope="module")
def database(database_url: str) -> Iterator[Database]:
    database = create_database(database_url)
    SQLModel.metadata.create_all(database.engine, tables=TABLES)
    yield database
    database.close()


@pytest.fixture
def sessions(database: Database) -> Sessions:
    return database.sessions


@pytest.fixture(scope="session")
def ec_key() -> ECKey:
    return ECKey.generate_key("P-384", {"kid": "ec-1", "use": "sig"})


@pytest.fixture(scope="session")
def rsa_key() -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": "rsa-1", "use": "sig"})


def jwks_of(*keys: ECKey | RSAKey) -> dict[str, Any]:
    return {"keys": [key.as_dict(private=False) for key in keys]}


@pytest.fixture
def ehr(ec_key: ECKey, rsa_key: RSAKey) -> EHR:
    return EHR(
        id="north",
        name="North Hospital",
        fhir_base_urls=(FHIR_BASE,),
        cds_client=CDSClient(issuer=ISSUER, keys=read_key_set(jwks_of(ec_key, rsa_key))),
        smart=SMARTClient(client_id="rayhook", issuer=FHIR_BASE, scopes=("openid", "fhirUser")),
    )


@pytest.fixture
def registry(ehr: EHR) -> EHRRegistry:
    return EHRRegistry((ehr,))


@pytest.fixture
def claims(clock: Clock) -> dict[str, Any]:
    """Claims that are all right; each test spoils one."""
    now = int(clock())
    return {"iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + 300, "jti": str(uuid.uuid4())}


def signed(key: ECKey | RSAKey, claims: dict[str, Any], **header: Any) -> str:
    algorithm = "ES384" if isinstance(key, ECKey) else "RS384"
    return jwt.encode(
        {"alg": algorithm, "kid": key.kid, **header}, claims, key, algorithms=[header.get("alg", algorithm)]
    )


@pytest.fixture
def transport() -> Iterator[Transport]:
    transport = Transport(allow_loopback_http=True)
    yield transport
    transport.close()


@pytest.fixture
def jwks(transport: Transport, clock: Clock) -> Iterator[JWKSCache]:
    jwks = JWKSCache(transport, clock, wait_s=2.0)
    yield jwks
    jwks.close()


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, content: bytes) -> None:
        state = self.server.state
        state.requests.append((self.command, self.path, content))
        time.sleep(state.delay_s)
        status, body = state.answers.get(self.path, (404, b"{}"))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Tests read `requests`, not a log."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    state: KeyServer


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.state = KeyServer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.state
    server.shutdown()
    thread.join()
    server.server_close()


def eventually(condition: Callable[[], bool], *, within_s: float = 3.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
