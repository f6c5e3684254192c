"""Studies that announce themselves: by notification, by being stored here, by being found in the PACS."""

import threading
import time
from dataclasses import replace

import httpx
import pytest
from sqlalchemy import text

from rayhook.auth.arrival_sources import ArrivalSources
from rayhook.auth.registry import EHRRegistry
from rayhook.deploy.demo.ehr_seed import imaging_study_id
from rayhook.deploy.demo.ehr_subscriptions import TOPIC
from rayhook.deploy.demo.ehr_tokens import Grant
from rayhook.inference.arrival import ArrivalRow, ArrivalState
from rayhook.inference.arrival_source import ArrivalSourceRow, Source, SourceKind, opened_source
from rayhook.inference.intake import Intake
from rayhook.inference.job_table import AnalysisJob, JobState, Priority
from rayhook.inference.received import ReceivedInstance
from rayhook.inference.sealed_spool import SealedSpool
from rayhook.smart_app.stow import StowLimits

from .arriving import DAY_S, SECRET, SENDER_SECRET, Arrivals, await_, files_of, multipart, stow


@pytest.fixture
def subscribed(arrivals) -> Arrivals:
    made, _ = arrivals.upkeep.create(arrivals.ehr)
    store = arrivals.hospital.demo.store
    await_(lambda: store.read("Subscription", made["id"])["status"] == "active")
    arrivals.subscription_id = made["id"]
    return arrivals


def source(arrivals):
    (row,) = arrivals.rows(ArrivalSourceRow)
    return row


def heard(arrivals, count):
    await_(lambda: len(arrivals.events("fhir:notification:received")) >= count)


# Notifications


def test_a_new_study_is_queued_before_anybody_asks(subscribed):
    subscribed.touch("lesion")
    await_(lambda: subscribed.rows(ArrivalRow))
    subscribed.settle()
    assert subscribed.job_of("lesion").state is JobState.QUEUED


def test_the_job_that_was_queued_is_done_with_our_own_token(subscribed):
    subscribed.touch("lesion")
    await_(lambda: subscribed.rows(ArrivalRow))
    subscribed.settle()
    subscribed.pipeline.run(subscribed.sent[0])
    assert subscribed.job_of("lesion").state is JobState.DONE


def test_a_job_that_nobody_waits_for_is_routine(subscribed):
    subscribed.touch("lesion")
    await_(lambda: subscribed.rows(ArrivalRow))
    subscribed.settle()
    (job,) = subscribed.rows(AnalysisJob)
    assert job.priority == Priority.ROUTINE


def test_an_urgent_orders_study_is_urgent(subscribed):
    store = subscribed.hospital.demo.store
    for order in store.search("ServiceRequest", []):
        store.seed([{**order, "priority": "stat"}])
    subscribed.touch("lesion")
    await_(lambda: subscribed.rows(ArrivalRow))
    subscribed.settle()
    (job,) = subscribed.rows(AnalysisJob)
    assert job.priority == Priority.STAT


def test_the_audit_tells_whose_study_was_read_and_queued(subscribed):
    subscribed.touch("lesion")
    await_(lambda: subscribed.rows(ArrivalRow))
    subscribed.settle()
    read = subscribed.events("fhir:resource:read")
    queued = subscribed.events("inference:job:enqueued")
    assert ({one.patient_id for one in read}, [one.patient_id for one in queued]) == (
        {"patient-lesion"},
        ["patient-lesion"],
    )


def test_versions_in_quick_succession_are_one_job(subscribed):
    for _ in range(5):
        subscribed.touch("lesion")
    heard(subscribed, 6)
    subscribed.settle()
    assert (len(subscribed.rows(AnalysisJob)), len(subscribed.sent)) == (1, 1)


def test_a_study_without_images_waits_for_its_next_version(subscribed):
    subscribed.touch("lesion", status="registered")
    await_(lambda: subscribed.rows(ArrivalRow))
    subscribed.settle()
    assert subscribed.states() == {ArrivalState.IGNORED: 1}
    subscribed.touch("lesion", status="available")
    await_(lambda: subscribed.states() == {ArrivalState.WAITING: 1})
    subscribed.settle()
    assert subscribed.job_of("lesion").state is JobState.QUEUED


