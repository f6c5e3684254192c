"""A whole CDS service over real parts: database, keyring, JWTs, queue, transport. Only the EHR and the analysis are scripted."""

import json
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from httpx import Response
from joserfc import jwt
from joserfc.jwk import ECKey

from rayhook.audit.record import AuditLog
from rayhook.audit.review import AuditRecord, recent
from rayhook.auth.jose import read_key_set
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, CDSClient, EHRRegistry, SMARTClient
from rayhook.auth.tokens import JWKSCache
from rayhook.cds_hooks.dependencies import CDSDependencies
from rayhook.cds_hooks.rate_limit import NewAnalyses
from rayhook.cds_hooks.router import build_router
from rayhook.deploy.database import Database, create_database, migrate
from rayhook.deploy.middleware import RequestContext
from rayhook.deploy.problems import install_problem_handlers
from rayhook.fhir.transport import Transport
from rayhook.inference.jobs import Authorization, ClaimedJob, claim, complete, fail, refuse
from rayhook.inference.preprocess import BrainSlice
from rayhook.inference.queue import AnalysisQueue
from rayhook.inference.registry import (
    Calibration,
    Coding,
    Label,
    Manifest,
    ModelStatus,
    OutOfDistribution,
    SequenceRule,
)
from rayhook.inference.study import AnalysisStatus, Finding, ModelIdentity, StudyResult
from tests.leaks import WORD

