"""Whoever asks without a key cannot fill the log, at whatever route: every answer stays the same."""

import uuid

import httpx
import pytest
from limits import RateLimitItemPerMinute

from rayhook.audit.refusals import RefusalLimit
from rayhook.audit.review import AuditSearch, search
from tests.conformance.test_access_matrix import world  # noqa: F401 - a fixture

FEW = 3


@pytest.fixture(autouse=True)
def few(monkeypatch):
    limit = RefusalLimit(refusals=RateLimitItemPerMinute(FEW, 5, namespace="test"))
    monkeypatch.setattr(RefusalLimit, "record", limit.record)


def told(world, request_id):  # noqa: F811
    with world.service.database.reading() as session:
        found = search(session, world.service.keyring, AuditSearch(request_id=request_id), limit=9)
    return len(found.records)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/patient", 401),
        ("GET", "/fhir/R4/DiagnosticReport", 401),
        ("GET", "/fhir/R4/AuditEvent", 401),
        ("GET", "/smart/launch?iss=https://nobody.example/fhir&launch=x", 403),
        ("GET", "/smart/callback?state=unknown&code=c", 400),
        ("POST", "/cds-services/rayhook-patient-view", 401),
        ("POST", "/cds-services/rayhook-patient-view/feedback", 401),
        ("POST", "/dicom-web/studies", 401),
        ("POST", "/fhir/subscriptions/nobody", 401),
    ],
)
def test_refusals_beyond_the_limit_are_answered_and_not_told(world, method, path, status):  # noqa: F811
    request_ids = [uuid.uuid4().hex for _ in range(FEW + 3)]
    answers = [
        httpx.request(
            method, world.url(path), headers={"Authorization": "Bearer none", "X-Request-Id": request_id}
        )
        for request_id in request_ids
    ]
    assert {answer.status_code for answer in answers} == {status}
    assert [told(world, request_id) for request_id in request_ids] == [1] * (FEW + 1) + [0, 0]