def notification(arrivals, *numbers, kind="event-notification", count=None, **changes):
    status = {
        "resourceType": "SubscriptionStatus",
        "status": "active",
        "type": kind,
        "eventsSinceSubscriptionStart": str(max(numbers, default=0) if count is None else count),
        "notificationEvent": [
            {
                "eventNumber": str(number),
                "focus": {"reference": f"ImagingStudy/{imaging_study_id(arrivals.hospital.study('lesion'))}"},
            }
            for number in numbers
        ],
        "subscription": {"reference": "Subscription/by-hand"},
        "topic": TOPIC,
        **changes,
    }
    return {"resourceType": "Bundle", "type": "history", "entry": [{"resource": status}]}


def post(arrivals, body, secret=SECRET, ehr="ehr"):
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    url = f"{arrivals.base_url}/fhir/subscriptions/{ehr}"
    if isinstance(body, bytes):
        return httpx.post(url, content=body, headers=headers, timeout=20)
    return httpx.post(url, json=body, headers=headers, timeout=20)


@pytest.mark.parametrize("secret", [None, "wrong", SECRET[:-1], SECRET.upper(), "# the EHR's"])
def test_a_wrong_secret_tells_us_nothing(arrivals, secret):
    answer = post(arrivals, notification(arrivals, 1), secret=secret)
    assert (answer.status_code, arrivals.rows(ArrivalRow)) == (401, [])


def test_another_ehrs_address_is_not_opened_by_the_secret(arrivals):
    assert post(arrivals, notification(arrivals, 1), ehr="other").status_code == 401


def test_a_refused_notification_is_audited(arrivals):
    post(arrivals, notification(arrivals, 1), secret="wrong")
    (event,) = arrivals.events("fhir:notification:refused")
    assert event.detail["reason"] == "secret_wrong"


def test_a_secret_that_cannot_be_read_lets_nobody_in(arrivals):
    (arrivals.hospital.folder / "subscription").unlink()
    assert post(arrivals, notification(arrivals, 1)).status_code == 503


def test_both_secrets_are_good_while_one_follows_the_other(arrivals):
    with (arrivals.hospital.folder / "subscription").open("a") as file:
        file.write("another-secret-0123456789-0123456789\n")
    secrets = (SECRET, "another-secret-0123456789-0123456789")
    assert [post(arrivals, notification(arrivals, 1), secret=s).status_code for s in secrets] == [200, 200]


def test_a_replayed_notification_changes_nothing(arrivals):
    post(arrivals, notification(arrivals, 1))
    arrivals.settle()
    post(arrivals, notification(arrivals, 1))
    assert arrivals.states() == {ArrivalState.ENQUEUED: 1}


def test_events_out_of_order_leave_no_gap(arrivals):
    post(arrivals, notification(arrivals, kind="handshake", count=0))
    for number in (3, 1, 2):
        post(arrivals, notification(arrivals, number))
    row = source(arrivals)
    assert (row.complete, row.ahead, row.is_lost) == (3, "[]", False)


def test_another_topic_is_refused(arrivals):
    answer = post(arrivals, notification(arrivals, 1, topic="http://example.org/other"))
    assert (answer.status_code, arrivals.rows(ArrivalRow)) == (422, [])


def test_a_subscription_elsewhere_is_refused(arrivals):
    elsewhere = {"reference": "https://evil.example/fhir/Subscription/1"}
    assert post(arrivals, notification(arrivals, 1, subscription=elsewhere)).status_code == 400


def test_a_study_elsewhere_is_not_looked_at(arrivals):
    event = {"eventNumber": "1", "focus": {"reference": "https://evil.example/fhir/ImagingStudy/1"}}
    assert post(arrivals, notification(arrivals, 1, notificationEvent=[event])).status_code == 200
    assert arrivals.rows(ArrivalRow) == []


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"resourceType": "Bundle"}', b"[" * 100_000])
def test_what_is_no_notification_is_refused(arrivals, body):
    assert post(arrivals, body).status_code == 400


def test_a_notification_that_is_too_long_is_refused(arrivals):
    assert post(arrivals, b" " * (5 << 20)).status_code == 413


def test_a_notification_without_a_body_makes_us_search(arrivals):
    assert post(arrivals, b"").status_code == 200
    arrivals.clock.ahead_s += 10
    arrivals.upkeep.run_due()
    assert len(arrivals.rows(ArrivalRow)) == len(arrivals.hospital.catalogue.studies)