BASE_URL = "https://rayhook.example.org"
ISSUER = "https://ehr.example.org"
PAGE_ORIGIN = "https://clinic.example.org"
PATIENT = "p1"
OWN = "org.rayhook.imaging-result-available"
DCM = "http://dicom.nema.org/resources/ontology/DCM"
FINDING = Coding("http://snomed.info/sct", "393564001", "Glioma")
Resource = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the scripted FHIR server answers; `delay_s` before a byte of it."""

    body: object
    status: int = 200
    delay_s: float = 0.0


@dataclass
class ScriptedFHIR:
    """A FHIR server that says what a test has told it to; it keeps what it was asked."""

    base_url: str
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)

    def answer(self, path: str, body: object, **how: Any) -> None:
        self.answers[path] = Answer(body, **how)

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


def _handler(script: ScriptedFHIR) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            script.requests.append((self.path, self.headers.get("Authorization")))
            found = script.answers.get(self.path) or script.answers.get(self.path.partition("?")[0])
            answer = found or Answer({"resourceType": "OperationOutcome", "issue": []}, 404)
            time.sleep(answer.delay_s)
            body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/fhir+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    return Handler


@pytest.fixture(scope="session")
def fhir_server() -> Iterator[ScriptedFHIR]:
    script = ScriptedFHIR("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(script))
    server.daemon_threads = True
    script.base_url = f"http://127.0.0.1:{server.server_port}/fhir"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield script
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fhir(fhir_server: ScriptedFHIR) -> ScriptedFHIR:
    fhir_server.answers.clear()
    fhir_server.requests.clear()
    return fhir_server


@dataclass
class ScriptedAnalysis:
    """Ends each job as told, after `delay_s`: with a result, a refusal or a failure."""

    database: Database
    keyring: Keyring
    delay_s: float = 0.0
    result: Callable[[str], StudyResult] | None = None
    refusal: str | None = None
    failure: tuple[str, bool] | None = None
    claimed: list[ClaimedJob] = field(default_factory=list)
    delivered_again: queue.SimpleQueue[tuple[str, Authorization]] = field(default_factory=queue.SimpleQueue)
    in_hand: int = 0

    def deliver_again(self, result_id: str, authorization: Authorization) -> None:
        self.delivered_again.put((result_id, authorization))

    def reset(self) -> None:
        while self.in_hand:
            time.sleep(0.01)
        self.delay_s, self.result, self.refusal, self.failure = 0.0, None, None, None
        self.claimed.clear()

    def run(self, job_id: str) -> None:
        self.in_hand += 1
        self._run(job_id)
        self.in_hand -= 1

    def _run(self, job_id: str) -> None:
        with self.database.sessions() as session:
            job = claim(session, self.keyring, job_id, lease_s=60)
            session.commit()
        if job is None:
            return
        self.claimed.append(job)
        time.sleep(self.delay_s)
        with self.database.sessions() as session:
            self._end(session, job)
            session.commit()

    def _end(self, session: Any, job: ClaimedJob) -> None:
        if self.refusal is not None:
            refuse(session, job, code=self.refusal, message="refused by the script")
        elif self.failure is not None:
            code, retryable = self.failure
            fail(session, job, code=code, message="failed by the script", retryable=retryable)
        else:
            make = self.result or finding
            complete(session, self.keyring, job, make(job.reference.study_instance_uid), [])


MODEL = ModelIdentity("test-model", "1.2.0", "ab" * 32)


def finding(
    study_uid: str,
    *,
    probability: float = 0.871,
    status: AnalysisStatus = AnalysisStatus.ANALYSED,
    **more: Any,
) -> StudyResult:
    found = Finding(FINDING.code, FINDING.system, FINDING.display, probability, 0.5, probability >= 0.5)
    content: dict[str, Any] = {
        "study_instance_uid": study_uid,
        "series_instance_uid": f"{study_uid}.1",
        "status": status,
        "reason": None,
        "findings": (found,) if status is AnalysisStatus.ANALYSED else (),
        "model": MODEL,
        "aggregation": "max_of_median3",
        "instances": (),
        "slice_probabilities": (probability,),
        "key_image": None,
        "analysed_at": datetime(2026, 3, 13, 8, 30, tzinfo=UTC),
        "elapsed_ms": 12.0,
    }
    return StudyResult(**(content | more))


def manifest(status: ModelStatus = ModelStatus.EXPERIMENTAL) -> Manifest:
    return Manifest(
        id=MODEL.id,
        version=MODEL.version,
        title="Test model",
        intended_use="Adult brain MR, axial FLAIR.",
        limits=("Trained on one data set.",),
        status=status,
        modality="MR",
        body_parts=("BRAIN",),
        sop_class_uids=("1.2.840.10008.5.1.4.1.1.4",),
        sequence=SequenceRule("flair", "axial", ("flair",), (), (1500.0, 3200.0)),
        output_stride=32,
        preprocessing=BrainSlice(input_size=224),
        labels=(Label("glioma", FINDING, FINDING, 0.5, Calibration(1.0, 0.0), 1.0),),
        ood=OutOfDistribution(1.0, 1, "train"),
        golden_logits=(0.0,),
        weights_sha256=MODEL.weights_sha256,
        licence="Apache-2.0",
        training_data="none",
        recipe_sha256="cd" * 32,
    )


class Make:
    """FHIR resources and request bodies of the tests' one patient."""

    result = staticmethod(finding)

    def __init__(self, fhir_base_url: str) -> None:
        self.fhir_base_url = fhir_base_url
        self.root = f"2.25.{uuid.uuid4().int}"  # studies of their own for every test

    def patient(self, id_: str = PATIENT) -> Resource:
        name = {"family": WORD, "given": [f"{WORD}-given"]}
        return {"resourceType": "Patient", "id": id_, "name": [name], "birthDate": "1931-07-29"}

    def study(self, number: int = 1, **members: Any) -> Resource:
        return {
            "resourceType": "ImagingStudy",
            "id": f"s{number}",
            "status": "available",
            "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{self.root}.{number}"}],
            "subject": {"reference": f"Patient/{PATIENT}"},
            "started": f"2026-03-{number:02}T10:00:00Z",
            "modality": [{"system": DCM, "code": "MR"}],
            "endpoint": [{"reference": "Endpoint/pacs"}],
            "description": "MR head",
        } | members

    def endpoint(self, **members: Any) -> Resource:
        return {
            "resourceType": "Endpoint",
            "id": "pacs",
            "status": "active",
            "connectionType": {"code": "dicom-wado-rs"},
            "address": "http://127.0.0.1:9/dicomweb",
        } | members

    def bundle(self, *resources: Resource, next_url: str | None = None) -> Resource:
        bundle: Resource = {"resourceType": "Bundle", "type": "searchset"}
        bundle["entry"] = [{"resource": resource} for resource in resources]
        if next_url is not None:
            bundle["link"] = [{"relation": "next", "url": next_url}]
        return bundle

    def authorization(self, **members: Any) -> Resource:
        return {
            "access_token": "lent-token",
            "token_type": "Bearer",
            "expires_in": 300,
            "scope": "patient/ImagingStudy.rs patient/Endpoint.r",
            "subject": "rayhook",
            "patient": PATIENT,
        } | members

    def body(self, *studies: Resource, hook: str = "patient-view", **members: Any) -> Resource:
        return {
            "hook": hook,
            "hookInstance": str(uuid.uuid4()),
            "fhirServer": self.fhir_base_url,
            "fhirAuthorization": self.authorization(),
            "context": {"userId": "Practitioner/dr", "patientId": PATIENT},
            "prefetch": {
                "patient": self.patient(),
                "imagingStudies": self.bundle(*(studies or (self.study(),)), self.endpoint()),
            },
        } | members

    def order(self, **members: Any) -> Resource:
        return {
            "resourceType": "ServiceRequest",
            "status": "draft",
            "intent": "order",
            "subject": {"reference": f"Patient/{PATIENT}"},
            "category": [{"coding": [{"system": "http://snomed.info/sct", "code": "363679005"}]}],
            "code": {"text": "MRI of the brain"},
        } | members

    def order_sign(self, *studies: Resource, orders: tuple[Resource, ...] | None = None) -> Resource:
        drafts = self.bundle(*((self.order(),) if orders is None else orders))
        context = {"userId": "Practitioner/dr", "patientId": PATIENT, "draftOrders": drafts}
        return self.body(*studies, hook="order-sign", context=context)

    def hook(
        self, hook: str, *studies: Resource, context: Resource | None = None, **members: Any
    ) -> Resource:
        """Return the body of any hook; `context` is added to user and patient."""
        told = {"userId": "Practitioner/dr", "patientId": PATIENT} | (context or {})
        return self.body(*studies, hook=hook, context=told, **members)


