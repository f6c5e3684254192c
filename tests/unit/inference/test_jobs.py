import math
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from sqlalchemy import text

from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database
from rayhook.fhir.errors import NotFound, Unprocessable
from rayhook.inference.claims import MAX_ATTEMPTS
from rayhook.inference.jobs import (
    Authorization,
    DeliveryState,
    JobState,
    claim,
    complete,
    enqueue,
    fail,
    find,
    job_key,
    jobs_for_patient,
    load_job,
    load_result,
    overdue,
    refuse,
    renew,
    results_for_patient,
    set_delivery,
)
from rayhook.inference.study import (
    AnalysisStatus,
    Finding,
    InstanceResult,
    KeyImage,
    ModelIdentity,
    StudyReference,
    StudyResult,
)

MODEL = ModelIdentity("flair", "1.0.0", "ab" * 32)
REFERENCE = StudyReference(
    ehr_id="north",
    fhir_base_url="https://north.example/fhir",
    patient_id="canary-patient",
    imaging_study_id="canary-study",
    study_instance_uid="1.2.826.777",
    dicomweb_url="https://north.example/dicomweb",
    token_required=True,
    source_version="1",
    modalities=("MR",),
    description="canary-description",
)
TOKEN = Authorization("canary-token", "patient/ImagingStudy.rs", 2000.0)
KEY = job_key(REFERENCE, [MODEL])
FINDING = Finding("1", "http://snomed.info/sct", "Glioma", 0.25, 0.5, positive=False)
RESULT = StudyResult(
    study_instance_uid="1.2.826.777",
    series_instance_uid="1.2.826.777.1",
    status=AnalysisStatus.ANALYSED,
    reason=None,
    findings=(FINDING,),
    model=MODEL,
    aggregation="max_of_median3",
    instances=(
        InstanceResult(
            sop_instance_uid="1.2.826.777.1.1",
            study_instance_uid="1.2.826.777",
            series_instance_uid="1.2.826.777.1",
            status=AnalysisStatus.ANALYSED,
            findings=(FINDING,),
            model=MODEL,
            elapsed_ms=1.5,
        ),
    ),
    slice_probabilities=(0.125, 0.25),
    key_image=KeyImage("1.2.826.777.1.1", "1.2.826.777.1", 2, 3, b"\x89PNG canary", b"\x89PNG overlay"),
    analysed_at=datetime(2026, 1, 1, tzinfo=UTC),
    elapsed_ms=12.5,
)
RESOURCES = [
    {"resourceType": "DiagnosticReport", "conclusion": "canary-conclusion", "value": Decimal("0.10")}
]


class Store:
    """The functions under test on one database, each call in its own transaction."""

    def __init__(self, database, keyring):
        self.database, self.keyring, self.now = database, keyring, 1000.0

    def clock(self):
        return self.now

    def __call__(self, function, *arguments, **options):
        with self.database.sessions() as session:
            result = function(session, *arguments, **options)
            session.commit()
        return result

    def enqueue(self, reference=REFERENCE, authorization=TOKEN, key=KEY, request_id="request-1"):
        return self(
            enqueue, self.keyring, reference, authorization, key=key, request_id=request_id, clock=self.clock
        )

    def claim(self, job_id, lease_s=60.0):
        return self(claim, self.keyring, job_id, lease_s=lease_s, clock=self.clock)

    def claimed(self, **options):
        job, _ = self.enqueue(**options)
        return self.claim(job.id)

    def complete(self, claimed, result=RESULT, resources=RESOURCES):
        return self(complete, self.keyring, claimed, result, resources, clock=self.clock)

    def fail(self, claimed, *, retryable=True):
        return self(
            fail, claimed, code="upstream_timeout", message="no answer", retryable=retryable, clock=self.clock
        )

    def refuse(self, claimed):
        return self(refuse, claimed, code="not_dicom", message="not DICOM", clock=self.clock)

    def state(self, job_id):
        return self(load_job, job_id).state

    def column(self, name):
        with self.database.reading() as session:
            return session.execute(text(f'SELECT "{name}" FROM analysis_job')).scalar()


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keys") / "keyring.json")


