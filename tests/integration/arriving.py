"""The parts that take studies in, over a pipeline, beside a demo EHR and PACS."""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
from fastapi import FastAPI
from joserfc.jwk import KeySet
from pydicom import dcmread
from sqlmodel import select

from rayhook.audit.refusals import RefusalLimit
from rayhook.audit.review import recent
from rayhook.auth.arrival_sources import (
    ArrivalSources,
    DICOMSender,
    PolledPACS,
    SecretFile,
    SubscriptionSource,
)
from rayhook.auth.bearer import BearerTokens
from rayhook.auth.jwks import JWKSCache
from rayhook.auth.registry import EHR, EHRRegistry, SMARTClient
from rayhook.auth.smart import public_jwks
from rayhook.deploy.demo.ehr_seed import imaging_study_id
from rayhook.deploy.demo.ehr_subscriptions import TOPIC
from rayhook.deploy.demo.ehr_tokens import CLIENT_ID
from rayhook.deploy.demo.run import serving
from rayhook.deploy.problems import install_problem_handlers
from rayhook.inference.arrival import count_arrivals
from rayhook.inference.arrival_courier import ArrivalCourier
from rayhook.inference.arrival_lookup import ArrivalLookup
from rayhook.inference.authority import Authority
from rayhook.inference.intake import Intake
from rayhook.inference.jobs import find, job_key
from rayhook.inference.pacs_poll import PACSPolling
from rayhook.inference.received import ReceivedImages
from rayhook.inference.sealed_spool import SealedSpool
from rayhook.inference.subscription_upkeep import SubscriptionUpkeep
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.notifications import build_notification_router
from rayhook.smart_app.stow import StowService, build_stow_router
from tests.ports import free_url

from .hospital import Hospital, catalogue_in, open_hospital
from .pipeline_parts import as_backend, pipeline_over

SECRET = "a-secret-of-the-subscription-0123456789"
SENDER_SECRET = "a-secret-of-the-sender-0123456789abcdef"
DAY_S = 86_400.0


@dataclass
class Clock:
    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@dataclass
class _Deps:
    """What the two routers use of the SMART app's dependencies."""

    registry: EHRRegistry
    sessions: object
    keyring: object
    audit: object
    clock: object
    refusals: RefusalLimit = field(default_factory=RefusalLimit)

    tell = SMARTDependencies.tell
    tell_refusal = SMARTDependencies.tell_refusal


@dataclass
class Arrivals:
    """The parts that take studies in, over a pipeline, with their two routes served on loopback."""

    hospital: Hospital
    pipeline: object
    base_url: str
    clock: Clock = field(default_factory=Clock)
    sent: list = field(default_factory=list)
    intake: Intake = field(default_factory=Intake)

    def __post_init__(self) -> None:
        spool = SealedSpool(self.hospital.folder / "received", self.pipeline.keyring, 1 << 30)
        self.received = ReceivedImages(spool, self.pipeline.sessions, self.pipeline.keyring, self.clock)

    @property
    def ehr(self) -> EHR:
        (ehr,) = self.pipeline.registry
        return ehr

    @property
    def trail(self) -> dict:
        pipeline = self.pipeline
        return {
            "registry": pipeline.registry,
            "sessions": pipeline.sessions,
            "reading": pipeline.sessions,
            "keyring": pipeline.keyring,
            "audit": pipeline.audit,
            "clock": self.clock,
        }

    @property
    def asking(self) -> dict:
        return {"transport": self.pipeline.transport, "authority": Authority(self.pipeline.backend)}

    @property
    def courier(self) -> ArrivalCourier:
        return ArrivalCourier(
            **self.trail,
            lookup=ArrivalLookup(**self.asking, is_received=self.received.has_all),
            models=self.pipeline.analyser.identities,
            send=self.sent.append,
            intake=self.intake,
        )

    @property
    def upkeep(self) -> SubscriptionUpkeep:
        return SubscriptionUpkeep(**self.trail, **self.asking, public_base_url=self.base_url)

    @property
    def polling(self) -> PACSPolling:
        return PACSPolling(**self.trail, **self.asking)

    def settle(self) -> None:
        """Let the time pass that things take to become quiet, and look at what is due."""
        self.clock.ahead_s += 120
        self.courier.run_due()

    def rows(self, table: type) -> list:
        with self.pipeline.sessions() as session:
            return list(session.exec(select(table)))

    def states(self) -> dict:
        with self.pipeline.sessions() as session:
            return {state: count for (_, state), count in count_arrivals(session).items()}

    def events(self, kind: str) -> list:
        with self.pipeline.sessions() as session:
            return [one for one in recent(session, self.pipeline.keyring, limit=1000) if one.kind == kind]

    def job_of(self, name: str):
        """Return the job that a hook for that study would find."""
        study_id = imaging_study_id(self.hospital.study(name))
        version = self.hospital.demo.store.read("ImagingStudy", study_id)["meta"]["versionId"]
        reference = self.hospital.reference(name, source_version=version)
        with self.pipeline.sessions() as session:
            return find(session, job_key(reference, self.pipeline.analyser.identities))

    def touch(self, name: str, **changes: object) -> None:
        """Let the EHR have a new version of the study, and tell its subscribers."""
        study_id = imaging_study_id(self.hospital.study(name))
        resource = self.hospital.demo.store.read("ImagingStudy", study_id)
        self.hospital.demo.store.seed([{**resource, **changes}])


