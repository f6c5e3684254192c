"""What an EHR did not get is brought to it when it is back: by itself, once, by whichever process comes first."""

import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from joserfc.jwk import KeySet
from sqlalchemy import text

from rayhook.audit.review import recent
from rayhook.auth.smart import public_jwks
from rayhook.inference import jobs
from rayhook.inference.attempt import Attempt
from rayhook.inference.dicom_table import StoreState, load_objects
from rayhook.inference.dicomweb import RetrievalLimits
from rayhook.inference.lease import Hold
from rayhook.inference.outbox import MAX_ATTEMPTS, Errand, awaits_errand
from rayhook.inference.results import DeliveryState

from .hospital import READ, WRITE, open_hospital
from .pipeline_parts import as_backend, pipeline_over

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hospital(catalogue, tmp_path):
    with open_hospital(catalogue, tmp_path) as hospital:
        hospital.folder.mkdir()
        ledger = hospital.demo.store.transaction

        def counted(bundle):
            hospital.transactions.append(bundle)
            return ledger(bundle)

        hospital.transactions = []
        hospital.demo.store.transaction = counted
        yield hospital


@pytest.fixture
def alone(hospital, decoder):
    """A pipeline at an EHR that gives us no token of our own."""
    with pipeline_over(
        hospital.folder,
        ehr_url=hospital.ehr_url,
        pacs_url=hospital.pacs_url,
        decoder=decoder,
        limits=RetrievalLimits(deadline_s=5.0),
    ) as pipeline:
        hospital.demo.authorization.client_keys = lambda: KeySet.import_key_set(public_jwks(pipeline.keyring))
        yield pipeline


@pytest.fixture
def pipeline(alone):
    return as_backend(alone)


@pytest.fixture
def storing(pipeline):
    """The same at an EHR that wants reports as DICOM objects too."""
    (ehr,) = pipeline.registry
    wanting = replace(ehr, dicom_results=("sr",))
    return replace(pipeline, registry=replace(pipeline.registry, ehrs=(wanting,)))


def later(pipeline, seconds):
    return replace(pipeline, clock=lambda: time.time() + seconds)


def run(pipeline, hospital, scope=READ + WRITE):
    asked = hospital.reference("lesion")
    with pipeline.sessions() as session:
        key = jobs.job_key(asked, pipeline.analyser.identities)
        token = hospital.token("lesion", scope)
        row, _ = jobs.enqueue(session, pipeline.keyring, asked, token, key=key, request_id="request-1")
        session.commit()
    pipeline.run(row.id)
    with pipeline.sessions() as session:
        return jobs.load_job(session, row.id).result_id


def look(pipeline, result_id):
    with pipeline.sessions() as session:
        return jobs.load_result(session, pipeline.keyring, result_id)


def kinds(pipeline):
    with pipeline.sessions() as session:
        return [event.kind.value for event in recent(session, pipeline.keyring, limit=50)][::-1]


def awaits(pipeline, result_id, errand=Errand.REPORT):
    with pipeline.sessions() as session:
        return awaits_errand(session, result_id, errand, now=pipeline.clock())


def failed(pipeline, hospital):
    """Return a result that the EHR was too ill to take; the EHR is well again."""
    hospital.ehr_faults.fhir_status = 500
    result_id = run(pipeline, hospital, WRITE)
    hospital.ehr_faults.fhir_status = None
    assert look(pipeline, result_id).delivery is DeliveryState.FAILED
    return result_id


def cut_off(pipeline, hospital):
    """Return a result whose process ended between the result and its delivery."""
    result_id = run(pipeline, hospital, READ)
    with pipeline.sessions() as session:
        session.execute(text("UPDATE analysis_result SET delivery = 'pending', delivery_detail = NULL"))
        session.execute(
            text("UPDATE result_outbox SET next_attempt_at = :at, lease_until = :at"),
            {"at": time.time() + 60},
        )
        session.commit()
    return result_id


def test_a_report_is_brought_when_the_ehr_is_back(alone, hospital):
    result_id = failed(alone, hospital)
    with alone.sessions() as session:
        session.execute(text("UPDATE result_outbox SET next_attempt_at = 0"))
        session.commit()
    as_backend(alone).deliver_due()
    assert look(alone, result_id).delivery is DeliveryState.DELIVERED
    assert len(hospital.written("DiagnosticReport")) == 1


