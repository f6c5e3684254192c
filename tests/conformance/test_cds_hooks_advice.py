"""What is said of imaging orders, and what can be done about it. The clinical rules themselves: tests/unit."""

import json
import time
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from rayhook.fhir.r4 import validate
from tests.conformance.conftest import finding

SIGN = "rayhook-order-sign"
SNOMED = "http://snomed.info/sct"


def topics(cards):
    return [card["source"]["topic"]["code"] for card in cards]


def days_ago(days):
    return (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")


@pytest.fixture
def ordered(service, make):
    """Return the cards on an order of `text` for a patient with these studies."""

    def cards(text, *studies, service_id=SIGN, **members):
        order = make.order(id="o1", code={"text": text}, **members)
        return service.cards(make.order_sign(*studies, orders=(order,)), service=service_id)

    return cards


@pytest.fixture
def feedback(service):
    def send(card, *, service_id=SIGN, **members):
        item = {
            "card": card["uuid"],
            "outcome": "overridden",
            "outcomeTimestamp": "2026-03-14T09:00:00Z",
        } | members
        response = service.post(f"/cds-services/{service_id}/feedback", {"feedback": [item]})
        assert response.status_code == 200, response.text

    return send


def no_finding(uid):
    return finding(uid, probability=0.1)


def test_like_imaging_of_a_short_time_ago_is_told(service, make, ordered):
    service.analysis.result = no_finding
    cards = ordered("MRI of the brain", make.study(started=days_ago(5)))
    assert topics(cards) == ["duplicate-imaging", "no-finding"]
    assert "5 days ago" in cards[0]["summary"]
    assert "iRefer" in cards[0]["detail"]
    assert cards[0]["suggestions"][0]["actions"] == [
        {
            "type": "delete",
            "description": "Remove the draft imaging order",
            "resourceId": "ServiceRequest/o1",
        }
    ]


def test_a_finding_without_follow_up_is_told(make, ordered):
    cards = ordered("CT of the abdomen", make.study(started=days_ago(60)))
    assert topics(cards) == ["follow-up-due", "finding"]
    assert "NG99" in cards[0]["detail"]


def test_another_modality_than_guidance_names_is_told(make, ordered):
    cards = ordered("CT of the head", make.study(started=days_ago(60)))
    assert topics(cards) == ["modality", "finding"]
    (suggestion,) = cards[0]["suggestions"]
    assert [action["type"] for action in suggestion["actions"]] == ["delete", "create"]


def test_the_order_that_guidance_asks_for_is_not_spoken_against(make, ordered):
    assert topics(ordered("MRI of the brain", make.study(started=days_ago(5)))) == ["finding"]


def test_a_result_that_no_hook_would_begin_today_is_still_known(service, make, ordered):
    """A finding on the fifth newest study, that was analysed when it was new."""
    old = make.study(1, started=days_ago(90))
    service.cards(make.body(old))
    newer = [make.study(number, started=days_ago(30 - number), modality=[]) for number in range(2, 6)]
    service.analysis.result = no_finding
    assert "follow-up-due" in topics(ordered("CT of the abdomen", old, *newer))


@pytest.mark.parametrize("hook", ["patient-view", "encounter-start"])
def test_a_finding_comes_with_a_draft_of_the_next_order(service, make, hook):
    body = make.hook(hook, context={"encounterId": "e1"})
    (card,) = service.cards(body, service=f"rayhook-{hook}")
    assert card["selectionBehavior"] == "at-most-one"
    (suggestion,) = card["suggestions"]
    (action,) = suggestion["actions"]
    order = action["resource"]
    assert action["type"] == "create"
    assert (order["status"], order["intent"]) == ("draft", "proposal")
    assert order["subject"] == {"reference": "Patient/p1"}
    assert order["encounter"] == {"reference": "Encounter/e1"}
    assert order["requester"] == {"reference": "Practitioner/dr"}
    assert order["supportingInfo"] == [{"reference": "ImagingStudy/s1"}]
    assert order["reasonCode"][0]["coding"][0]["code"] == "393564001"
    validate(order)


def test_a_later_study_of_the_kind_ends_the_suggestion(service, make):
    cards = service.cards(make.body(make.study(1), make.study(2)))
    assert ["suggestions" in card for card in cards] == [True, False]


def test_every_suggestion_has_a_whole_resource_or_names_one(make, ordered):
    for text in ("CT of the head", "CT of the abdomen", "MRI of the brain"):
        for card in ordered(text, make.study(started=days_ago(60))):
            for suggestion in card.get("suggestions", ()):
                assert uuid.UUID(suggestion["uuid"])
                for action in suggestion["actions"]:
                    if action["type"] == "create":
                        validate(action["resource"])
                    else:
                        assert action["resourceId"] == "ServiceRequest/o1"


def test_override_reasons_can_be_shown(make, ordered):
    cards = ordered("CT of the head", make.study(started=days_ago(60)))
    for card in cards:
        assert card["overrideReasons"]
        for reason in card["overrideReasons"]:
            assert all(reason[member] for member in ("code", "system", "display"))


def test_a_card_without_a_result_offers_no_reason(service, make):
    (card,) = service.cards(make.body(make.study(endpoint=[])))
    assert "overrideReasons" not in card


def test_foreign_text_of_an_order_is_escaped(make, ordered):
    cards = ordered(
        "CT head <img src=x onerror=alert(1)> [x](javascript:alert(1))\n# t", make.study(started=days_ago(60))
    )
    for card in cards:
        for forbidden in ("<img", "](", "javascript:", "\n#"):
            assert forbidden not in card["detail"]


class TestOverrides:
    def test_the_same_is_not_shown_again(self, service, make, feedback):
        body = make.body()
        (card,) = service.cards(body)
        feedback(card, service_id="rayhook-patient-view")
        assert service.cards(body | {"hookInstance": str(uuid.uuid4())}) == []

    def test_the_audit_tells_that_something_was_held_back(self, service, make, feedback):
        body = make.body()
        feedback(service.cards(body)[0], service_id="rayhook-patient-view")
        service.cards(body)
        assert service.audit("cds_hooks:service:called")[0].detail["suppressed"] == "1"

    def test_it_counts_for_every_service(self, service, make, feedback):
        study = make.study()
        (card,) = service.cards(make.body(study))
        feedback(card, service_id="rayhook-patient-view")
        body = make.hook("encounter-start", study, context={"encounterId": "e1"})
        assert service.cards(body, service="rayhook-encounter-start") == []

    def test_a_colleague_still_sees_it(self, service, make, feedback):
        body = make.body()
        feedback(service.cards(body)[0], service_id="rayhook-patient-view")
        body["context"]["userId"] = "Practitioner/other"
        assert topics(service.cards(body)) == ["finding"]

    def test_a_newer_result_is_shown(self, service, make, feedback):
        study = make.study(meta={"versionId": "1"})
        feedback(service.cards(make.body(study))[0], service_id="rayhook-patient-view")
        cards = service.cards(make.body(study | {"meta": {"versionId": "2"}}))
        assert topics(cards) == ["finding"]

    def test_another_study_is_shown(self, service, make, feedback):
        feedback(service.cards(make.body(make.study(1)))[0], service_id="rayhook-patient-view")
        assert topics(service.cards(make.body(make.study(1), make.study(2)))) == ["finding"]

    def test_what_was_accepted_is_not_hidden(self, service, make, feedback):
        body = make.body()
        (card,) = service.cards(body)
        accepted = [{"id": card["suggestions"][0]["uuid"]}]
        feedback(card, service_id="rayhook-patient-view", outcome="accepted", acceptedSuggestions=accepted)
        assert topics(service.cards(body)) == ["finding"]

    def test_a_failure_is_always_told(self, service, make, feedback):
        """Without a result there is nothing that could have been judged."""
        body = make.body(make.study(endpoint=[]))
        feedback(service.cards(body)[0], service_id="rayhook-patient-view")
        assert topics(service.cards(body)) == ["unreachable"]

    def test_a_rule_on_orders_is_not_repeated(self, service, make, ordered, feedback):
        study = make.study(started=days_ago(60))
        first = ordered("CT of the head", study)
        feedback(first[0])
        assert topics(ordered("CT of the head", study)) == ["finding"]

    def test_another_clients_override_hides_nothing(self, service, make, feedback):
        body = make.body()
        (card,) = service.cards(body)
        path = "/cds-services/rayhook-patient-view/feedback"
        item = {"card": card["uuid"], "outcome": "overridden", "outcomeTimestamp": "2026-03-14T09:00:00Z"}
        assert service.post(path, {"feedback": [item]}, token=service.other(path)).status_code == 403
        assert topics(service.cards(body)) == ["finding"]


def test_an_unknown_suggestion_is_kept_and_marked(service, make, feedback):
    (card,) = service.cards(make.body())
    feedback(
        card,
        service_id="rayhook-patient-view",
        outcome="accepted",
        acceptedSuggestions=[{"id": str(uuid.uuid4())}, {"id": card["suggestions"][0]["uuid"]}],
    )
    assert service.audit("cds_hooks:feedback:received")[0].detail["unknown_suggestions"] == "1"


def test_the_detail_tells_all_that_a_reader_needs(service, make):
    """Confidence, model and version, acquisition and analysis, intended use, limits, source, caution."""
    (card,) = service.cards(make.body())
    for needed in (
        "0.871",
        "test-model",
        "1.2.0",
        "Acquired: 2026-03-01T10:00:00Z",
        "Analysed: 2026-03-13T08:30:00Z",
        "Intended use: Adult brain MR, axial FLAIR.",
        "Limits: Trained on one data set.",
        "NG99",
        "not cleared for diagnosis",
    ):
        assert needed in card["detail"]


def test_the_smart_link_is_the_only_one_with_context(make, ordered):
    for card in ordered("CT of the head", make.study(started=days_ago(60))):
        for link in card["links"]:
            assert ("appContext" in link) == (link["type"] == "smart")
            assert link["type"] == "smart" or link["url"].startswith("https://")


def test_rules_answer_in_time(service, make):
    """Twenty studies and twenty orders: what is looked at is bounded."""
    studies = [make.study(number % 28 + 1, id=f"s{number}", started=days_ago(number)) for number in range(20)]
    orders = tuple(make.order(id=f"o{number}", code={"text": "CT of the head"}) for number in range(20))
    body = json.loads(json.dumps(make.order_sign(*studies, orders=orders)))
    service.call(body, service=SIGN)
    begun = time.perf_counter()
    assert service.call(body, service=SIGN, client=service.in_time).status_code == 200
    assert time.perf_counter() - begun < 1.0
