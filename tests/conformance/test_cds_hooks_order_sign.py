"""Spec: CDS Hooks Library, order-sign 1.0."""

import pytest

SERVICE = "rayhook-order-sign"


def topics(cards):
    return [card["source"]["topic"]["code"] for card in cards]


def test_an_imaging_order_brings_the_latest_result(service, make):
    cards = service.cards(make.order_sign(make.study(1), make.study(2)), service=SERVICE)
    assert topics(cards) == ["finding"]
    assert "2026-03-02" in cards[0]["summary"]


def test_a_newer_study_without_a_result_is_told_beside_it(service, make):
    cards = service.cards(make.order_sign(make.study(1), make.study(2, endpoint=[])), service=SERVICE)
    assert topics(cards) == ["unreachable", "finding"]


@pytest.mark.parametrize("orders", [(), ({"resourceType": "MedicationRequest"},)])
def test_without_an_imaging_order_nothing_is_read(service, make, fhir, orders):
    body = make.order_sign(orders=orders) | {"prefetch": {}}
    assert service.cards(body, service=SERVICE) == []
    assert fhir.requests == []


@pytest.mark.parametrize(
    "drafts", [None, [], {}, "Bundle", {"resourceType": "Bundle", "entry": [{"resource": 1}]}]
)
def test_drafts_of_a_wrong_form_are_refused(service, make, drafts):
    body = make.order_sign()
    body["context"]["draftOrders"] = drafts
    response = service.call(body, service=SERVICE)
    assert response.status_code == 400
    assert response.json()["issue"][0]["expression"][0].startswith("context.draftOrders")


def test_the_other_hook_is_refused(service, make):
    assert service.call(make.body(), service=SERVICE).status_code == 400