@dataclass
class Service:
    """The service under test, and the EHR's keys that open it.

    `client` calls it with limits that a busy machine keeps, `in_time` with those of production.
    """

    client: httpx.Client
    in_time: httpx.Client
    dependencies: CDSDependencies
    database: Database
    keyring: Keyring
    analysis: ScriptedAnalysis
    key: ECKey
    other_key: ECKey
    folder: Path
    first_seq: int = 0

    def token(
        self, path: str, *, key: ECKey | None = None, header: Resource | None = None, **claims: Any
    ) -> str:
        now = int(time.time())
        content = {
            "iss": ISSUER,
            "aud": f"{BASE_URL}{path}",
            "iat": now,
            "exp": now + 120,
            "jti": str(uuid.uuid4()),
        } | claims
        signer = key or self.key
        head = {"alg": "ES384", "kid": signer.kid, "typ": "JWT"} | (header or {})
        return jwt.encode(head, content, signer, algorithms=["ES384"])

    def post(
        self,
        path: str,
        body: object,
        *,
        token: str | None = None,
        client: httpx.Client | None = None,
        **headers: str,
    ) -> Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", "Authorization": f"Bearer {token or self.token(path)}"}
        return (client or self.client).post(path, content=content, headers=sent | headers)

    def call(self, body: object, *, service: str = "rayhook-patient-view", **how: Any) -> Response:
        return self.post(f"/cds-services/{service}", body, **how)

    def cards(self, body: object, **how: Any) -> list[Resource]:
        response = self.call(body, **how)
        assert response.status_code == 200, response.text
        return response.json()["cards"]

    def other(self, path: str) -> str:
        """Return a token of another registered EHR."""
        return self.token(path, key=self.other_key, iss="https://other.example.org")

    def audit(self, kind: str) -> list[AuditRecord]:
        with self.database.reading() as session:
            events = recent(session, self.keyring, limit=200)
        return [event for event in events if event.seq > self.first_seq and event.kind == kind]


@pytest.fixture(scope="session")
def ehr_keys() -> tuple[ECKey, ECKey]:
    return tuple(ECKey.generate_key("P-384", {"kid": kid, "use": "sig"}) for kid in ("k1", "k2"))


@pytest.fixture
def make(fhir: ScriptedFHIR) -> Make:
    return Make(fhir.base_url)