def test_a_report_waits_for_its_pause(pipeline, hospital):
    result_id = failed(pipeline, hospital)
    pipeline.deliver_due()
    assert look(pipeline, result_id).delivery is DeliveryState.FAILED
    later(pipeline, 16).deliver_due()
    assert look(pipeline, result_id).delivery is DeliveryState.DELIVERED


def test_each_try_that_fails_doubles_the_pause(pipeline, hospital):
    result_id = failed(pipeline, hospital)
    hospital.ehr_faults.fhir_status = 503
    later(pipeline, 16).deliver_due()
    hospital.ehr_faults.fhir_status = None
    later(pipeline, 16 + 29).deliver_due()
    assert look(pipeline, result_id).delivery is DeliveryState.FAILED
    later(pipeline, 16 + 31).deliver_due()
    assert look(pipeline, result_id).delivery is DeliveryState.DELIVERED


def test_every_late_try_is_audited(pipeline, hospital):
    failed(pipeline, hospital)
    before = len(kinds(pipeline))
    hospital.ehr_faults.fhir_status = 503
    later(pipeline, 16).deliver_due()
    hospital.ehr_faults.fhir_status = None
    later(pipeline, 60).deliver_due()
    assert kinds(pipeline)[before:] == ["fhir:result:write_refused", "fhir:result:written"]


def test_what_is_delivered_is_no_errand(pipeline, hospital):
    result_id = failed(pipeline, hospital)
    later(pipeline, 16).deliver_due()
    hospital.transactions.clear()
    later(pipeline, 1e6).deliver_due()
    assert not awaits(pipeline, result_id)
    assert hospital.transactions == []


def test_a_report_whose_process_ended_is_brought(alone, hospital):
    result_id = cut_off(alone, hospital)
    pipeline = as_backend(alone)
    pipeline.deliver_due()
    assert look(pipeline, result_id).delivery is DeliveryState.PENDING  # its minute is not over
    later(pipeline, 61).deliver_due()
    assert look(pipeline, result_id).delivery is DeliveryState.DELIVERED


def test_without_a_token_of_our_own_it_ends_honestly(alone, hospital):
    result_id = cut_off(alone, hospital)
    before = len(kinds(alone))
    for seconds in (61, 1000, 1e6):
        later(alone, seconds).deliver_due()
    stored = look(alone, result_id)
    assert (stored.delivery, stored.delivery_detail) == (DeliveryState.NOT_PERMITTED, "no_authorization")
    assert kinds(alone)[before:] == ["fhir:result:write_refused"]


def test_what_ended_so_still_goes_with_a_later_calls_token(alone, hospital):
    result_id = cut_off(alone, hospital)
    later(alone, 61).deliver_due()
    assert awaits(alone, result_id)
    alone.deliver_again(result_id, hospital.token("lesion"))
    assert look(alone, result_id).delivery is DeliveryState.DELIVERED


def test_a_report_that_the_ehr_will_not_have_is_not_tried_again(pipeline, hospital):
    hospital.ehr_faults.fhir_status = 403
    result_id = run(pipeline, hospital, WRITE)
    hospital.ehr_faults.fhir_status = None
    later(pipeline, 1e6).deliver_due()
    assert look(pipeline, result_id).delivery is DeliveryState.NOT_PERMITTED
    assert hospital.transactions == []


def test_an_ehr_that_gives_no_token_for_now_is_told_as_a_failure(pipeline, hospital):
    result_id = failed(pipeline, hospital)
    hospital.ehr_faults.fhir_status = 503  # its SMART configuration too
    later(pipeline, 16).deliver_due()
    stored = look(pipeline, result_id)
    assert (stored.delivery, stored.delivery_detail) == (
        DeliveryState.FAILED,
        "smart_configuration_unavailable",
    )


def test_objects_wait_for_a_token_of_our_own(storing, hospital):
    hospital.pacs_faults.busy = 99
    result_id = run(storing, hospital)
    hospital.pacs_faults.busy = 0
    hospital.ehr_faults.fhir_status = 503
    later(storing, 40).store_due()
    hospital.ehr_faults.fhir_status = None
    later(storing, 200).store_due()
    with storing.sessions() as session:
        (report,) = load_objects(session, storing.keyring, result_id)
    assert report.state is StoreState.STORED