def test_an_empty_payload_makes_us_search(arrivals):
    post(arrivals, notification(arrivals, kind="handshake", count=0))
    post(arrivals, notification(arrivals, 1, notificationEvent=[{"eventNumber": "1"}]))
    arrivals.clock.ahead_s += 10
    arrivals.upkeep.run_due()
    assert arrivals.rows(ArrivalRow)
    assert not source(arrivals).is_lost


# What was missed


def test_a_lost_notification_is_asked_for(subscribed):
    subscribed.hospital.ehr_faults.lost_notifications = 1
    subscribed.touch("ct")
    subscribed.touch("lesion")
    heard(subscribed, 2)
    assert source(subscribed).complete == 0
    subscribed.clock.ahead_s += 10
    subscribed.upkeep.run_due()
    assert (source(subscribed).complete, len(subscribed.rows(ArrivalRow))) == (2, 2)
    subscribed.settle()
    assert subscribed.job_of("ct").state is JobState.QUEUED


def test_a_lost_notification_is_searched_for_where_it_is_not_told_again(subscribed):
    subscribed.hospital.ehr_faults.lost_notifications = 1
    subscribed.hospital.ehr_faults.no_events_operation = True
    subscribed.touch("ct")
    subscribed.touch("lesion")
    heard(subscribed, 2)
    subscribed.clock.ahead_s += 10
    subscribed.upkeep.run_due()
    subscribed.settle()
    assert (source(subscribed).is_lost, subscribed.job_of("ct").state) == (False, JobState.QUEUED)


def test_a_search_for_what_was_missed_is_audited(subscribed):
    subscribed.hospital.ehr_faults.lost_notifications = 1
    subscribed.touch("ct")
    subscribed.touch("lesion")
    heard(subscribed, 2)
    subscribed.clock.ahead_s += 10
    subscribed.upkeep.run_due()
    (event,) = subscribed.events("fhir:resource:searched")
    assert f"ImagingStudy/{imaging_study_id(subscribed.hospital.study('ct'))}" in event.entities


def test_the_last_notification_lost_is_noticed_when_nothing_is_heard(subscribed):
    subscribed.hospital.ehr_faults.lost_notifications = 1
    subscribed.touch("ct")
    time.sleep(0.5)
    subscribed.clock.ahead_s += 3 * 3600
    subscribed.upkeep.run_due()
    subscribed.settle()
    assert subscribed.job_of("ct").state is JobState.QUEUED


def test_an_ehr_that_is_away_is_asked_again_when_it_is_back(arrivals):
    post(arrivals, notification(arrivals, 1))
    arrivals.hospital.ehr_faults.fhir_status = 503
    arrivals.settle()
    assert (arrivals.states(), arrivals.sent) == ({ArrivalState.WAITING: 1}, [])
    arrivals.hospital.ehr_faults.fhir_status = None
    arrivals.settle()
    assert (arrivals.states(), arrivals.job_of("lesion").state) == (
        {ArrivalState.ENQUEUED: 1},
        JobState.QUEUED,
    )


def test_a_gap_is_made_up_for_when_the_ehr_is_back(subscribed):
    subscribed.hospital.ehr_faults.lost_notifications = 1
    subscribed.touch("ct")
    subscribed.touch("lesion")
    heard(subscribed, 2)
    subscribed.hospital.ehr_faults.fhir_status = 503
    subscribed.clock.ahead_s += 10
    subscribed.upkeep.run_due()
    subscribed.hospital.ehr_faults.fhir_status = None
    subscribed.clock.ahead_s += 600
    subscribed.upkeep.run_due()
    subscribed.settle()
    assert subscribed.job_of("ct").state is JobState.QUEUED


def test_a_study_that_nobody_can_be_asked_about_is_given_up_and_told(arrivals):
    post(arrivals, notification(arrivals, 1))
    arrivals.hospital.ehr_faults.fhir_status = 503
    for _ in range(90):
        arrivals.clock.ahead_s += 3700
        arrivals.courier.run_due()
    (event,) = arrivals.events("inference:arrival:given_up")
    assert (arrivals.states(), event.detail["code"]) == (
        {ArrivalState.GIVEN_UP: 1},
        "upstream_unavailable",
    )


