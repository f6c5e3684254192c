"""How many requests one client may make of the FHIR API."""

import httpx
import pytest
from limits import RateLimitItemPerMinute

from rayhook.smart_app.fhir_limit import FHIRLimit


@pytest.fixture
def ask(world, monkeypatch):
    """Ask an endpoint that lets each client ask but three times."""
    limit = FHIRLimit(requests=RateLimitItemPerMinute(3, namespace="test"))
    monkeypatch.setattr(FHIRLimit, "admit", limit.admit)
    scope = "patient/DiagnosticReport.rs"

    def ask(count, patient="phantom-a"):
        headers = {"Authorization": f"Bearer {world.ehr.authorization.issue(patient, scope)}"}
        url = f"{world.base_url}/fhir/R4/DiagnosticReport"
        return [httpx.get(url, headers=headers, timeout=20) for _ in range(count)]

    return ask


def test_one_request_too_many_is_told_when_to_come_again(ask):
    answers = ask(5)
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    last = answers[-1]
    assert 1 <= int(last.headers["retry-after"]) <= 60
    assert last.json()["issue"][0]["code"] == "throttled"


def test_the_audit_is_told_once(world, ask):
    def told():
        return len([one for one in world.audited() if one.detail.get("code") == "rate_limited"])

    before = told()
    ask(6)
    assert told() == before + 1
