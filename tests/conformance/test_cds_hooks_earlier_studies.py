"""An order or an appointment has the patient's earlier studies analysed, beside the answer."""

import time

import pytest

from rayhook.inference.jobs import Priority

ORDERS = ["order-sign", "order-select", "order-dispatch", "appointment-book"]


def queued(service, count):
    """Return the audited ImagingStudies of `count` queued jobs, once there are so many."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        events = service.audit("inference:job:enqueued")
        if len(events) >= count:
            break
        time.sleep(0.02)
    return {entity for event in events for entity in event.entities if entity.startswith("ImagingStudy/")}


def studies(make, count, **members):
    return [make.study(number, **members) for number in range(1, count + 1)]


@pytest.mark.parametrize("hook", ORDERS)
def test_an_order_has_all_studies_analysed(service, make, request_of, hook):
    body = request_of(hook, *studies(make, 6))
    service.cards(body, service=f"rayhook-{hook}")
    assert queued(service, 6) == {f"ImagingStudy/s{number}" for number in range(1, 7)}


def test_of_many_studies_the_ten_newest_are_analysed(service, make):
    service.cards(make.order_sign(*studies(make, 12)), service="rayhook-order-sign")
    assert queued(service, 10) == {f"ImagingStudy/s{number}" for number in range(3, 13)}


def test_opening_a_chart_has_the_newest_analysed_alone(service, make):
    service.cards(make.body(*studies(make, 6)))
    assert queued(service, 3) == {f"ImagingStudy/s{number}" for number in (4, 5, 6)}


def test_nobody_waits_for_an_earlier_study(service, make):
    service.analysis.delay_s = 0.3
    begun = time.monotonic()
    service.cards(make.order_sign(*studies(make, 10)), service="rayhook-order-sign")
    assert time.monotonic() - begun < 2.0
    assert len(queued(service, 10)) == 10


def priorities(service):
    with service.database.reading() as session:
        connection = session.connection()
        query = "SELECT priority, count(*) FROM analysis_job WHERE id IN (SELECT id FROM analysis_job ORDER BY created_at DESC LIMIT 4) GROUP BY priority"
        return {Priority(priority): count for priority, count in connection.exec_driver_sql(query)}


@pytest.mark.parametrize(
    ("ordered", "earlier"),
    [(None, Priority.ROUTINE), ("routine", Priority.ROUTINE), ("urgent", Priority.URGENT)],
)
def test_earlier_studies_are_as_urgent_as_the_order(service, make, ordered, earlier):
    members = {} if ordered is None else {"priority": ordered}
    body = make.order_sign(*studies(make, 4), orders=(make.order(**members),))
    service.cards(body, service="rayhook-order-sign")
    queued(service, 4)
    assert priorities(service) == {Priority.ASAP: 3, earlier: 1}


def test_an_endpoint_that_did_not_come_along_is_left_to_the_analysis(service, make, fhir):
    fhir.answer("/fhir/Endpoint/pacs", make.endpoint())
    body = make.order_sign(*studies(make, 4))
    body["prefetch"]["imagingStudies"] = make.bundle(*studies(make, 4))
    service.cards(body, service="rayhook-order-sign")
    assert len(queued(service, 4)) == 4
    while len(service.analysis.claimed) < 4:
        time.sleep(0.02)
    oldest = next(job for job in service.analysis.claimed if job.reference.imaging_study_id == "s1")
    assert oldest.reference.endpoint_ids == ("pacs",)


def test_without_an_imaging_order_no_earlier_study_is_analysed(service, make):
    body = make.order_sign(*studies(make, 5), orders=({"resourceType": "MedicationRequest"},))
    service.cards(body, service="rayhook-order-sign")
    time.sleep(0.2)
    assert queued(service, 0) == set()
