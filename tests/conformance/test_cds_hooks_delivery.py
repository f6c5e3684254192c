"""A report that the EHR lacks is sent when a later call lends a token that may write it."""

import json
import queue

import pytest

from rayhook.inference.results import DeliveryState, set_delivery

WRITE = "patient/Device.c patient/DiagnosticReport.c patient/Observation.c patient/Provenance.c"


@pytest.fixture
def call_again(service, make):
    """Return what a second call has delivered, after the first one's delivery ended as given."""

    def call_again(state: DeliveryState, detail: str | None = None, *, scope: str = WRITE) -> str | None:
        card = service.cards(make.body())[0]
        result_id = json.loads(card["links"][0]["appContext"])["result"]
        with service.database.sessions() as session:
            set_delivery(session, result_id, state, detail)
            session.commit()
        service.dependencies.results._jobs.clear()
        service.cards(make.body(fhirAuthorization=make.authorization(scope=scope)))
        try:
            delivered, _ = service.analysis.delivered_again.get(timeout=1)
        except queue.Empty:
            return None
        assert delivered == result_id
        return delivered

    return call_again


@pytest.mark.parametrize(
    ("state", "detail"),
    [
        (DeliveryState.FAILED, "upstream_unavailable"),
        (DeliveryState.NOT_PERMITTED, "no_authorization"),
        (DeliveryState.NOT_PERMITTED, "scope_not_granted"),
    ],
)
def test_a_report_that_the_ehr_lacks_is_sent(call_again, state, detail):
    assert call_again(state, detail) is not None


def test_without_the_scope_it_is_not_sent(call_again):
    assert call_again(DeliveryState.FAILED, "upstream_timeout", scope="patient/ImagingStudy.rs") is None


@pytest.mark.parametrize(
    ("state", "detail"),
    [
        (DeliveryState.DELIVERED, None),
        (DeliveryState.PENDING, None),
        (DeliveryState.NOT_PERMITTED, "no_model_answered"),
    ],
)
def test_what_the_ehr_has_or_is_about_to_have_is_not_sent_again(call_again, state, detail):
    assert call_again(state, detail) is None
