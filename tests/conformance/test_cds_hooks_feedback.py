"""Spec: CDS Hooks 2.0.1, "Feedback"."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlmodel import select

from rayhook.cds_hooks.feedback import CardFeedback

PATH = "/cds-services/rayhook-patient-view/feedback"


@pytest.fixture
def card(service, make):
    return service.cards(make.body())[0]["uuid"]


@pytest.fixture
def stored(service):
    def rows(card):
        with service.database.reading() as session:
            return list(session.exec(select(CardFeedback).where(CardFeedback.card == card)))

    return rows


def item(card, **members):
    return {"card": card, "outcome": "overridden", "outcomeTimestamp": "2026-03-14T09:00:00Z"} | members


def accepted(card):
    return item(card, outcome="accepted", acceptedSuggestions=[{"id": str(uuid.uuid4())}])


REASON = {
    "code": "patient-ineligible",
    "system": "http://terminology.hl7.org/CodeSystem/non-adherence-reason-codes",
}


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"overrideReason": {"reason": REASON}},
        {"overrideReason": {"userComment": "known already"}},
        {"overrideReason": {"reason": REASON, "userComment": "known already"}},
        {"extension": {"org.example": {}}},
        {"outcomeTimestamp": "2026-03-14t09:00:00.123+00:00"},
    ],
)
def test_an_overridden_card_is_stored(service, card, stored, members):
    assert service.post(PATH, {"feedback": [item(card, **members)]}).status_code == 200
    assert [row.outcome for row in stored(card)] == ["overridden"]


def test_an_accepted_card_is_stored(service, card, stored):
    assert service.post(PATH, {"feedback": [accepted(card)]}).status_code == 200
    assert [row.outcome for row in stored(card)] == ["accepted"]


def test_the_same_feedback_again_is_the_same(service, card, stored):
    body = {"feedback": [item(card), item(card)]}
    assert [service.post(PATH, body).status_code for _ in range(2)] == [200, 200]
    assert len(stored(card)) == 1


def test_the_same_feedback_many_times_at_once_is_the_same(service, card, stored):
    body = {"feedback": [item(card)]}
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: service.post(PATH, body).status_code, range(8)))
    assert statuses == [200] * 8
    assert len(stored(card)) == 1


def test_one_card_may_be_spoken_of_repeatedly(service, card, stored):
    later = item(card, outcomeTimestamp="2026-03-15T09:00:00Z")
    assert service.post(PATH, {"feedback": [item(card), later, accepted(card)]}).status_code == 200
    assert len(stored(card)) == 3


def test_a_comment_is_sealed(service, card, stored):
    service.post(PATH, {"feedback": [item(card, overrideReason={"userComment": "Jane Doe knows"})]})
    (row,) = stored(card)
    assert b"Jane" not in row.item_sealed


def test_feedback_is_audited(service, card):
    service.post(PATH, {"feedback": [item(card)]})
    (event,) = service.audit("cds_hooks:feedback:received")
    assert (event.ehr_id, event.detail["new"]) == ("general", "1")
    assert event.entities[0].startswith("DiagnosticReport/")


def test_an_unknown_card_is_not_found_and_nothing_is_stored(service, card, stored):
    response = service.post(PATH, {"feedback": [item(card), item(str(uuid.uuid4()))]})
    assert response.status_code == 404
    assert response.json()["issue"][0]["expression"] == ["feedback[1].card"]
    assert stored(card) == []


def test_a_card_of_another_client_is_forbidden(service, card, stored):
    response = service.post(PATH, {"feedback": [item(card)]}, token=service.other(PATH))
    assert response.status_code == 403
    assert stored(card) == []


def test_a_card_of_another_service_is_not_found(service, card):
    path = "/cds-services/rayhook-order-sign/feedback"
    assert service.post(path, {"feedback": [item(card)]}).status_code == 404


def test_the_audience_is_the_feedback_url(service, card):
    token = service.token("/cds-services/rayhook-patient-view")
    assert service.post(PATH, {"feedback": [item(card)]}, token=token).status_code == 401


@pytest.mark.parametrize(
    ("change", "expression"),
    [
        ({"card": "x"}, "feedback[0].card"),
        ({"outcome": "ignored"}, "feedback[0].outcome"),
        ({"outcome": None}, "feedback[0].outcome"),
        ({"outcome": "accepted"}, "feedback[0].acceptedSuggestions"),
        ({"outcome": "accepted", "acceptedSuggestions": []}, "feedback[0].acceptedSuggestions"),
        ({"outcome": "accepted", "acceptedSuggestions": [{}]}, "feedback[0].acceptedSuggestions[0].id"),
        ({"outcomeTimestamp": "2026-03-14"}, "feedback[0].outcomeTimestamp"),
        ({"outcomeTimestamp": "2026-13-14T09:00:00Z"}, "feedback[0].outcomeTimestamp"),
        ({"outcomeTimestamp": "2026-03-14T09:00:00+02:00"}, "feedback[0].outcomeTimestamp"),
        ({"overrideReason": {}}, "feedback[0].overrideReason"),
        ({"overrideReason": {"reason": {"code": "x"}}}, "feedback[0].overrideReason.reason.system"),
        (
            {"overrideReason": {"reason": REASON | {"code": "x" * 256}}},
            "feedback[0].overrideReason.reason.code",
        ),
        ({"overrideReason": {"reason": REASON | {"code": "\x00"}}}, "feedback[0].overrideReason.reason.code"),
        ({"overrideReason": {"userComment": ""}}, "feedback[0].overrideReason.userComment"),
    ],
)
def test_a_malformed_item_is_named(service, card, change, expression):
    response = service.post(PATH, {"feedback": [item(card) | change]})
    assert response.status_code == 400
    assert [text.replace("[...]", "[0]") for text in response.json()["issue"][0]["expression"]] == [
        expression
    ]


@pytest.mark.parametrize("body", [{}, {"feedback": []}, {"feedback": None}, [], {"card": "x"}])
def test_a_body_without_items_is_refused(service, body):
    assert service.post(PATH, body).status_code == 400