def registered(ehr: EHR, folder: Path, pacs_url: str) -> EHR:
    (folder / "subscription").write_text(f"# the EHR's\n{SECRET}\n")
    (folder / "sender").write_text(f"{SENDER_SECRET}\n")
    smart = SMARTClient(
        client_id=CLIENT_ID, issuer=ehr.fhir_base_urls[0], scopes=("openid",), introspection=True
    )
    return replace(
        ehr,
        smart=smart,
        arrivals=ArrivalSources(
            subscription=SubscriptionSource(
                secret=SecretFile(folder / "subscription"), topic=TOPIC, heartbeat_s=3600
            ),
            senders=(DICOMSender("router", SecretFile(folder / "sender")),),
            polled=(PolledPACS("pacs", f"{pacs_url}/dicom-web", every_s=60.0, days=2, token_required=True),),
        ),
    )


@contextmanager
def arrivals_over(pipeline: object, hospital: Hospital, base_url: str) -> Iterator[Arrivals]:
    (ehr,) = pipeline.registry
    known = registered(ehr, hospital.folder, hospital.pacs_url)
    arrivals = Arrivals(hospital, replace(pipeline, registry=EHRRegistry((known,))), base_url)
    deps = _Deps(
        arrivals.pipeline.registry,
        pipeline.sessions,
        pipeline.keyring,
        pipeline.audit,
        arrivals.clock,
    )
    tokens = BearerTokens(
        registry=arrivals.pipeline.registry,
        transport=pipeline.transport,
        keyring=pipeline.keyring,
        jwks=JWKSCache(pipeline.transport),
        audience=f"{base_url}/dicom-web",
    )
    arrivals.stow = StowService(deps, arrivals.received, tokens, settle_s=10.0)
    app = FastAPI()
    install_problem_handlers(app)
    app.include_router(build_notification_router(deps))
    app.include_router(build_stow_router(arrivals.stow))
    with serving(app, base_url):
        yield arrivals


def dated_catalogue(folder):
    catalogue = catalogue_in(folder)
    for study in catalogue.studies[:2]:
        for instance in study.instances:
            image = dcmread(instance.path)
            image.StudyDate = datetime.now(UTC).strftime("%Y%m%d")
            image.save_as(instance.path)
    return catalogue


@contextmanager
def open_arrivals(catalogue, prepared: Path, folder: Path, decoder) -> Iterator[Arrivals]:
    """Serve everything until the block ends. prepared: has keys and an empty database."""
    with ExitStack() as stack:
        hospital = stack.enter_context(open_hospital(catalogue, folder))
        shutil.copytree(prepared, hospital.folder)
        pipeline = stack.enter_context(
            pipeline_over(
                hospital.folder, ehr_url=hospital.ehr_url, pacs_url=hospital.pacs_url, decoder=decoder
            )
        )
        hospital.demo.authorization.client_keys = lambda: KeySet.import_key_set(public_jwks(pipeline.keyring))
        yield stack.enter_context(arrivals_over(as_backend(pipeline), hospital, free_url()))


def await_(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come about in time")


def files_of(arrivals, name):
    return [instance.path.read_bytes() for instance in arrivals.hospital.study(name).instances]


def multipart(files, boundary="rayhook-test"):
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return b"".join(head + file + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()


def stow(arrivals, files, *, study=None, authorization=f"Bearer {SENDER_SECRET}", body=None, **headers):
    path = "/dicom-web/studies" + ("" if study is None else f"/{study}")
    fields = {
        "Content-Type": 'multipart/related; type="application/dicom"; boundary=rayhook-test',
        "Accept": "application/dicom+json",
        **({} if authorization is None else {"Authorization": authorization}),
        **headers,
    }
    content = multipart(files) if body is None else body
    return httpx.post(f"{arrivals.base_url}{path}", content=content, headers=fields, timeout=60)