def test_a_full_queue_lets_studies_wait(arrivals):
    arrivals.intake = Intake(limit=0)
    post(arrivals, notification(arrivals, 1))
    arrivals.settle()
    assert (arrivals.states(), arrivals.rows(ArrivalRow)[0].error_code) == (
        {ArrivalState.WAITING: 1},
        "queue_full",
    )
    arrivals.intake = Intake()
    arrivals.settle()
    assert arrivals.job_of("lesion").state is JobState.QUEUED


def test_two_processes_look_at_an_arrival_once(arrivals):
    post(arrivals, notification(arrivals, 1))
    arrivals.clock.ahead_s += 120
    threads = [threading.Thread(target=arrivals.courier.run_due) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(arrivals.sent), len(arrivals.events("inference:job:enqueued"))) == (1, 1)


def test_what_is_told_while_it_is_looked_at_is_looked_at_again(arrivals):
    post(arrivals, notification(arrivals, 1))
    arrivals.clock.ahead_s += 120
    courier = arrivals.courier
    told_again = replace(
        courier, lookup=replace(courier.lookup, is_received=lambda _: False), send=lambda _: None
    )
    original = told_again.lookup.find

    class Telling:
        def find(self, ehr, arrival):
            found = original(ehr, arrival)
            post(arrivals, notification(arrivals, 2))
            return found

    replace(told_again, lookup=Telling()).run_due()
    assert arrivals.states() == {ArrivalState.WAITING: 1}


# The Subscription


def test_the_subscription_is_made_once(subscribed):
    again, is_new = subscribed.upkeep.create(subscribed.ehr)
    assert (again["id"], is_new) == (subscribed.subscription_id, False)


def test_the_subscription_is_renewed_before_it_ends(subscribed):
    before = subscribed.hospital.demo.store.read("Subscription", subscribed.subscription_id)["end"]
    subscribed.clock.ahead_s += 21 * DAY_S
    subscribed.upkeep.run_due()
    renewed = subscribed.hospital.demo.store.read("Subscription", subscribed.subscription_id)
    assert renewed["end"] > before
    assert subscribed.events("fhir:subscription:changed")[0].detail["act"] == "renewed"


def test_a_subscription_in_error_is_revived(subscribed):
    store = subscribed.hospital.demo.store
    resource = store.read("Subscription", subscribed.subscription_id)
    store.seed([{**resource, "status": "error"}])
    subscribed.clock.ahead_s += 3 * 3600
    subscribed.upkeep.run_due()
    await_(lambda: store.read("Subscription", subscribed.subscription_id)["status"] == "active")


def test_a_subscription_that_is_gone_is_made_anew(subscribed):
    store = subscribed.hospital.demo.store
    store.delete("Subscription", subscribed.subscription_id)
    subscribed.clock.ahead_s += 3 * 3600
    subscribed.upkeep.run_due()
    (made,) = store.search("Subscription", [])
    assert made["id"] != subscribed.subscription_id
    assert source(subscribed).name == made["id"]


def test_for_one_that_never_was_no_second_one_is_made(subscribed):
    with subscribed.pipeline.sessions() as session:
        row = opened_source(session, Source(subscribed.ehr.id, SourceKind.SUBSCRIPTION, "never-was"))
        row.next_attempt_at = subscribed.clock()
        session.commit()
    subscribed.upkeep.run_due()
    (left,) = subscribed.hospital.demo.store.search("Subscription", [])
    assert (left["id"], source(subscribed).name) == (subscribed.subscription_id, subscribed.subscription_id)


def test_a_deleted_subscription_is_forgotten(subscribed):
    subscribed.upkeep.delete(subscribed.ehr, subscribed.subscription_id)
    assert (subscribed.hospital.demo.store.search("Subscription", []), subscribed.rows(ArrivalSourceRow)) == (
        [],
        [],
    )


# Images that are stored here


def test_a_stored_study_is_queued_when_it_is_quiet(arrivals):
    answer = stow(arrivals, files_of(arrivals, "lesion"))
    assert (answer.status_code, len(answer.json()["00081199"]["Value"])) == (200, 8)
    arrivals.courier.run_due()
    assert arrivals.sent == []
    arrivals.settle()
    assert arrivals.job_of("lesion").state is JobState.QUEUED


