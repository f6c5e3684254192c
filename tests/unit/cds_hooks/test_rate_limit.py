"""Spec: RFC 6585, section 4."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from rayhook.auth.principal import CDSClientPrincipal
from rayhook.auth.registry import EHR, CDSClient
from rayhook.cds_hooks.rate_limit import NewAnalyses, RateLimit
from rayhook.fhir.errors import RateLimited


def principal(issuer="https://a.example", tenant=None, calls=5, tenants=("t",)):
    client = CDSClient(issuer, tenants=frozenset(tenants), calls_per_minute=calls)
    return CDSClientPrincipal(EHR("a", "A", ("https://a.example/fhir",), client), issuer, "jti", tenant, 0.0)


def admitted(limit, who, times):
    count = 0
    for _ in range(times):
        try:
            limit.admit(who)
        except RateLimited:
            continue
        count += 1
    return count


def test_one_call_too_many_is_told_when_to_come_again():
    limit = RateLimit()
    assert admitted(limit, principal(), 5) == 5
    with pytest.raises(RateLimited) as refused:
        limit.admit(principal())
    assert 1 <= refused.value.retry_after_s <= 60


@pytest.mark.parametrize("calls", [1, 199, 200, 1000])
def test_the_number_is_kept_whatever_the_lots(calls):
    assert admitted(RateLimit(), principal(calls=calls), calls + 50) == calls


def test_the_first_refusal_is_marked():
    limit = RateLimit()
    admitted(limit, principal(), 5)
    marks = []
    for _ in range(3):
        with pytest.raises(RateLimited) as refused:
            limit.admit(principal())
        marks.append(refused.value.is_first)
    assert marks == [True, False, False]


@pytest.mark.parametrize("other", [principal("https://b.example"), principal(tenant="t")])
def test_others_are_not_held_up(other):
    limit = RateLimit()
    admitted(limit, principal(), 9)
    limit.admit(other)


def test_calls_at_once_are_counted_each():
    limit = RateLimit()
    with ThreadPoolExecutor(20) as pool:
        counts = list(pool.map(lambda _: admitted(limit, principal(calls=40), 5), range(20)))
    assert sum(counts) == 40


def test_a_tenant_that_nobody_registered_has_no_count_of_its_own():
    limit = RateLimit()
    let_in = sum(admitted(limit, principal(tenant=f"t{number}", tenants=()), 1) for number in range(9))
    assert let_in == 5


def begun(limit, times, patient="p", analyses=5):
    client = CDSClient("https://a.example", analyses_per_minute=analyses)
    ehr = EHR("a", "A", ("https://a.example/fhir",), client)
    return sum(limit.has_room(ehr, patient) for _ in range(times))


def test_an_ehr_begins_no_more_studies_than_it_may():
    assert begun(NewAnalyses(), 9) == 5


def test_one_patient_does_not_take_the_room_of_the_others():
    limit = NewAnalyses()
    assert begun(limit, 100, analyses=1000) == 60
    assert begun(limit, 3, patient="q", analyses=1000) == 3