@pytest.fixture
def store(both, keyring):
    database = create_database(both.url)
    yield Store(database, keyring)
    database.close()


@pytest.mark.parametrize(
    "change",
    [
        {"ehr_id": "south"},
        {"fhir_base_url": "https://south.example/fhir"},
        {"imaging_study_id": "2"},
        {"patient_id": "2"},
        {"source_version": "2"},
        {"study_instance_uid": "1.2"},
    ],
)
def test_key_tells_studies_apart(change):
    assert job_key(replace(REFERENCE, **change), [MODEL]) != KEY


@pytest.mark.parametrize("change", [{"id": "other"}, {"version": "1.0.1"}, {"weights_sha256": "cd" * 32}])
def test_key_tells_models_apart(change):
    assert job_key(REFERENCE, [replace(MODEL, **change)]) != KEY


def test_key_depends_on_the_order_of_the_models():
    other = replace(MODEL, id="other")
    assert job_key(REFERENCE, [MODEL, other]) != job_key(REFERENCE, [other, MODEL])


def test_key_does_not_depend_on_what_the_study_is_called():
    assert job_key(replace(REFERENCE, description="another"), [MODEL]) == KEY


def test_new_job_is_queued(store):
    job, created = store.enqueue()
    assert (created, job.state, job.attempts, job.request_id) == (True, JobState.QUEUED, 0, "request-1")


def test_same_key_is_the_same_job(store):
    first, _ = store.enqueue()
    second, created = store.enqueue(request_id="request-2")
    assert (second.id, created) == (first.id, False)


def test_job_is_found_by_its_key(store):
    job, _ = store.enqueue()
    assert store(find, KEY) == job


def test_unknown_job_is_none(store):
    assert store(find, "unknown") is None
    assert store(load_job, "unknown") is None
    assert store.claim("unknown") is None


def test_claim_hands_out_the_job(store):
    claimed = store.claimed()
    assert (claimed.reference, claimed.authorization, claimed.request_id) == (REFERENCE, TOKEN, "request-1")
    assert (claimed.fence, claimed.attempts) == (1, 1)


def test_attempt_is_counted_at_the_claim(store):
    claimed = store.claimed()
    assert store(load_job, claimed.id).attempts == 1


def test_job_in_hand_is_not_claimed(store):
    claimed = store.claimed()
    assert store.claim(claimed.id) is None


def test_job_whose_lease_ran_out_is_claimed_with_a_higher_fence(store):
    first = store.claimed()
    store.now += 60
    second = store.claim(first.id)
    assert (second.fence, second.attempts) == (first.fence + 1, 2)


def test_renewed_lease_holds(store):
    claimed = store.claimed()
    store.now += 50
    assert store(renew, claimed, lease_s=60.0, clock=store.clock)
    store.now += 50
    assert store.claim(claimed.id) is None


def test_job_that_kills_its_workers_is_dead_after_its_attempts(store):
    job, _ = store.enqueue()
    for _ in range(MAX_ATTEMPTS):
        assert store.claim(job.id) is not None
        store.now += 60
    assert store.claim(job.id) is None
    row = store(load_job, job.id)
    assert (row.state, row.error_code, row.attempts) == (JobState.DEAD, "attempts_exhausted", MAX_ATTEMPTS)


def test_dead_job_stays_dead(store):
    job, _ = store.enqueue()
    for _ in range(MAX_ATTEMPTS + 1):
        store.claim(job.id)
        store.now += 60
    assert store.enqueue() == (store(load_job, job.id), False)
    assert store.claim(job.id) is None


def test_completed_job_names_its_result(store):
    claimed = store.claimed()
    result_id = store.complete(claimed)
    row = store(load_job, claimed.id)
    assert (row.state, row.result_id) == (JobState.DONE, result_id)


