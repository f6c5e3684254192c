"""The SMART app over loopback with the demo EHR as the EHR that launches it."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from rayhook.audit.record import AuditLog
from rayhook.audit.review import AuditRecord, recent
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import load_registry
from rayhook.auth.tokens import JWKSCache
from rayhook.deploy.database import Database, create_database, migrate
from rayhook.deploy.demo.catalogue import Catalogue, DemoInstance, DemoStudy
from rayhook.deploy.demo.ehr import DemoEHR, create_ehr, demo_registry_toml
from rayhook.deploy.demo.run import serving
from rayhook.deploy.problems import install_problem_handlers
from rayhook.fhir.transport import Transport
from rayhook.inference import jobs
from rayhook.inference.decode import Decoder
from rayhook.inference.job_table import Authorization
from rayhook.inference.preprocess import BrainSlice
from rayhook.inference.queue import AnalysisQueue
from rayhook.inference.registry import (
    Calibration,
    Coding,
    Estimate,
    Evaluation,
    Label,
    Manifest,
    ModelStatus,
    OutOfDistribution,
    SequenceRule,
)
from rayhook.inference.report import build_resources
from rayhook.inference.sign_off_queue import SignOffQueue
from rayhook.inference.study import (
    AnalysisStatus,
    Finding,
    InstanceResult,
    KeyImage,
    Mark,
    ModelIdentity,
    StudyReference,
    StudyResult,
)
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.router import build_router
from tests.doubles.full_log import full_log
from tests.ports import free_port

PATIENTS = ("phantom-a", "phantom-b", "phantom-c")
SNOMED = "http://snomed.info/sct"
MODEL = ModelIdentity("mri-flair-lesion", "1.0.0", "ab" * 32)

MANIFEST = Manifest(
    id=MODEL.id,
    version=MODEL.version,
    title="Brain MRI FLAIR lesion",
    intended_use="Marks axial FLAIR slices that look like they show a low-grade glioma.",
    limits=("Trained on 74 patients of three sites.", "Every patient of the training set had a tumour."),
    status=ModelStatus.EXPERIMENTAL,
    modality="MR",
    body_parts=("BRAIN",),
    sop_class_uids=("1.2.840.10008.5.1.4.1.1.4",),
    sequence=SequenceRule("FLAIR", "axial", ("flair",), (), (1500, 3200)),
    output_stride=32,
    preprocessing=BrainSlice(input_size=256),
    labels=(
        Label(
            name="tumour",
            finding=Coding(SNOMED, "4147007", "Mass"),
            body_site=Coding(SNOMED, "12738006", "Brain structure"),
            threshold=0.4,
            calibration=Calibration(1.0, 0.0),
            cam_scale=1.0,
        ),
    ),
    ood=OutOfDistribution(threshold=1.0, neighbour=1, reference="training features"),
    golden_logits=(0.0,),
    weights_sha256=MODEL.weights_sha256,
    licence="research only",
    training_data="TCGA-LGG",
    recipe_sha256="cd" * 32,
    evaluations=(
        Evaluation(
            dataset="TCGA-LGG FLAIR",
            subset="held-out patients",
            unit="slice",
            patients=15,
            count=540,
            positives=198,
            estimates={
                "auc": Estimate(0.943, 0.921, 0.962),
                "sensitivity": Estimate(0.905, 0.861, 0.944),
                "specificity": Estimate(0.842, 0.79, 0.887),
            },
            limits="Specificity is per slice, not per patient.",
        ),
    ),
)


def catalogue() -> Catalogue:
    instance = DemoInstance(Path("/nonexistent"), "1.2.3.4.5", "1.2.840.10008.5.1.4.1.1.4", "1.2.3.4")
    return Catalogue(
        studies=tuple(
            DemoStudy(
                patient_id=patient,
                patient_display=f"PHANTOM {patient[-1].upper()}",
                dicom_patient_id=f"RH-{patient[-1].upper()}",
                study_instance_uid=f"1.2.3.{number}",
                modality="MR",
                description="MR head FLAIR (phantom)",
                body_part="HEAD",
                started="2026-05-01T10:00:00Z",
                is_phantom=True,
                instances=(instance,),
            )
            for number, patient in enumerate(PATIENTS)
        )
    )


def png(value: int) -> bytes:
    return bytes(cv2.imencode(".png", np.full((64, 64), value, np.uint8))[1])


def study_result(
    study_instance_uid: str, status: AnalysisStatus = AnalysisStatus.ANALYSED, probability: float = 0.87
) -> StudyResult:
    """A result as the pipeline makes it: five slices when analysed, a reason otherwise."""
    analysed = status is AnalysisStatus.ANALYSED
    probabilities = (0.02, 0.31, probability, 0.62, 0.05) if analysed else ()
    return StudyResult(
        study_instance_uid=study_instance_uid,
        series_instance_uid="1.2.3.4",
        status=status,
        reason=None if analysed else "the <modality> is not one a model is meant for",
        findings=(_finding(probability),) if analysed else (),
        model=MODEL if status in {AnalysisStatus.ANALYSED, AnalysisStatus.ABSTAINED} else None,
        aggregation="max_of_median3" if analysed else None,
        instances=tuple(
            InstanceResult(
                sop_instance_uid=f"1.2.3.4.{n}",
                study_instance_uid=study_instance_uid,
                series_instance_uid="1.2.3.4",
                status=status,
                findings=(_finding(p),),
                model=MODEL,
            )
            for n, p in enumerate(probabilities)
        ),
        slice_probabilities=probabilities,
        key_image=KeyImage("1.2.3.4.2", "1.2.3.4", 64, 64, png(60), png(90)) if analysed else None,
        analysed_at=datetime(2026, 5, 1, 10, 5, tzinfo=UTC),
        elapsed_ms=1250.0,
    )


def rated_result(study_instance_uid: str, *marks: tuple[int, Mark], **changes: object) -> StudyResult:
    """A result of a model that rates points: marks by the number of their slice, from 0."""
    whole = study_result(study_instance_uid)
    images = tuple(
        replace(one, sha256=f"{n:064x}", marks=tuple(mark for number, mark in marks if number == n))
        for n, one in enumerate(whole.instances)
    )
    model = replace(MODEL, manifest_sha256="ef" * 32, finder=replace(MODEL, id="ct-finder"))
    result = replace(
        whole,
        model=model,
        aggregation="mean_logit_of_4_slices",
        instances=images,
        slice_uids=tuple(image.sop_instance_uid or "" for image in reversed(images)),
    )
    return replace(result, **changes)


def _finding(probability: float) -> Finding:
    return Finding("4147007", SNOMED, "Mass", probability, 0.4, probability >= 0.4)


@dataclass
class Clock:
    """Our own time; the EHR's goes on as it is."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@dataclass(frozen=True)
