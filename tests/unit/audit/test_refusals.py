"""One address cannot fill the log with refusals."""

import pytest
from limits import RateLimitItemPerMinute

from rayhook.audit.context import RequestSource, request_source
from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry
from rayhook.audit.refusals import RefusalLimit
from rayhook.audit.review import recent


@pytest.fixture
def refuse(database, audit):
    limit = RefusalLimit(refusals=RateLimitItemPerMinute(3, 5, namespace="test"))

    def refuse(*addresses):
        for address in addresses:
            source = request_source.set(RequestSource(address, ""))
            entry = AuditEntry(AuditKind.CDS_HOOKS_CLIENT_REFUSED, detail={"reason": "token_expired"})
            with database.sessions() as session:
                limit.record(session, audit, entry)
                session.commit()
            request_source.reset(source)

    return refuse


@pytest.fixture
def told(database, keyring):
    def told():
        with database.reading() as session:
            return recent(session, keyring, limit=50)[::-1]

    return told


def test_as_many_as_may_be_are_told_and_one_more(refuse, told):
    refuse(*["192.0.2.1"] * 10)
    assert len(told()) == 4


def test_the_last_one_told_says_that_more_are_not(refuse, told):
    refuse(*["192.0.2.1"] * 10)
    *first, last = [one.detail for one in told()]
    assert [*first, last["reason"]] == [{"reason": "token_expired"}] * 3 + ["token_expired"]
    assert "not told for up to 5 minutes" in last["further"]


def test_others_are_still_told(refuse, told):
    refuse(*["192.0.2.1"] * 10, "192.0.2.2")
    assert told()[-1].context["client_address"] == "192.0.2.2"


def test_addresses_of_one_ipv6_network_are_one(refuse, told):
    refuse(*[f"2001:db8::{number:x}" for number in range(10)])
    assert len(told()) == 4
