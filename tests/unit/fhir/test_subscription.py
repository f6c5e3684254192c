"""The forms that notifications come in: R4 by the backport guide, R4B and R5, each payload content."""

from datetime import UTC, datetime

import pytest

from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.r4 import validate
from rayhook.fhir.references import Reference
from rayhook.fhir.subscription import NotificationType, SubscriptionRequest, read_notification

BASE = "https://ehr.example.org/fhir"
TOPIC = "http://ehr.example.org/topics/imaging-study"
STUDY = Reference("ImagingStudy", "s1", BASE)


def r4_status(kind="event-notification", *, events=(), count="1", **changes):
    """Return the status as the backport guide writes it for R4: a Parameters resource."""
    parameters = [
        {"name": "subscription", "valueReference": {"reference": f"{BASE}/Subscription/sub1"}},
        {"name": "topic", "valueCanonical": TOPIC},
        {"name": "status", "valueCode": "active"},
        {"name": "type", "valueCode": kind},
        {"name": "events-since-subscription-start", "valueString": count},
    ]
    for number, focus in events:
        part = [
            {"name": "event-number", "valueString": str(number)},
            {"name": "timestamp", "valueInstant": "2026-11-26T08:00:00Z"},
        ]
        if focus is not None:
            part.append({"name": "focus", "valueReference": {"reference": focus}})
        parameters.append({"name": "notification-event", "part": part})
    return {
        "resourceType": "Parameters",
        "id": "b21e4fae-ce73-45cb-8e37-1e203362b2ae",
        "meta": {
            "profile": [
                "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/backport-subscription-status-r4"
            ]
        },
        "parameter": parameters,
        **changes,
    }


def status_entry(status):
    return {
        "fullUrl": "urn:uuid:b21e4fae-ce73-45cb-8e37-1e203362b2ae",
        "resource": status,
        "request": {"method": "GET", "url": f"{BASE}/Subscription/sub1/$status"},
        "response": {"status": "200"},
    }


def bundle(status, *entries, kind="history"):
    return {
        "resourceType": "Bundle",
        "type": kind,
        "timestamp": "2026-11-26T08:00:00Z",
        "entry": [status_entry(status), *entries],
    }


def r4b_status(**changes):
    return {
        "resourceType": "SubscriptionStatus",
        "status": "active",
        "type": "event-notification",
        "eventsSinceSubscriptionStart": "7",
        "notificationEvent": [{"eventNumber": "7", "focus": {"reference": f"{BASE}/ImagingStudy/s1"}}],
        "subscription": {"reference": "Subscription/sub1"},
        "topic": TOPIC,
        **changes,
    }


def test_a_handshake():
    read = read_notification(bundle(r4_status("handshake", count="0") | {}))
    assert (read.type, read.subscription.id, read.last_event) == (NotificationType.HANDSHAKE, "sub1", 0)


def test_a_heartbeat():
    read = read_notification(bundle(r4_status("heartbeat", count="12")))
    assert (read.type, read.last_event, read.events, read.focuses) == (NotificationType.HEARTBEAT, 12, (), ())


def test_an_id_only_event():
    entry = {
        "fullUrl": f"{BASE}/ImagingStudy/s1",
        "request": {"method": "POST", "url": "ImagingStudy"},
        "response": {"status": "201"},
    }
    read = read_notification(bundle(r4_status(events=[(1, f"{BASE}/ImagingStudy/s1")]), entry))
    assert (read.events, read.focuses, read.is_blind) == ((1,), (STUDY,), False)


def test_an_empty_event_is_blind():
    read = read_notification(bundle(r4_status(events=[(1, None)])))
    assert (read.events, read.focuses, read.is_blind) == ((1,), (), True)


