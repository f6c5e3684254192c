"""What the worker does while the log takes no event: nothing of a patient leaves, nothing is lost."""

from contextlib import suppress

import pytest

from rayhook.fhir.errors import AuditUnavailable
from rayhook.inference import jobs
from rayhook.inference.dicom_table import StoreState
from rayhook.inference.jobs import DeliveryState, JobState
from rayhook.inference.outbox import LEASE_S
from tests.doubles.full_log import full_log
from tests.integration.hospital import READ, WRITE
from tests.integration.test_dicom_results import (  # noqa: F401 - fixtures
    events,
    hospital,
    in_pacs,
    later,
    pipeline,
    rows,
)


def refusing(pipeline, kind=None):  # noqa: F811
    return full_log(pipeline.sessions().get_bind(), kind)


def queued(pipeline, hospital):  # noqa: F811
    asked = hospital.reference("lesion")
    with pipeline.sessions() as session:
        key = jobs.job_key(asked, pipeline.analyser.identities)
        token = hospital.token("lesion", READ + WRITE)
        row, _ = jobs.enqueue(session, pipeline.keyring, asked, token, key=key, request_id="request-1")
        session.commit()
    return row.id


def run(pipeline, job_id):  # noqa: F811
    with suppress(
        AuditUnavailable
    ):  # the queue's thread logs it, and the job is taken up again when its lease ends
        pipeline.run(job_id)
    with pipeline.sessions() as session:
        row = jobs.load_job(session, job_id)
        stored = row.result_id and jobs.load_result(session, pipeline.keyring, row.result_id)
    return row, stored


def written(hospital):  # noqa: F811
    return [
        kind for kind in ("DiagnosticReport", "Observation", "Provenance", "Device") if hospital.written(kind)
    ]


BEFORE_THE_RESULT = (
    None,
    "fhir:resource:read",
    "dicomweb:study:retrieved",
    "inference:study:analysed",
)


@pytest.mark.parametrize("kind", BEFORE_THE_RESULT)
def test_what_cannot_be_logged_comes_to_no_result(pipeline, hospital, kind):  # noqa: F811
    before = set(in_pacs(hospital))
    job_id = queued(pipeline, hospital)
    with refusing(pipeline, kind):
        row, stored = run(pipeline, job_id)
    assert stored is None
    assert row.state is not JobState.DONE
    assert (written(hospital), set(in_pacs(hospital))) == ([], before)


def test_with_the_log_the_same_study_comes_to_its_report_and_objects(pipeline, hospital):  # noqa: F811
    before = set(in_pacs(hospital))
    row, stored = run(pipeline, queued(pipeline, hospital))
    assert (row.state, stored.delivery) == (JobState.DONE, DeliveryState.DELIVERED)
    assert written(hospital)
    assert set(in_pacs(hospital)) > before


def test_a_report_whose_writing_is_not_logged_does_not_count_as_written(pipeline, hospital):  # noqa: F811
    with refusing(pipeline, "fhir:result:written"):
        _, stored = run(pipeline, queued(pipeline, hospital))
    assert stored.delivery is not DeliveryState.DELIVERED
    later(pipeline, LEASE_S + 1).deliver_again(stored.id, hospital.token("lesion", READ + WRITE))
    assert [event.kind for event in events(pipeline)].count("fhir:result:written") == 1
    assert len(hospital.written("DiagnosticReport")) == 1


def test_objects_whose_storing_is_not_logged_do_not_count_as_stored(pipeline, hospital):  # noqa: F811
    with refusing(pipeline, "dicomweb:result:stored"):
        _, stored = run(pipeline, queued(pipeline, hospital))
    found = rows(pipeline, stored)
    assert all(one.state is not StoreState.STORED for one in found.values())