def test_a_study_that_is_here_is_not_fetched(arrivals):
    stow(arrivals, files_of(arrivals, "lesion"))
    arrivals.settle()
    arrivals.hospital.pacs_faults.status = 500
    replace(arrivals.pipeline, received=arrivals.received).run(arrivals.sent[0])
    assert arrivals.job_of("lesion").state is JobState.DONE
    (event,) = arrivals.events("dicomweb:study:retrieved")
    assert (event.detail["from"], event.detail["instances"]) == ("spool", "8")


def test_a_worker_without_the_folder_leaves_the_study_to_one_that_has_it(arrivals):
    """The EHR names no PACS: what was stored is the only place of the images."""
    arrivals.touch("lesion", endpoint=[])
    stow(arrivals, files_of(arrivals, "lesion"))
    arrivals.settle()
    empty = SealedSpool(arrivals.hospital.folder / "other", arrivals.pipeline.keyring, 1 << 30)
    replace(arrivals.pipeline, received=replace(arrivals.received, spool=empty)).run(arrivals.sent[0])
    job = arrivals.job_of("lesion")
    assert (job.state, job.is_put_off, job.error_code) == (JobState.QUEUED, True, "received_elsewhere")
    later = replace(arrivals.pipeline, received=arrivals.received, clock=lambda: time.time() + 3600)
    later.run(arrivals.sent[0])
    assert arrivals.job_of("lesion").state is JobState.DONE


def test_a_study_that_is_here_in_part_is_fetched(arrivals):
    stow(arrivals, files_of(arrivals, "lesion")[:7])
    arrivals.settle()
    replace(arrivals.pipeline, received=arrivals.received).run(arrivals.sent[0])
    (event,) = arrivals.events("dicomweb:study:retrieved")
    assert event.detail["from"] == "pacs"


def test_a_stored_image_that_was_altered_is_fetched_by_the_next_attempt(arrivals):
    stow(arrivals, files_of(arrivals, "lesion"))
    arrivals.settle()
    path = next((arrivals.hospital.folder / "received").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    pipeline = replace(arrivals.pipeline, received=arrivals.received)
    pipeline.run(arrivals.sent[0])
    assert len(arrivals.rows(ReceivedInstance)) == 7


def test_another_patients_image_in_the_study_is_refused_by_its_analysis(arrivals):
    stranger = files_of(arrivals, "stranger")
    uid = arrivals.hospital.study("stranger").study_instance_uid
    stow(arrivals, stranger)
    arrivals.settle()
    replace(arrivals.pipeline, received=arrivals.received).run(arrivals.sent[0])
    assert uid
    assert arrivals.job_of("stranger").state is JobState.REFUSED


def test_nothing_of_an_image_is_readable_in_the_spool(arrivals):
    stow(arrivals, files_of(arrivals, "lesion"))
    spooled = b"".join(path.read_bytes() for path in (arrivals.hospital.folder / "received").iterdir())
    assert b"MRN-1" not in spooled
    assert b"DICM" not in spooled


def test_the_same_images_again_are_taken_as_stored(arrivals):
    files = files_of(arrivals, "lesion")
    answers = [stow(arrivals, files).status_code for _ in range(2)]
    assert (answers, len(arrivals.rows(ReceivedInstance))) == ([200, 200], 8)
    assert len(list((arrivals.hospital.folder / "received").iterdir())) == 8


def test_another_image_under_the_same_uid_is_refused(arrivals):
    files = files_of(arrivals, "lesion")
    stow(arrivals, files)
    changed = files[0][:-2] + b"\x01\x02"
    answer = stow(arrivals, [changed, files[1]])
    (failure,) = answer.json()["00081198"]["Value"]
    assert (answer.status_code, failure["00081197"]["Value"]) == (202, [0x0111])


def test_images_of_another_study_than_the_address_names_are_refused(arrivals):
    answer = stow(
        arrivals, files_of(arrivals, "ct"), study=arrivals.hospital.study("lesion").study_instance_uid
    )
    reasons = {failure["00081197"]["Value"][0] for failure in answer.json()["00081198"]["Value"]}
    assert (answer.status_code, reasons, arrivals.rows(ArrivalRow)) == (409, {0xA900}, [])


def test_what_is_no_dicom_file_is_refused_alone(arrivals):
    answer = stow(arrivals, [b"no DICOM at all", *files_of(arrivals, "lesion")])
    (failure,) = answer.json()["0008119A"]["Value"]
    assert (answer.status_code, failure["00081197"]["Value"]) == (202, [0xC000])


def test_basic_authentication_shows_the_senders_secret(arrivals):
    auth = httpx.BasicAuth("router", SENDER_SECRET)._auth_header
    assert stow(arrivals, files_of(arrivals, "lesion"), authorization=auth).status_code == 200


def test_a_token_of_the_ehr_that_may_create_studies_stores(arrivals):
    token = arrivals.hospital.demo.authorization.tokens.issue(Grant(None, "system/ImagingStudy.c", user=None))
    answer = stow(arrivals, files_of(arrivals, "lesion"), authorization=f"Bearer {token}")
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "grant",
    [
        Grant(None, "system/ImagingStudy.rs", user=None),
        Grant("patient-lesion", "patient/ImagingStudy.cruds"),
        Grant("patient-lesion", "system/ImagingStudy.c"),
    ],
)
def test_any_other_token_of_the_ehr_stores_nothing(arrivals, grant):
    token = arrivals.hospital.demo.authorization.tokens.issue(grant)
    answer = stow(arrivals, files_of(arrivals, "lesion"), authorization=f"Bearer {token}")
    assert (answer.status_code, arrivals.rows(ReceivedInstance)) == (403, [])


