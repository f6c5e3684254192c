"""CDS calls and feedback while the log takes no event, as on a full disk."""

from functools import partial

import pytest
from sqlmodel import select

from rayhook.cds_hooks.feedback import CardFeedback
from tests.conformance.conftest import PATIENT
from tests.doubles.full_log import full_log

FEEDBACK = "/cds-services/rayhook-patient-view/feedback"


@pytest.fixture
def full(service):
    return partial(full_log, service.database.engine)


@pytest.fixture
def card(service, make):
    return service.cards(make.body())[0]["uuid"]


def feedback_on(card):
    return {"feedback": [{"card": card, "outcome": "overridden", "outcomeTimestamp": "2026-03-14T09:00:00Z"}]}


def stored(service, card):
    with service.database.reading() as session:
        return list(session.exec(select(CardFeedback).where(CardFeedback.card == card)))


@pytest.mark.parametrize("hook", ["patient-view", "order-sign"])
def test_a_call_without_the_log_gets_no_card(service, make, request_of, full, hook):
    """The same call is answered with the finding while the log works: there is something to withhold."""
    body, path = request_of(hook, make.study()), f"rayhook-{hook}"
    service.cards(body, service=path)
    assert "Glioma" in service.call(body, service=path).text
    with full():
        refused = service.call(body, service=path)
    assert refused.status_code == 503
    assert not any(word in refused.text for word in ("Glioma", "cards", make.root))
    assert "Glioma" in service.call(body, service=path).text


def test_nothing_of_what_was_read_from_the_ehr_leaves_without_the_log(service, make, fhir, full):
    """The reads are told to the log together with the answer: without it there is none."""
    fhir.answer(f"/fhir/Patient/{PATIENT}", make.patient())
    fhir.answer("/fhir/ImagingStudy", make.bundle(make.study(), make.endpoint()))
    body = make.body()
    del body["prefetch"]
    with full():
        refused = service.call(body)
    assert refused.status_code == 503
    assert fhir.paths
    assert not any(word in refused.text for word in ("Glioma", "MR head", make.root))
    assert not service.audit("cds_hooks:prefetch:fetched")


def test_a_call_of_a_forger_without_the_log_is_still_refused(service, make, full):
    with full():
        refused = service.call(make.body(), token="no.token.here")
    assert refused.status_code in {401, 503}
    assert "Glioma" not in refused.text


def test_feedback_without_the_log_is_not_taken(service, card, full):
    with full():
        assert service.post(FEEDBACK, feedback_on(card)).status_code == 503
    assert stored(service, card) == []
    assert service.post(FEEDBACK, feedback_on(card)).status_code == 200
    assert len(stored(service, card)) == 1