class World:
    """The running app and EHR, and what a test does with them."""

    base_url: str
    ehr_url: str
    ehr: DemoEHR
    database: Database
    keyring: Keyring
    clock: "Clock"
    own_tokens: list[Authorization]

    def browser(self) -> httpx.Client:
        return httpx.Client(follow_redirects=True, headers={"Accept": "text/html"}, timeout=20)

    def launch(self, browser: httpx.Client, patient_id: str, app_context: str = "") -> httpx.Response:
        query = {"url": f"{self.base_url}/smart/launch", "app_context": app_context}
        return browser.get(f"{self.ehr_url}/patients/{patient_id}/launch", params=query)

    def reference(self, patient_id: str, *, study: str = "1.2.3.9") -> StudyReference:
        return StudyReference(
            ehr_id="demo-ehr",
            fhir_base_url=f"{self.ehr_url}/fhir",
            patient_id=patient_id,
            imaging_study_id="study-1",
            study_instance_uid=study,
            dicomweb_url="http://127.0.0.1:9/dicom-web",
            token_required=True,
            started="2026-05-01T10:00:00Z",
            modalities=("MR",),
            description="MR head FLAIR (phantom)",
            service_request="ServiceRequest/order-1",
        )

    def enqueue(self, patient_id: str, *, study: str = "1.2.3.9") -> str:
        reference = self.reference(patient_id, study=study)
        with self.database.sessions() as session:
            key = jobs.job_key(reference, [MODEL])
            row, _ = jobs.enqueue(session, self.keyring, reference, None, key=key, request_id="test")
            session.commit()
        return row.id

    def fail(self, job_id: str, *, code: str, message: str, retryable: bool = False) -> None:
        with self.database.sessions() as session:
            claimed = jobs.claim(session, self.keyring, job_id, lease_s=60)
            assert claimed is not None
            jobs.fail(session, claimed, code=code, message=message, retryable=retryable)
            session.commit()

    def complete(self, job_id: str, result: StudyResult) -> str:
        with self.database.sessions() as session:
            claimed = jobs.claim(session, self.keyring, job_id, lease_s=60)
            assert claimed is not None
            resources = build_resources(
                claimed.reference, result, MANIFEST if result.model else None, organization="Test site"
            )
            result_id = jobs.complete(session, self.keyring, claimed, result, resources)
            session.commit()
        assert result_id is not None
        return result_id

    def store(self, patient_id: str, *, study: str = "1.2.3.9", **result: object) -> str:
        job_id = self.enqueue(patient_id, study=study)
        return self.complete(job_id, study_result(study, **result))  # type: ignore[arg-type]

    def audited(self) -> list[AuditRecord]:
        """The latest events, newest first."""
        with self.database.sessions() as session:
            return list(recent(session, self.keyring, limit=50))

    def store_result(self, patient_id: str, result: StudyResult) -> str:
        return self.complete(self.enqueue(patient_id, study=result.study_instance_uid), result)

    def kinds(self) -> list[str]:
        return [str(record.kind) for record in self.audited()]

    def audit_is_full(self) -> AbstractContextManager[None]:
        return full_log(self.database.engine)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("smart")
    base_url, ehr_url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    registry_file = folder / "ehrs.toml"
    registry_file.write_text(demo_registry_toml(ehr_base_url=ehr_url, pacs_base_url="http://127.0.0.1:9"))
    with ExitStack() as stack:
        ehr_app = create_ehr(
            catalogue(),
            base_url=ehr_url,
            cds_base_url=base_url,
            pacs_base_url="http://127.0.0.1:9",
            keys_dir=folder / "ehr-keys",
        )
        deps, database, own_tokens = smart_service(stack, folder, registry_file, base_url=base_url)
        stack.enter_context(serving(app_of(deps), base_url))
        stack.enter_context(serving(ehr_app, ehr_url))
        assert isinstance(deps.clock, Clock)
        yield World(base_url, ehr_url, ehr_app.state.demo, database, deps.keyring, deps.clock, own_tokens)


