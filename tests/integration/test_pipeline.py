"""The pipeline against the demo EHR and PACS on loopback, with their faults switched on one by one."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import structlog
from sqlalchemy import text

from rayhook.audit.chain import verify
from rayhook.audit.review import recent
from rayhook.deploy.demo.ehr_seed import ENDPOINT_ID, imaging_study_id, order_id
from rayhook.fhir.errors import EngineUnavailable
from rayhook.fhir.r4 import validate
from rayhook.inference import jobs
from rayhook.inference.analysis import Analyser
from rayhook.inference.claims import MAX_ATTEMPTS
from rayhook.inference.delivery import deliver
from rayhook.inference.dicomweb import RetrievalLimits
from rayhook.inference.engine import ENGINE_ENDED
from rayhook.inference.jobs import DeliveryState, JobState
from rayhook.inference.study import AnalysisStatus
from tests.integration.hospital import READ, WRITE, open_hospital
from tests.integration.pipeline_parts import pipeline_over
from tests.unit.inference.images import SpotEngine, package
from tests.unit.inference.samples import STUDY_UID

ROOT = Path(__file__).resolve().parents[2]
DONE = [
    "fhir:resource:read",
    "dicomweb:study:retrieved",
    "inference:study:analysed",
    "fhir:result:written",
]


@pytest.fixture
def hospital(catalogue, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "rayhook")
    with open_hospital(catalogue, tmp_path) as hospital:
        yield hospital


@pytest.fixture
def pipeline(hospital, decoder):
    with pipeline_over(
        hospital.folder,
        ehr_url=hospital.ehr_url,
        pacs_url=hospital.pacs_url,
        decoder=decoder,
        limits=RetrievalLimits(deadline_s=2.0),
    ) as pipeline:
        yield pipeline


@dataclass(frozen=True)
class Ended:
    """A job after its run."""

    row: jobs.JobRow
    stored: jobs.StoredResult | None
    events: list

    @property
    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.events]


def ask(pipeline, reference, token) -> str:
    with pipeline.sessions() as session:
        key = jobs.job_key(reference, pipeline.analyser.identities)
        row, _ = jobs.enqueue(session, pipeline.keyring, reference, token, key=key, request_id="request-1")
        session.commit()
    return row.id


def look(pipeline, job_id) -> Ended:
    with pipeline.sessions() as session:
        row = jobs.load_job(session, job_id)
        stored = row.result_id and jobs.load_result(session, pipeline.keyring, row.result_id)
        return Ended(row, stored, recent(session, pipeline.keyring, limit=50)[::-1])


def run(pipeline, hospital, name="lesion", scope=READ + WRITE, **changes) -> Ended:
    job_id = ask(pipeline, hospital.reference(name, **changes), hospital.token(name, scope))
    pipeline.run(job_id)
    return look(pipeline, job_id)


def test_a_study_is_fetched_analysed_stored_and_delivered(pipeline, hospital):
    ended = run(pipeline, hospital)
    assert (ended.row.state, ended.stored.delivery) == (JobState.DONE, DeliveryState.DELIVERED)
    assert ended.stored.result.findings[0].positive


def test_every_step_is_audited_in_order(pipeline, hospital):
    assert run(pipeline, hospital).kinds == DONE


def test_every_event_names_patient_study_and_request(pipeline, hospital):
    for event in run(pipeline, hospital).events:
        assert (event.patient_id, event.request_id) == ("patient-lesion", "request-1")
        assert f"urn:oid:{STUDY_UID}" in event.entities


def test_the_audit_chain_is_intact(pipeline, hospital):
    run(pipeline, hospital)
    with pipeline.sessions() as session:
        pipeline.audit.checkpoint(session)
        session.commit()
    with pipeline.sessions() as session:
        key = pipeline.keyring.audit_public_key
        assert verify(session, key, hospital.folder / "anchor.jsonl").intact


def test_the_ehr_has_the_report_on_its_own_patient_study_and_order(pipeline, hospital):
    run(pipeline, hospital)
    (report,) = hospital.written("DiagnosticReport")
    study = hospital.study("lesion")
    assert report["subject"]["reference"] == "Patient/patient-lesion"
    assert report["imagingStudy"][0]["reference"] == f"ImagingStudy/{imaging_study_id(study)}"
    assert report["basedOn"][0]["reference"] == f"ServiceRequest/{order_id(study)}"


def test_what_the_ehr_has_is_valid_and_refers_to_itself(pipeline, hospital):
    run(pipeline, hospital)
    every = [
        one
        for kind in ("Device", "Observation", "DiagnosticReport", "Provenance")
        for one in hospital.written(kind)
    ]
    known = {f"{one['resourceType']}/{one['id']}" for one in every}
    (provenance,) = hospital.written("Provenance")
    assert {target["reference"] for target in provenance["target"]} <= known
    for one in every:
        validate(one)


def test_the_audit_names_what_was_written(pipeline, hospital):
    event = run(pipeline, hospital).events[-1]
    (report,) = hospital.written("DiagnosticReport")
    assert f"DiagnosticReport/{report['id']}" in event.entities


@pytest.mark.parametrize("name", ["lesion", "ct", "stranger", "half"])
def test_the_token_is_erased_however_it_ends(pipeline, hospital, name):
    run(pipeline, hospital, name)
    with pipeline.sessions() as session:
        assert session.execute(text("SELECT authorization FROM analysis_job")).scalar() is None


def test_delivering_again_writes_nothing_new(pipeline, hospital):
    ended = run(pipeline, hospital)
    deliver(
        pipeline.transport,
        pipeline.registry.by_id("ehr"),
        ended.stored.reference,
        hospital.token("lesion"),
        result=ended.stored.result,
        resources=ended.stored.resources,
    )
    written = [
        len(hospital.written(kind)) for kind in ("Device", "Observation", "DiagnosticReport", "Provenance")
    ]
    assert written == [1, 2, 1, 1]


def test_a_new_version_of_the_study_with_the_same_images_is_not_reported_twice(pipeline, hospital):
    run(pipeline, hospital)
    ended = run(pipeline, hospital, source_version="2")
    assert ended.stored.delivery is DeliveryState.DELIVERED
    assert len(hospital.written("DiagnosticReport")) == 1


def test_two_patients_share_the_device(pipeline, hospital):
    run(pipeline, hospital)
    run(pipeline, hospital, "part")
    assert (len(hospital.written("Device")), len(hospital.written("DiagnosticReport"))) == (1, 2)


def test_an_endpoint_that_the_hook_could_not_read_is_read(pipeline, hospital):
    ended = run(pipeline, hospital, dicomweb_url="", endpoint_ids=(ENDPOINT_ID,))
    assert ended.row.state is JobState.DONE


def test_a_study_without_an_image_endpoint_is_a_failure(pipeline, hospital):
    ended = run(pipeline, hospital, dicomweb_url="", endpoint_ids=())
    assert (ended.row.state, ended.row.error_code) == (JobState.FAILED, "no_dicomweb_endpoint")


def test_without_the_scope_the_result_stays_here(pipeline, hospital):
    ended = run(pipeline, hospital, scope=READ)
    assert (ended.row.state, ended.stored.delivery) == (JobState.DONE, DeliveryState.NOT_PERMITTED)
    assert ended.kinds[-1] == "fhir:result:write_refused"
    assert hospital.written("DiagnosticReport") == []


def test_a_failed_delivery_is_made_good_with_a_later_token(pipeline, hospital):
    hospital.ehr_faults.fhir_status = 500
    ended = run(pipeline, hospital, scope=WRITE)
    hospital.ehr_faults.fhir_status = None
    pipeline.deliver_again(ended.stored.id, hospital.token("lesion"))
    assert look(pipeline, ended.row.id).stored.delivery is DeliveryState.DELIVERED


def test_a_late_delivery_is_audited(pipeline, hospital):
    ended = run(pipeline, hospital, scope=READ)
    pipeline.deliver_again(ended.stored.id, hospital.token("lesion"))
    event = look(pipeline, ended.row.id).events[-1]
    assert (event.kind, event.detail["job"]) == ("fhir:result:written", ended.row.id)


def test_a_failed_delivery_does_not_lose_the_result(pipeline, hospital):
    hospital.ehr_faults.fhir_status = 500
    ended = run(pipeline, hospital, scope=WRITE)
    assert (ended.row.state, ended.stored.delivery) == (JobState.DONE, DeliveryState.FAILED)
    assert ended.stored.delivery_detail == "upstream_unavailable"
    assert ended.stored.result.findings[0].positive


def test_without_the_scope_the_patient_is_not_read(pipeline, hospital):
    assert "fhir:resource:read" not in run(pipeline, hospital, scope=WRITE).kinds


def test_an_ehr_that_refuses_the_write_is_told_as_such(pipeline, hospital):
    granted = hospital.token("lesion", READ)
    claimed_more = replace(granted, scope=READ + WRITE)
    job_id = ask(pipeline, hospital.reference("lesion"), claimed_more)
    pipeline.run(job_id)
    assert look(pipeline, job_id).stored.delivery is DeliveryState.NOT_PERMITTED


def test_a_study_out_of_scope_is_done_and_not_delivered(pipeline, hospital):
    ended = run(pipeline, hospital, "ct")
    assert (ended.row.state, ended.stored.result.status) == (JobState.DONE, AnalysisStatus.OUT_OF_SCOPE)
    assert "inference:study:out_of_scope" in ended.kinds
    assert hospital.written("DiagnosticReport") == []


def test_a_study_of_unreadable_images_is_never_no_finding(pipeline, hospital):
    ended = run(pipeline, hospital, "half")
    assert (ended.stored.result.status, ended.stored.result.findings) == (AnalysisStatus.REFUSED, ())
    assert hospital.written("DiagnosticReport") == []


def test_an_incomplete_study_says_so_in_the_ehr(pipeline, hospital):
    run(pipeline, hospital, "part")
    (report,) = hospital.written("DiagnosticReport")
    assert "Incomplete: 1 of 8 images could not be read" in report["conclusion"]


def test_images_of_another_patient_are_refused_without_a_result(pipeline, hospital):
    ended = run(pipeline, hospital, "stranger")
    assert (ended.row.state, ended.row.error_code) == (JobState.REFUSED, "patient_mismatch")
    assert ended.stored is None
    assert hospital.written("DiagnosticReport") == []


def test_images_of_another_patient_are_audited_as_accessed_and_refused(pipeline, hospital):
    kinds = run(pipeline, hospital, "stranger").kinds
    assert kinds == ["fhir:resource:read", "dicomweb:study:failed", "inference:study:refused"]


def test_images_of_another_study_are_refused(pipeline, hospital):
    hospital.pacs_faults.wrong_study = True
    ended = run(pipeline, hospital)
    assert (ended.row.state, ended.row.error_code) == (JobState.REFUSED, "identity_conflict")


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"status": 401}, "upstream_refused"),
        ({"status": 404}, "study_not_found"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_a_pacs_that_refuses_is_a_failure_that_may_pass(pipeline, hospital, fault, code):
    for name, value in fault.items():
        setattr(hospital.pacs_faults, name, value)
    ended = run(pipeline, hospital)
    assert (ended.row.state, ended.row.error_code, ended.row.retryable) == (JobState.FAILED, code, True)
    assert ended.kinds[-2:] == ["dicomweb:study:failed", "inference:job:failed"]


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"status": 500}, "upstream_unavailable"),
        ({"slow_s": 3.0}, "upstream_timeout"),
        ({"drip_s": 0.05}, "upstream_timeout"),
        ({"truncated": True}, "truncated_response"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_an_analysis_is_put_off_while_the_pacs_is_in_trouble(pipeline, hospital, fault, code):
    for name, value in fault.items():
        setattr(hospital.pacs_faults, name, value)
    ended = run(pipeline, hospital)
    assert (ended.row.state, ended.row.error_code, ended.row.is_put_off) == (JobState.QUEUED, code, True)
    assert ended.kinds[-2:] == ["dicomweb:study:failed", "inference:job:postponed"]


def test_an_analysis_is_put_off_while_the_ehr_is_in_trouble(pipeline, hospital):
    hospital.ehr_faults.fhir_status = 500
    ended = run(pipeline, hospital)
    assert (ended.row.is_put_off, ended.row.error_code) == (True, "upstream_unavailable")


def test_an_analysis_that_was_put_off_is_made_when_its_time_comes(pipeline, hospital):
    hospital.pacs_faults.status = 500
    run(pipeline, hospital)
    hospital.pacs_faults.status = None
    assert pipeline.run_next() is None
    later = replace(pipeline, clock=lambda: time.time() + 10)
    assert later.run_next() is not None
    assert run(pipeline, hospital).row.state is JobState.DONE


class DyingEngine(SpotEngine):
    """Its process ends with the images in hand, as of a network that they make it crash in."""

    def run(self, batch, timeout_s):
        raise EngineUnavailable("the inference engine stopped", code=ENGINE_ENDED)


def test_images_that_end_the_engine_each_time_are_given_up(pipeline, hospital, decoder):
    model = package(hospital.folder)
    analyser = Analyser((model,), {model.manifest.id: DyingEngine()}, decoder)
    poisoned = replace(pipeline, analyser=analyser)
    first = run(poisoned, hospital)
    assert (first.row.state, first.row.error_code, first.row.attempts) == (JobState.QUEUED, ENGINE_ENDED, 1)
    for number in range(1, MAX_ATTEMPTS + 1):
        replace(poisoned, clock=lambda n=number: time.time() + 10 * n).run_next()
    ended = look(pipeline, first.row.id)
    assert (ended.row.state, ended.row.error_code, ended.row.attempts) == (
        JobState.DEAD,
        "attempts_exhausted",
        MAX_ATTEMPTS,
    )
    assert ended.kinds[-1] == "inference:job:failed"


def test_an_analysis_that_outlasts_its_token_ends_with_a_clear_state(pipeline, hospital):
    """The EHR has registered us as no service of its own, and nobody has lent a new token."""
    hospital.pacs_faults.status = 500
    row = run(pipeline, hospital).row
    replace(pipeline, clock=lambda: time.time() + 3600).run_next()
    with pipeline.sessions() as session:
        row = jobs.load_job(session, row.id)
    assert (row.state, row.error_code, row.retryable) == (JobState.FAILED, "authorization_expired", True)


def test_a_failed_job_succeeds_when_it_is_asked_again(pipeline, hospital):
    hospital.pacs_faults.status = 500
    run(pipeline, hospital)
    hospital.pacs_faults.status = None
    assert run(pipeline, hospital).stored.delivery is DeliveryState.DELIVERED


def test_a_worker_that_lost_its_lease_stores_and_delivers_nothing(pipeline, hospital):
    def another_worker_claims():
        later = time.time() + 10_000
        with pipeline.sessions() as session:
            (job_id,) = jobs.overdue(session, lambda: later)
            jobs.claim(session, pipeline.keyring, job_id, lease_s=60, clock=lambda: later)
            session.commit()

    hospital.on_introspection.append(another_worker_claims)
    ended = run(pipeline, hospital)
    assert (ended.row.state, ended.stored) == (JobState.RUNNING, None)
    assert hospital.written("DiagnosticReport") == []
    assert "dicomweb:study:retrieved" in ended.kinds


def test_a_killed_worker_costs_nothing_but_time(pipeline, hospital):
    hospital.pacs_faults.slow_s = 8.0
    job_id = ask(pipeline, hospital.reference("lesion"), hospital.token("lesion"))
    worker = [sys.executable, "-m", "tests.integration.pipeline_parts"]
    arguments = [str(hospital.folder), hospital.ehr_url, hospital.pacs_url, job_id]
    process = subprocess.Popen([*worker, *arguments], cwd=ROOT)
    while look(pipeline, job_id).kinds != ["fhir:resource:read"]:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    hospital.pacs_faults.slow_s = 0.0
    replace(pipeline, clock=lambda: time.time() + 121).run(job_id)
    ended = look(pipeline, job_id)
    assert (ended.row.state, ended.row.attempts) == (JobState.DONE, 2)
    assert ended.stored.delivery is DeliveryState.DELIVERED


@pytest.mark.parametrize("name", ["lesion", "stranger"])
def test_no_log_line_says_who_or_what(pipeline, hospital, name):
    token = hospital.token(name)
    study = hospital.study(name)
    secrets = [token.access_token, study.patient_id, study.study_instance_uid, "MRN-", "PHANTOM"]
    job_id = ask(pipeline, hospital.reference(name), token)
    with structlog.testing.capture_logs() as lines:
        pipeline.run(job_id)
    assert lines
    assert not [secret for secret in secrets if secret in json.dumps(lines, default=str)]
