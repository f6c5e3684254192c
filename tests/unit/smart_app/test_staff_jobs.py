"""The analyses and settings pages as an administrator, a model manager and everybody else meet them."""

import time

import pytest

from rayhook.audit.events import AuditKind
from rayhook.audit.review import recent
from rayhook.auth.accounts import create_account, enrol_at_once
from rayhook.auth.roles import Role
from rayhook.inference import jobs
from rayhook.inference.claims import MAX_ATTEMPTS, claim
from rayhook.inference.jobs import JobState

from .test_staff_sign_in import PASSWORD, Person, at_once, staff, words  # noqa: F401 - fixtures

PATIENT = "phantom-lesion"


@pytest.fixture
def administrator(staff):  # noqa: F811
    staff.administrator.sign_in()
    return staff.administrator


@pytest.fixture
def manager(staff):  # noqa: F811
    world = staff.world
    with world.database.sessions() as session:
        account = create_account(session, world.keyring, "mia.cole", [Role.MODEL_MANAGER], clock=world.clock)
        secret, codes = enrol_at_once(
            session, world.keyring, account.id, password=PASSWORD, clock=world.clock
        )
        session.commit()
    person = Person(world, "mia.cole", secret, codes)
    person.sign_in()
    return person


@pytest.fixture
def failed(world):
    id_ = world.enqueue(PATIENT, study="1.2.3.801")
    world.fail(id_, code="upstream_timeout", message="the PACS of PHANTOM^TEST is slow", retryable=True)
    return id_


@pytest.fixture
def refused(world):
    id_ = world.enqueue(PATIENT, study="1.2.3.802")
    world.fail(id_, code="no_dicomweb_endpoint", message="never", retryable=False)
    return id_


def state(world, job_id):
    with world.database.reading() as session:
        return jobs.load_job(session, job_id)


def newest(world, kind):
    with world.database.reading() as session:
        return recent(session, world.keyring, limit=1, kind=kind)[0]


def test_a_failed_analysis_is_listed_with_its_code(administrator, failed):
    page = words(administrator.browser.get("/staff/jobs"))
    assert failed in page
    assert "upstream_timeout" in page


def test_nothing_on_the_page_is_of_a_patient(administrator, failed):
    page = administrator.browser.get("/staff/jobs").text
    assert not any(private in page for private in (PATIENT, "1.2.3.801", "PHANTOM^TEST"))


def test_looking_is_audited(administrator, world, failed):
    administrator.browser.get("/staff/jobs")
    record = newest(world, AuditKind.INFERENCE_JOB_LISTED)
    assert "ada.hale" in record.agent or record.agent.startswith("account")


def test_one_is_tried_again(administrator, world, failed):
    answer = administrator.browser.post(f"/staff/jobs/{failed}/retry")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/staff/jobs")
    again = state(world, failed)
    assert (again.state, again.attempts, again.error_code) == (JobState.QUEUED, 0, None)


def test_a_retry_is_audited_with_the_code_it_had(administrator, world, failed):
    administrator.browser.post(f"/staff/jobs/{failed}/retry")
    record = newest(world, AuditKind.INFERENCE_JOB_RETRIED)
    assert (record.detail["job"], record.detail["code"]) == (failed, "upstream_timeout")
    assert record.patient_id is None


def test_all_that_may_be_are_tried_again(administrator, world, failed, refused):
    administrator.browser.post("/staff/jobs/retry")
    assert (state(world, failed).state, state(world, refused).state) == (JobState.QUEUED, JobState.FAILED)


def test_trying_all_again_where_there_are_none_is_audited_too(administrator, world):
    administrator.browser.post("/staff/jobs/retry")
    administrator.browser.post("/staff/jobs/retry")
    assert newest(world, AuditKind.INFERENCE_JOB_RETRIED).detail["jobs"] == "0"


def test_what_may_not_be_tried_again_is_not(administrator, world, refused):
    answer = administrator.browser.post(f"/staff/jobs/{refused}/retry")
    assert answer.status_code == 409
    assert "cannot be tried again" in words(answer)
    assert state(world, refused).state is JobState.FAILED


@pytest.fixture
def waiting(world):
    return world.enqueue(PATIENT, study="1.2.3.803")