def test_stored_result_reads_back(store):
    result_id = store.complete(store.claimed())
    stored = store(load_result, store.keyring, result_id)
    assert (stored.ehr_id, stored.patient_id) == ("north", "canary-patient")
    assert (stored.reference, stored.result, stored.resources) == (REFERENCE, RESULT, tuple(RESOURCES))
    assert (stored.delivery, stored.created_at) == (DeliveryState.PENDING, 1000.0)


def test_result_without_key_image_reads_back(store):
    result = replace(RESULT, status=AnalysisStatus.OUT_OF_SCOPE, key_image=None, findings=(), model=None)
    result_id = store.complete(store.claimed(), result=result)
    assert store(load_result, store.keyring, result_id).result == result


def test_unknown_result_is_none(store):
    assert store(load_result, store.keyring, "unknown") is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_result_that_is_not_finite_is_not_stored(store, value):
    claimed = store.claimed()
    with pytest.raises(Unprocessable):
        store.complete(claimed, result=replace(RESULT, slice_probabilities=(value,)))
    assert store.state(claimed.id) is JobState.RUNNING


def test_resource_that_is_not_finite_is_not_stored(store):
    with pytest.raises(Unprocessable):
        store.complete(store.claimed(), resources=[{"valueQuantity": math.nan}])


@pytest.mark.parametrize("end", ["complete", "fail", "refuse"])
def test_end_erases_the_token(store, end):
    claimed = store.claimed()
    assert store.column("authorization") is not None
    getattr(store, end)(claimed)
    assert store.column("authorization") is None


def test_death_erases_the_token(store):
    job, _ = store.enqueue()
    for _ in range(MAX_ATTEMPTS + 1):
        store.claim(job.id)
        store.now += 60
    assert store.column("authorization") is None


@pytest.mark.parametrize("end", ["complete", "fail", "refuse"])
def test_stale_fence_ends_nothing(store, end):
    stale = store.claimed()
    store.now += 60
    store.claim(stale.id)
    assert not getattr(store, end)(stale)
    assert store.state(stale.id) is JobState.RUNNING


def test_stale_fence_does_not_renew(store):
    stale = store.claimed()
    store.now += 60
    store.claim(stale.id)
    assert not store(renew, stale, lease_s=60.0)


def test_job_ends_once(store):
    claimed = store.claimed()
    store.complete(claimed)
    assert store.complete(claimed) is None


def test_late_worker_whose_lease_nobody_took_may_end_the_job(store):
    claimed = store.claimed()
    store.now += 3600
    assert store.complete(claimed) is not None


def test_failed_job_says_why(store):
    claimed = store.claimed()
    store.fail(claimed)
    row = store(load_job, claimed.id)
    assert (row.state, row.error_code, row.error_message, row.retryable) == (
        JobState.FAILED,
        "upstream_timeout",
        "no answer",
        True,
    )


def test_passing_failure_is_queued_again_with_the_new_token(store):
    claimed = store.claimed()
    store.fail(claimed)
    fresh = replace(TOKEN, access_token="fresh")
    job, created = store.enqueue(authorization=fresh, request_id="request-2")
    assert (job.id, created, job.state, job.error_code) == (claimed.id, True, JobState.QUEUED, None)
    again = store.claim(job.id)
    assert (again.authorization, again.attempts, again.request_id) == (fresh, 1, "request-2")
    assert again.fence > claimed.fence


def test_lasting_failure_is_not_queued_again(store):
    store.fail(store.claimed(), retryable=False)
    job, created = store.enqueue()
    assert (job.state, created) == (JobState.FAILED, False)


def test_refused_job_is_not_queued_again(store):
    store.refuse(store.claimed())
    job, created = store.enqueue()
    assert (job.state, job.error_code, created) == (JobState.REFUSED, "not_dicom", False)


@pytest.mark.parametrize(
    ("offered", "kept"),
    [
        (replace(TOKEN, access_token="b", expires_at=3000.0), "b"),
        (replace(TOKEN, access_token="b"), TOKEN.access_token),
        (None, TOKEN.access_token),
    ],
)
def test_waiting_job_keeps_the_token_that_lasts_longer(store, offered, kept):
    store.enqueue()
    job, _ = store.enqueue(authorization=offered)
    assert store.claim(job.id).authorization.access_token == kept