def smart_service(
    stack: ExitStack, folder: Path, registry_file: Path, *, base_url: str
) -> tuple[SMARTDependencies, Database, list[Authorization]]:
    """Return what the SMART app is made of, over an empty database in `folder`."""
    keyring = Keyring.load_or_create(folder / "keyring.json")
    url = f"sqlite:///{folder / 'rayhook.sqlite3'}"
    migrate(url)
    database = create_database(url)
    stack.callback(database.close)
    transport = Transport(allow_loopback_http=True)
    stack.callback(transport.close)
    clock = Clock()
    own_tokens: list[Authorization] = []
    registry = load_registry(registry_file, development=True)
    audit = AuditLog(keyring)
    deps = SMARTDependencies(
        registry=registry,
        sessions=database.sessions,
        reading=database.reading,
        keyring=keyring,
        audit=audit,
        transport=transport,
        sign_off=SignOffQueue(
            registry=registry,
            sessions=database.sessions,
            keyring=keyring,
            audit=audit,
            transport=transport,
            backend=lambda _ehr: own_tokens[0] if own_tokens else None,
            clock=clock,
        ),
        decoder=stack.enter_context(Decoder()),
        jwks=JWKSCache(transport),
        manifests=(MANIFEST,),
        models=(MODEL,),
        queue=AnalysisQueue(database.reading),
        public_base_url=base_url,
        clock=clock,
    )
    return deps, database, own_tokens


def app_of(deps: SMARTDependencies) -> FastAPI:
    app = FastAPI()
    app.include_router(build_router(deps))
    install_problem_handlers(app)
    return app


@pytest.fixture
def world(running: World) -> Iterator[World]:
    """The running world with an empty store of jobs, results and sessions, and no fault switched on."""
    yield running
    running.clock.ahead_s = 0.0
    running.ehr.faults.fhir_status = None
    running.own_tokens.clear()
    with running.database.engine.begin() as connection:
        for table in (
            "dicom_result",
            "dicom_source",
            "finding_answer",
            "report_signature",
            "result_outbox",
            "analysis_result",
            "analysis_job",
            "smart_session",
            "smart_launch",
        ):
            connection.exec_driver_sql(f"DELETE FROM {table}")


@pytest.fixture
def one_time(world: World) -> Iterator[None]:
    """The EHR's authorization server and we have the same time, also when a test moves it."""
    server = world.ehr.authorization
    server.clock = server.tokens.clock = world.clock
    yield
    server.clock = server.tokens.clock = time.time
