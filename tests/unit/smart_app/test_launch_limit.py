"""How often one address may begin a launch: each is a row and an event of somebody whom nobody knows yet."""

import uuid

import pytest
from limits import RateLimitItemPerMinute

from rayhook.smart_app.address_limit import LaunchLimit


@pytest.fixture
def answers(world, monkeypatch):
    """Begin six launches where three are allowed."""
    for name, amount in (("tries", 3), ("tellings", 1)):
        counted = RateLimitItemPerMinute(amount, 5, namespace=uuid.uuid4().hex)
        monkeypatch.setattr(LaunchLimit, name, counted)
    with world.browser() as browser:
        return [
            browser.get(
                f"{world.base_url}/smart/launch",
                params={"iss": f"{world.ehr_url}/fhir", "launch": "x"},
                follow_redirects=False,
            )
            for _ in range(6)
        ]


def test_what_is_beyond_it_is_told_when_to_come_again(answers):
    assert [answer.status_code for answer in answers[3:]] == [429] * 3
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 300


def test_what_is_within_it_goes_to_the_ehr(answers):
    assert [answer.is_redirect for answer in answers[:3]] == [True] * 3


def test_the_page_says_why(answers):
    assert "Too many launches from this address" in answers[-1].text


def test_the_audit_is_told_once(world, answers):
    last = [one.detail.get("code") for one in world.audited()[:4]]
    assert last == ["rate_limited", None, None, None]