@pytest.mark.parametrize(
    "authorization",
    [None, "Bearer wrong", f"Bearer {SECRET}", "Basic cm91dGVyOndyb25n", "Basic !", "Digest x"],
)
def test_who_is_no_sender_stores_nothing(arrivals, authorization):
    answer = stow(arrivals, files_of(arrivals, "lesion"), authorization=authorization)
    assert (answer.status_code, arrivals.rows(ReceivedInstance)) == (401, [])


def test_a_full_spool_keeps_nothing_of_the_transaction(arrivals):
    spool = SealedSpool(arrivals.hospital.folder / "received", arrivals.pipeline.keyring, 20_000)
    arrivals.stow.received = replace(arrivals.received, spool=spool)
    answer = stow(arrivals, files_of(arrivals, "lesion"))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "60")
    assert (arrivals.rows(ReceivedInstance), spool.names()) == ([], [])


def test_a_body_that_is_cut_off_keeps_nothing(arrivals):
    body = multipart(files_of(arrivals, "lesion"))
    answer = stow(arrivals, [], body=body[: len(body) // 2])
    assert (answer.status_code, arrivals.rows(ReceivedInstance)) == (400, [])
    assert arrivals.received.spool.names() == []


def test_a_part_that_is_too_long_is_refused_alone(arrivals):
    files = files_of(arrivals, "lesion")
    arrivals.stow.limits = StowLimits(max_part_bytes=len(files[0]) + 1)
    answer = stow(arrivals, [files[0], files[1] + bytes(2000)])
    (failure,) = answer.json()["0008119A"]["Value"]
    assert (answer.status_code, failure["00081197"]["Value"]) == (202, [0xA700])


def test_too_many_bytes_are_refused(arrivals):
    arrivals.stow.limits = StowLimits(max_bytes=10_000)
    assert stow(arrivals, files_of(arrivals, "lesion")).status_code == 413


def test_too_many_instances_are_refused(arrivals):
    arrivals.stow.limits = StowLimits(max_instances=3)
    answer = stow(arrivals, files_of(arrivals, "lesion"))
    assert (answer.status_code, arrivals.received.spool.names()) == (413, [])


def test_too_many_senders_at_once_are_told_to_wait(arrivals):
    arrivals.stow.limits = StowLimits(at_once=0)
    answer = stow(arrivals, files_of(arrivals, "lesion"))
    assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/dicom"}, 415),
        ({"Content-Type": 'multipart/related; type="application/dicom+json"; boundary=x'}, 415),
        ({"Content-Type": 'multipart/related; type="application/dicom"'}, 400),
        ({"Accept": "application/dicom+xml"}, 406),
    ],
)
def test_another_form_is_refused(arrivals, headers, status):
    assert stow(arrivals, files_of(arrivals, "lesion"), **headers).status_code == status