def test_tries_have_an_end(pipeline, hospital):
    result_id = failed(pipeline, hospital)
    with pipeline.sessions() as session:
        session.execute(text("UPDATE result_outbox SET attempts = :most"), {"most": MAX_ATTEMPTS})
        session.commit()
    later(pipeline, 1e6).deliver_due()
    assert hospital.transactions == []
    assert not awaits(pipeline, result_id)


def test_who_comes_second_does_not_unsay_what_was_delivered(alone, hospital):
    result_id = failed(alone, hospital)
    stored = look(alone, result_id)
    alone.deliver_again(result_id, hospital.token("lesion"))
    claimed = jobs.ClaimedJob(stored.job_id, 0, 0, stored.reference, None, "request-2")
    (ehr,) = alone.registry
    second = alone._reports.deliver(
        Attempt(claimed, None, Hold(claimed)), ehr, result_id, stored.result, resources=stored.resources
    )
    assert second.state is DeliveryState.NOT_PERMITTED
    assert look(alone, result_id).delivery is DeliveryState.DELIVERED


def test_two_processes_at_once_write_it_once(alone, hospital):
    result_id = failed(alone, hospital)
    with alone.sessions() as session:
        session.execute(text("UPDATE result_outbox SET next_attempt_at = 0"))
        session.commit()
    hospital.ehr_faults.slow_s = 2.0
    go = hospital.folder / "go"
    command = [sys.executable, "-m", "tests.integration.pipeline_parts", str(hospital.folder)]
    command += [hospital.ehr_url, hospital.pacs_url, f"deliver-due-at={go}"]
    with ExitStack() as stack:
        started = (subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2))
        workers = [stack.enter_context(worker) for worker in started]
        for worker in workers:
            assert any(line == "ready\n" for line in worker.stdout)
        go.touch()
        assert [worker.wait(60) for worker in workers] == [0, 0]
    assert look(alone, result_id).delivery is DeliveryState.DELIVERED
    assert len(hospital.transactions) == 1
    assert kinds(alone).count("fhir:result:written") == 1


@pytest.fixture
def unlinked(storing, hospital):
    """A result whose object is at the PACS, and whose link the EHR was too ill to take; both are well again."""
    hospital.pacs_faults.busy = 99
    result_id = run(storing, hospital)
    hospital.pacs_faults.busy = 0
    (ehr,) = storing.registry
    storing.backend.token(ehr)  # it outlasts the trouble
    hospital.ehr_faults.fhir_status = 500
    later(storing, 40).store_due()
    hospital.ehr_faults.fhir_status = None
    with storing.sessions() as session:
        (report,) = load_objects(session, storing.keyring, result_id)
    assert report.state is StoreState.STORED
    assert hospital.written("DocumentReference") == []
    return result_id


def test_a_link_is_written_when_the_ehr_is_back(storing, hospital, unlinked):
    later(storing, 60).deliver_due()
    (link,) = hospital.written("DocumentReference")
    assert link["subject"]["reference"] == "Patient/patient-lesion"
    assert kinds(storing)[-2:] == ["fhir:result:write_refused", "fhir:result:written"]


def test_a_link_is_written_once(storing, hospital, unlinked):
    later(storing, 60).deliver_due()
    hospital.transactions.clear()
    later(storing, 1e6).deliver_due()
    assert hospital.transactions == []
    assert not awaits(storing, unlinked, Errand.LINKS)


def test_a_link_goes_with_a_later_calls_token(storing, hospital, unlinked):
    storing = later(storing, 45)
    assert awaits(storing, unlinked, Errand.LINKS)
    token = hospital.token("lesion", f"{READ}{WRITE} patient/DocumentReference.c")
    storing.deliver_again(unlinked, token)
    assert len(hospital.written("DocumentReference")) == 1


def test_an_object_in_another_process_hands_is_left_to_it(storing, hospital):
    hospital.pacs_faults.busy = 99
    result_id = run(storing, hospital)
    hospital.pacs_faults.busy = 0
    with storing.sessions() as session:
        (before,) = load_objects(session, storing.keyring, result_id)
    other = later(storing, 40)
    assert other._outbox.lock(result_id, Errand.OBJECTS, lease_s=180)
    other.store_due()
    with storing.sessions() as session:
        assert load_objects(session, storing.keyring, result_id) == [before]
    later(storing, 40 + 181).store_due()
    with storing.sessions() as session:
        (after,) = load_objects(session, storing.keyring, result_id)
    assert after.state is StoreState.STORED
