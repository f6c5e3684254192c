"""The pipeline as far as it comes without a network; with one, see tests/integration/test_pipeline.py."""

from dataclasses import replace

import pytest
from sqlalchemy import text

from rayhook.audit.record import AuditLog
from rayhook.audit.review import recent
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, CDSClient, EHRRegistry
from rayhook.deploy.database import create_database, migrate
from rayhook.fhir.errors import AuditUnavailable
from rayhook.fhir.transport import Transport
from rayhook.inference.analysis import Analyser
from rayhook.inference.claims import MAX_ATTEMPTS
from rayhook.inference.decode import Decoder
from rayhook.inference.jobs import Authorization, JobState, claim, enqueue, load_job
from rayhook.inference.pipeline import Pipeline
from tests.unit.inference.images import SpotEngine, package
from tests.unit.inference.samples import reference

NOW = 1_000_000.0
TOKEN = Authorization("a-secret-token", "patient/ImagingStudy.rs", NOW + 300)


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keyring") / "keyring.json")


@pytest.fixture(scope="module")
def analyser(tmp_path_factory):
    model = package(tmp_path_factory.mktemp("model"))
    with Decoder() as decoder:
        yield Analyser((model,), {model.manifest.id: SpotEngine()}, decoder)


@pytest.fixture
def database(tmp_path):
    url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    migrate(url)
    database = create_database(url)
    yield database
    database.close()


@pytest.fixture
def pipeline(database, keyring, analyser):
    ehr = EHR(
        id="ehr",
        name="A hospital",
        fhir_base_urls=("https://ehr.example/fhir",),
        cds_client=CDSClient(issuer="https://ehr.example", jwks_url="https://ehr.example/jwks"),
        dicomweb_origins=("https://pacs.example",),
    )
    return Pipeline(
        registry=EHRRegistry((ehr,)),
        sessions=database.sessions,
        keyring=keyring,
        audit=AuditLog(keyring),
        transport=Transport(),
        analyser=analyser,
        organization="Demo hospital",
        clock=lambda: NOW,
    )


def ask(pipeline, study=None, token=TOKEN):
    with pipeline.sessions() as session:
        job, _ = enqueue(
            session,
            pipeline.keyring,
            study or reference(),
            token,
            key="k",
            request_id="request-1",
            clock=pipeline.clock,
        )
        session.commit()
    return job.id


def job_of(pipeline, job_id):
    with pipeline.sessions() as session:
        return load_job(session, job_id)


def events(pipeline):
    with pipeline.sessions() as session:
        return recent(session, pipeline.keyring, limit=20)[::-1]


def ended(pipeline, study=None, token=TOKEN):
    job_id = ask(pipeline, study, token)
    pipeline.run(job_id)
    return job_of(pipeline, job_id)


@pytest.mark.parametrize(
    ("study", "token", "code"),
    [
        (reference(), None, "authorization_missing"),
        (reference(), replace(TOKEN, expires_at=NOW - 1), "authorization_expired"),
        (reference(ehr_id="gone"), TOKEN, "ehr_unknown"),
        (reference(dicomweb_url="https://elsewhere.example/dicom-web"), TOKEN, "egress_denied"),
    ],
)
def test_what_may_be_mended_can_be_tried_again(pipeline, study, token, code):
    job = ended(pipeline, study, token)
    assert (job.state, job.error_code, job.retryable) == (JobState.FAILED, code, True)


def test_a_failure_is_audited_with_its_code(pipeline):
    ended(pipeline, token=None)
    (event,) = events(pipeline)
    assert (event.kind, event.detail["code"]) == ("inference:job:failed", "authorization_missing")


def test_a_failure_is_audited_under_the_request_that_asked(pipeline):
    ended(pipeline, token=None)
    assert events(pipeline)[0].request_id == "request-1"


def test_a_failure_names_patient_and_study_in_the_audit(pipeline):
    ended(pipeline, token=None)
    (event,) = events(pipeline)
    assert event.patient_id == "patient-1"
    assert "ImagingStudy/study-1" in event.entities


def test_an_address_that_is_not_registered_is_audited(pipeline):
    ended(pipeline, reference(dicomweb_url="https://elsewhere.example/dicom-web"))
    assert "transport:address:refused" in [event.kind for event in events(pipeline)]


def test_a_failure_erases_the_token(pipeline, database):
    ended(pipeline, reference(ehr_id="gone"))
    with database.reading() as session:
        assert session.execute(text("SELECT authorization FROM analysis_job")).scalar() is None


def test_an_ended_job_is_not_done_again(pipeline):
    job_id = ask(pipeline, token=None)
    pipeline.run(job_id)
    pipeline.run(job_id)
    assert job_of(pipeline, job_id).attempts == 1


def test_an_unknown_job_is_nothing_to_do(pipeline):
    pipeline.run("no-such-job")
    assert events(pipeline) == []


def test_a_job_that_killed_its_workers_dies_and_is_audited_once(pipeline):
    job_id = ask(pipeline)
    for _ in range(MAX_ATTEMPTS):
        with pipeline.sessions() as session:
            claim(session, pipeline.keyring, job_id, lease_s=0, clock=pipeline.clock)
            session.commit()
    pipeline.run(job_id)
    pipeline.run(job_id)
    assert job_of(pipeline, job_id).state is JobState.DEAD
    assert [event.kind for event in events(pipeline)] == ["inference:job:failed"]


def test_a_job_that_another_worker_holds_is_left_to_it(pipeline):
    job_id = ask(pipeline)
    with pipeline.sessions() as session:
        claim(session, pipeline.keyring, job_id, lease_s=60, clock=pipeline.clock)
        session.commit()
    pipeline.run(job_id)
    assert job_of(pipeline, job_id).attempts == 1


def test_without_an_audit_no_end_is_recorded(pipeline, database):
    job_id = ask(pipeline, token=None)
    with database.sessions() as session:
        session.execute(text("DROP TABLE audit_event"))
        session.commit()
    with pytest.raises(AuditUnavailable):
        pipeline.run(job_id)
    assert job_of(pipeline, job_id).state is JobState.RUNNING