def test_waiting_job_without_a_token_takes_one(store):
    store.enqueue(authorization=None)
    job, _ = store.enqueue()
    assert store.claim(job.id).authorization == TOKEN


def test_finished_job_takes_no_token(store):
    store.complete(store.claimed())
    store.enqueue()
    assert store.column("authorization") is None


def test_token_is_not_shown():
    assert "canary-token" not in repr(TOKEN)


def test_patient_data_is_not_on_disk(store, both):
    store.complete(store.claimed())
    store.enqueue(key="another")
    store.database.close()
    stored = both.content()
    assert b"queued" in stored
    assert b"canary" not in stored
    assert b"1.2.826.777" not in stored


def test_sealed_reference_of_another_job_does_not_open(store):
    first, _ = store.enqueue()
    second, _ = store.enqueue(reference=replace(REFERENCE, patient_id="2"), key="another")
    with store.database.sessions() as session:
        session.execute(
            text(
                f"UPDATE analysis_job SET reference = (SELECT reference FROM analysis_job WHERE id = '{first.id}')"
            )
        )
        session.commit()
    assert store.claim(first.id).reference == REFERENCE
    assert store.claim(second.id) is None
    assert store(load_job, second.id).error_code == "decryption_failed"


@pytest.mark.parametrize("other", [{"patient_id": "2"}, {"ehr_id": "south"}])
def test_lists_hold_one_patient_of_one_ehr(store, other):
    mine = store.complete(store.claimed())
    store.complete(store.claimed(reference=replace(REFERENCE, **other), key="another"))
    results = store(results_for_patient, store.keyring, "north", "canary-patient")
    jobs = store(jobs_for_patient, store.keyring, "north", "canary-patient")
    assert [result.id for result in results] == [mine]
    assert [(job.row.key, job.reference) for job in jobs] == [(KEY, REFERENCE)]


def test_lists_begin_with_the_newest(store):
    store.complete(store.claimed())
    store.now += 1
    newest = store.complete(store.claimed(key="another"))
    results = store(results_for_patient, store.keyring, "north", "canary-patient")
    jobs = store(jobs_for_patient, store.keyring, "north", "canary-patient")
    assert results[0].id == newest
    assert jobs[0].row.key == "another"


def test_listed_results_leave_the_image_out(store):
    store.complete(store.claimed())
    [listed] = store(results_for_patient, store.keyring, "north", "canary-patient")
    assert listed.result == replace(RESULT, key_image=None)


def test_delivery_is_noted(store):
    result_id = store.complete(store.claimed())
    store(set_delivery, result_id, DeliveryState.FAILED, "upstream_timeout")
    stored = store(load_result, store.keyring, result_id)
    assert (stored.delivery, stored.delivery_detail) == (DeliveryState.FAILED, "upstream_timeout")


def test_delivery_of_an_unknown_result_is_told(store):
    with pytest.raises(NotFound):
        store(set_delivery, "unknown", DeliveryState.DELIVERED)


def test_job_just_queued_is_not_overdue(store):
    store.enqueue()
    assert store(overdue, store.clock) == []


def test_job_whose_message_was_lost_is_overdue(store):
    job, _ = store.enqueue()
    store.now += 5
    assert store(overdue, store.clock) == [job.id]


def test_job_in_hand_is_not_overdue(store):
    store.claimed()
    store.now += 59
    assert store(overdue, store.clock) == []


def test_job_whose_lease_ran_out_is_overdue(store):
    claimed = store.claimed()
    store.now += 60
    assert store(overdue, store.clock) == [claimed.id]


@pytest.mark.parametrize("end", ["complete", "fail", "refuse"])
def test_ended_job_is_not_overdue(store, end):
    getattr(store, end)(store.claimed())
    store.now += 3600
    assert store(overdue, store.clock) == []


@pytest.mark.parametrize("state", JobState)
def test_only_queued_and_running_are_not_final(state):
    assert state.is_final == (state not in {JobState.QUEUED, JobState.RUNNING})