def test_what_was_stored_is_audited_with_its_sender(arrivals):
    stow(arrivals, files_of(arrivals, "lesion"))
    (event,) = arrivals.events("dicomweb:instances:received")
    assert (event.agent, event.detail["instances"]) == ("router", "8")


def test_a_study_that_the_ehr_does_not_know_yet_waits_for_it(arrivals):
    store = arrivals.hospital.demo.store
    study_id = imaging_study_id(arrivals.hospital.study("lesion"))
    resource = store.read("ImagingStudy", study_id)
    store.delete("ImagingStudy", study_id)
    stow(arrivals, files_of(arrivals, "lesion"))
    arrivals.settle()
    assert arrivals.rows(ArrivalRow)[0].error_code == "study_not_in_ehr"
    store.seed([resource])
    arrivals.settle()
    assert arrivals.job_of("lesion").state is JobState.QUEUED


def test_images_are_removed_after_a_day(arrivals):
    stow(arrivals, files_of(arrivals, "lesion"))
    arrivals.settle()
    assert arrivals.received.forget_old() == 0
    arrivals.clock.ahead_s += DAY_S
    assert (arrivals.received.forget_old(), arrivals.received.spool.names()) == (8, [])


def test_images_of_a_study_that_waits_for_its_ehr_are_kept(arrivals):
    arrivals.hospital.ehr_faults.fhir_status = 503
    stow(arrivals, files_of(arrivals, "lesion"))
    arrivals.clock.ahead_s += 2 * DAY_S
    assert arrivals.received.forget_old() == 0


def test_without_the_audit_nothing_is_kept(arrivals):
    with arrivals.pipeline.sessions() as session:
        session.execute(text("ALTER TABLE audit_event RENAME TO audit_event_gone"))
        session.commit()
    answer = stow(arrivals, files_of(arrivals, "lesion"))
    kept = (arrivals.rows(ReceivedInstance), arrivals.rows(ArrivalRow), arrivals.received.spool.names())
    assert (answer.status_code, *kept) == (503, [], [], [])


# Polling


def test_a_polled_pacs_studies_are_queued(arrivals):
    arrivals.polling.prepare()
    arrivals.polling.run_due()
    arrivals.settle()
    assert arrivals.job_of("lesion").state is JobState.QUEUED


def test_a_poll_that_finds_nothing_new_tells_nothing(arrivals):
    arrivals.polling.prepare()
    for _ in range(3):
        arrivals.polling.run_due()
        arrivals.clock.ahead_s += 61
    assert len(arrivals.events("dicomweb:studies:searched")) == 1
    assert all(row.told == 1 for row in arrivals.rows(ArrivalRow))


def test_a_pacs_that_is_away_is_asked_again_later_and_later(arrivals):
    arrivals.polling.prepare()
    arrivals.hospital.pacs_faults.status = 500
    pauses = []
    for _ in range(3):
        arrivals.polling.run_due()
        row = source(arrivals)
        pauses.append(row.next_attempt_at - arrivals.clock())
        arrivals.clock.ahead_s += pauses[-1] + 1
    assert pauses == pytest.approx([60, 120, 240], abs=5)
    arrivals.hospital.pacs_faults.status = None
    arrivals.polling.run_due()
    assert (source(arrivals).error_code, len(arrivals.rows(ArrivalRow))) == (None, 2)


def test_a_pacs_that_is_not_registered_any_more_is_left_alone(arrivals):
    arrivals.polling.prepare()
    (ehr,) = arrivals.pipeline.registry
    bare = replace(ehr, arrivals=ArrivalSources())
    replace(arrivals.polling, registry=EHRRegistry((bare,))).run_due()
    assert source(arrivals).next_attempt_at is None


def test_all_three_ways_at_once_make_one_job(subscribed):
    subscribed.touch("lesion")
    files = files_of(subscribed, "lesion")
    threads = [
        threading.Thread(target=stow, args=(subscribed, files)),
        threading.Thread(target=lambda: (subscribed.polling.prepare(), subscribed.polling.run_due())),
        threading.Thread(target=post, args=(subscribed, notification(subscribed, 1))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    await_(lambda: len(subscribed.rows(ArrivalRow)) >= 2)
    subscribed.settle()
    subscribed.settle()
    mine = [one for one in subscribed.events("inference:job:enqueued") if one.patient_id == "patient-lesion"]
    assert len(mine) == 1
