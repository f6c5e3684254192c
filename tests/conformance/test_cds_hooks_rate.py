"""Spec: RFC 6585, section 4; RFC 9110, 10.2.3."""

from dataclasses import replace

import httpx
import pytest

from rayhook.auth.registry import EHRRegistry
from rayhook.cds_hooks.rate_limit import NewAnalyses, RateLimit
from tests.conformance.conftest import PAGE_ORIGIN, application, served

ALLOWED = 3


@pytest.fixture
def slow_lane(service):
    """The same service, where the first client may call but a few times."""
    first, *others = service.dependencies.registry
    limited = replace(first, cds_client=replace(first.cds_client, calls_per_minute=ALLOWED))
    registry = EHRRegistry((limited, *others))
    dependencies = replace(service.dependencies, registry=registry, rate_limit=RateLimit(), wait_s=5.0)
    with served(application(dependencies)) as url, httpx.Client(base_url=url, timeout=10) as client:
        yield client


def test_one_call_too_many_is_told_when_to_come_again(service, make, slow_lane):
    answers = [service.call(make.body(), client=slow_lane, Origin=PAGE_ORIGIN) for _ in range(ALLOWED + 3)]
    assert [answer.status_code for answer in answers] == [200] * ALLOWED + [429] * 3
    last = answers[-1]
    assert 1 <= int(last.headers["retry-after"]) <= 60
    assert last.json()["issue"][0]["code"] == "throttled"
    assert "Retry-After" in last.headers["access-control-expose-headers"]


def test_the_audit_is_told_once(service, make, slow_lane):
    for _ in range(ALLOWED + 3):
        service.call(make.body(), client=slow_lane)
    (event,) = service.audit("cds_hooks:request:refused")
    assert event.detail["reason"] == "rate_limited"


def test_feedback_counts_as_well(service, make, slow_lane):
    path = "/cds-services/rayhook-patient-view/feedback"
    answers = [service.post(path, {"feedback": []}, client=slow_lane) for _ in range(ALLOWED + 1)]
    assert [answer.status_code for answer in answers] == [400] * ALLOWED + [429]


def test_another_client_is_not_held_up(service, make, slow_lane):
    for _ in range(ALLOWED + 1):
        service.call(make.body(), client=slow_lane)
    path = "/cds-services/rayhook-patient-view"
    body = make.body(prefetch={"patient": make.patient(), "imagingStudies": None})
    del body["fhirServer"], body["fhirAuthorization"]
    assert service.call(body, client=slow_lane, token=service.other(path)).status_code == 200


def test_who_is_not_let_in_uses_nothing_up(service, make, slow_lane):
    for _ in range(ALLOWED + 1):
        assert service.call(make.body(), client=slow_lane, token="none").status_code == 401
    assert service.call(make.body(), client=slow_lane).status_code == 200


def test_what_may_not_be_begun_now_is_told_as_such_and_not_begun(service, make):
    first, *others = service.dependencies.registry
    limited = replace(first, cds_client=replace(first.cds_client, analyses_per_minute=1))
    registry = EHRRegistry((limited, *others))
    dependencies = replace(service.dependencies, registry=registry, new_analyses=NewAnalyses(), wait_s=5.0)
    bodies = [make.body(make.study(number)) for number in (1, 2)]
    with served(application(dependencies)) as url, httpx.Client(base_url=url, timeout=10) as client:
        answers = [service.call(body, client=client) for body in bodies]
        again = service.call(bodies[0], client=client)
    topics = [answer.json()["cards"][0]["source"]["topic"]["code"] for answer in (*answers, again)]
    assert topics == ["finding", "not-begun", "finding"]
    assert len(service.analysis.claimed) == 1