@pytest.fixture
def request_of(make):
    """Return the body of a hook for a patient with one study."""

    def body(hook, *studies, **context):
        order = make.order(id="o1", **context.pop("order", {}))
        appointment = {
            "resourceType": "Appointment",
            "status": "proposed",
            "serviceType": [{"text": "MRI head"}],
        }
        needed = {
            "patient-view": {},
            "encounter-start": {"encounterId": "e1"},
            "order-select": {"selections": ["ServiceRequest/o1"], "draftOrders": make.bundle(order)},
            "order-sign": {"draftOrders": make.bundle(order)},
            "order-dispatch": {
                "dispatchedOrders": ["ServiceRequest/o1"],
                "performer": "Organization/imaging",
            },
            "appointment-book": {"appointments": make.bundle(appointment)},
            OWN: {"imagingStudyId": "s1"},
        }[hook]
        made = make.hook(hook, *studies, context=needed | context)
        if hook == "order-dispatch":
            made["prefetch"]["serviceRequests"] = make.bundle(order)
            del made["context"]["userId"]
        if hook == OWN:
            made["prefetch"]["imagingStudy"] = None
        return made

    return body


@pytest.fixture(scope="session")
def running(
    tmp_path_factory: pytest.TempPathFactory, fhir_server: ScriptedFHIR, ehr_keys: tuple[ECKey, ECKey]
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("cds")
    url = f"sqlite:///{folder}/rayhook.sqlite3"
    migrate(url)
    keyring = Keyring.load_or_create(folder / "keyring.json")
    database = create_database(url)
    transport = Transport(allow_loopback_http=True)
    analysis = ScriptedAnalysis(database, keyring)
    queue = AnalysisQueue(database.reading)
    queue.start(analysis.run, threads=2)
    dependencies = CDSDependencies(
        registry=_registry(fhir_server.base_url, ehr_keys),
        jwks=JWKSCache(transport),
        sessions=database.sessions,
        reading=database.reading,
        unsynced=database.unsynced,
        keyring=keyring,
        audit=AuditLog(keyring),
        queue=queue,
        transport=transport,
        manifests=(manifest(),),
        models=(MODEL,),
        deliver_again=analysis.deliver_again,
        public_base_url=BASE_URL,
    )
    patient = replace(dependencies, fetch_s=2.0, wait_s=5.0)
    with (
        served(application(dependencies)) as url,
        served(application(patient)) as patient_url,
        httpx.Client(base_url=url) as in_time,
        httpx.Client(base_url=patient_url, timeout=10) as client,
    ):
        yield Service(client, in_time, dependencies, database, keyring, analysis, *ehr_keys, folder)
    queue.close()
    dependencies.pool.shutdown()
    database.close()


@pytest.fixture
def service(running: Service, fhir: ScriptedFHIR) -> Service:
    """The running service, with nothing of an earlier test in sight: all of them ask about one patient."""
    running.analysis.reset()
    running.dependencies.new_analyses._rate = NewAnalyses()._rate
    with running.database.reading() as session:
        events = recent(session, running.keyring, limit=1)
    running.first_seq = events[0].seq if events else 0
    return running


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Run `app` under uvicorn on a free port of loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


def application(dependencies: CDSDependencies) -> FastAPI:
    app = FastAPI()
    install_problem_handlers(app)
    app.include_router(build_router(dependencies))
    app.add_middleware(RequestContext, https=True)
    return app


def _registry(fhir_base_url: str, keys: tuple[ECKey, ECKey]) -> EHRRegistry:
    public = [read_key_set({"keys": [key.as_dict(private=False)]}) for key in keys]
    return EHRRegistry(
        (
            EHR(
                id="general",
                name="General Hospital",
                fhir_base_urls=(fhir_base_url,),
                cds_client=CDSClient(ISSUER, keys=public[0]),
                dicomweb_origins=("http://127.0.0.1:9",),
                smart=SMARTClient("rayhook", fhir_base_url, ("launch",)),
                cors_origins=(PAGE_ORIGIN,),
            ),
            EHR(
                id="other",
                name="Other Hospital",
                fhir_base_urls=("https://other.example.org/fhir",),
                cds_client=CDSClient("https://other.example.org", keys=public[1]),
            ),
        )
    )