def test_what_waits_is_listed_with_its_priority_and_queue(administrator, waiting):
    page = words(administrator.browser.get("/staff/jobs"))
    assert f"{waiting} demo-ehr Waiting routine cpu" in " ".join(page.split())


def test_where_no_worker_is_alive_it_is_said(administrator):
    assert "No worker is alive" in words(administrator.browser.get("/staff/jobs"))


def test_one_that_waits_is_cancelled(administrator, world, waiting):
    answer = administrator.browser.post(f"/staff/jobs/{waiting}/cancel")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/staff/jobs")
    assert state(world, waiting).state is JobState.CANCELLED


def test_cancelling_is_audited_with_whom_it_is_about(administrator, world, waiting):
    administrator.browser.post(f"/staff/jobs/{waiting}/cancel")
    record = newest(world, AuditKind.INFERENCE_JOB_CANCELLED)
    assert (record.detail["job"], record.patient_id) == (waiting, PATIENT)
    assert "ada.hale" in record.agent or record.agent.startswith("account")


def test_one_that_has_ended_is_not_cancelled(administrator, world, failed):
    answer = administrator.browser.post(f"/staff/jobs/{failed}/cancel")
    assert answer.status_code == 409
    assert "there is nothing to cancel" in words(answer)
    assert state(world, failed).state is JobState.FAILED


def test_a_model_manager_cancels_nothing(manager, world, waiting):
    assert manager.browser.post(f"/staff/jobs/{waiting}/cancel").status_code == 403
    assert state(world, waiting).state is JobState.QUEUED


def test_images_that_end_their_process_are_told_as_that_and_not_tried_again_with_all(
    administrator, world, waiting
):
    now = time.time()
    with world.database.sessions() as session:
        for attempt in range(MAX_ATTEMPTS + 1):
            claim(session, world.keyring, waiting, lease_s=1, clock=lambda n=attempt: now + 1000 * n)
        session.commit()
    page = words(administrator.browser.get("/staff/jobs"))
    assert "ended the process that analysed them" in page
    administrator.browser.post("/staff/jobs/retry")
    assert state(world, waiting).state is JobState.DEAD
    administrator.browser.post(f"/staff/jobs/{waiting}/retry")
    assert state(world, waiting).state is JobState.QUEUED


def test_an_unknown_job_is_not_found(administrator):
    assert administrator.browser.post("/staff/jobs/0123/retry").status_code == 404


def test_a_form_of_another_site_retries_nothing(administrator, world, failed):
    answer = administrator.browser.post(
        f"/staff/jobs/{failed}/retry", headers={"Origin": "https://evil.example"}
    )
    assert answer.status_code == 403
    assert state(world, failed).state is JobState.FAILED


def test_a_proof_of_long_ago_is_asked_for_again(administrator, world, failed):
    world.clock.ahead_s += 700
    answer = administrator.browser.post(f"/staff/jobs/{failed}/retry")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/sign-in/confirm")
    assert state(world, failed).state is JobState.FAILED


def test_a_model_manager_looks_and_changes_nothing(manager, world, failed):
    page = manager.browser.get("/staff/jobs")
    assert failed in page.text
    assert '<form method="post" action="/staff/jobs' not in page.text
    assert manager.browser.post(f"/staff/jobs/{failed}/retry").status_code == 403
    assert state(world, failed).state is JobState.FAILED


@pytest.mark.parametrize("path", ["/staff/jobs", "/staff/settings"])
def test_a_compliance_officer_sees_neither(staff, path):  # noqa: F811
    staff.officer.sign_in()
    assert staff.officer.browser.get(path).status_code == 403


def test_the_settings_name_ehrs_models_keys_and_versions(administrator, world):
    page = words(administrator.browser.get("/staff/settings"))
    assert "demo-ehr" in page
    assert "system/DiagnosticReport.crus" in page
    assert "pydicom" in page
    for key in world.keyring.client_key_statuses():
        assert key.kid in page


def test_the_settings_show_no_private_key(administrator):
    page = administrator.browser.get("/staff/settings").text
    assert "PRIVATE KEY" not in page


def test_reading_the_settings_is_audited(administrator, world):
    before = time.time() - 60
    administrator.browser.get("/staff/settings")
    assert newest(world, AuditKind.DEPLOY_SETTINGS_READ).recorded_at.timestamp() > before