def test_of_a_full_resource_only_its_name_is_taken():
    resource = {"resourceType": "ImagingStudy", "id": "s1", "subject": {"reference": "Patient/other"}}
    entry = {"fullUrl": f"{BASE}/ImagingStudy/s1", "resource": resource}
    read = read_notification(bundle(r4_status(events=[(1, f"{BASE}/ImagingStudy/s1")]), entry))
    assert read.focuses == (STUDY,)


def test_a_study_that_only_its_entry_names():
    entry = {"fullUrl": f"{BASE}/ImagingStudy/s1"}
    assert read_notification(bundle(r4_status(events=[(1, None)]), entry)).focuses == (STUDY,)


def test_several_events_at_once():
    events = [(n, f"{BASE}/ImagingStudy/s{n}") for n in (4, 5, 6)]
    read = read_notification(bundle(r4_status(events=events, count="6")))
    assert (read.events, [focus.id for focus in read.focuses]) == ((4, 5, 6), ["s4", "s5", "s6"])


def test_the_form_of_r4b():
    read = read_notification(bundle(r4b_status()))
    assert (read.events, read.focuses, read.topic, read.last_event) == ((7,), (STUDY,), TOPIC, 7)


def test_the_form_of_r5():
    assert read_notification(bundle(r4b_status(), kind="subscription-notification")).events == (7,)


def test_numbers_as_drafts_wrote_them():
    status = r4b_status(eventsSinceSubscriptionStart=7, notificationEvent=[{"eventNumber": 7}])
    assert read_notification(bundle(status)).events == (7,)


def test_the_answer_of_status():
    read = read_notification(bundle(r4_status("query-status", count="3"), kind="searchset"))
    assert (read.type, read.last_event) == (NotificationType.QUERY_STATUS, 3)


def test_a_version_is_no_part_of_the_name():
    status = r4_status(events=[(1, f"{BASE}/ImagingStudy/s1/_history/4")])
    assert read_notification(bundle(status)).focuses == (STUDY,)


@pytest.mark.parametrize(
    ("notification", "expression"),
    [
        ([], "Bundle"),
        ({"resourceType": "Patient"}, "Bundle"),
        ({"resourceType": "Patient", "type": "history"}, "Bundle.type"),
        (bundle(r4_status(), kind="transaction"), "Bundle.type"),
        ({"resourceType": "Bundle", "type": "history"}, "Bundle.entry[0].resource"),
        (bundle({"resourceType": "ImagingStudy", "id": "s1"}), "Bundle.entry[0].resource"),
        (bundle(r4_status("exploded")), "SubscriptionStatus.type"),
        (bundle(r4b_status(subscription={"reference": "Patient/1"})), "SubscriptionStatus.subscription"),
        (bundle(r4b_status(subscription={})), "SubscriptionStatus.subscription"),
        (bundle(r4_status(count="-1")), "SubscriptionStatus.eventsSinceSubscriptionStart"),
        (bundle(r4_status(count="9" * 30)), "SubscriptionStatus.eventsSinceSubscriptionStart"),
        (bundle(r4_status(events=[("one", None)])), "SubscriptionStatus.notificationEvent.eventNumber"),
    ],
)
def test_what_is_no_notification_is_refused(notification, expression):
    with pytest.raises(InvalidRequest) as refused:
        read_notification(notification)
    assert refused.value.expression == expression


def request():
    return SubscriptionRequest(
        topic=TOPIC,
        endpoint="https://rayhook.example.org/fhir/subscriptions/ehr",
        secret="s" * 32,
        ends_at=datetime(2027, 1, 1, tzinfo=UTC),
        heartbeat_s=300,
        filter_by="ImagingStudy?status=available",
    )


def test_what_we_ask_for_is_valid_r4():
    validate(request().resource())


def test_we_ask_for_ids_only():
    extension = request().resource()["channel"]["_payload"]["extension"][0]
    assert extension["valueCode"] == "id-only"


def test_the_secret_comes_back_in_a_header():
    assert request().resource()["channel"]["header"] == [f"Authorization: Bearer {'s' * 32}"]
