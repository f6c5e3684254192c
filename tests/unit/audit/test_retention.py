from datetime import UTC, datetime

import pytest
from sqlalchemy import insert

from rayhook.audit.events import AuditKind
from rayhook.audit.models import AUDIT_DELIVERY
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.retention import HoldSubject, Retention, RetentionPolicy
from rayhook.fhir.errors import InvalidRequest, NotFound

pytestmark = pytest.mark.usefixtures("both")

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def retention(keyring, audit):
    return Retention(keyring, audit, RetentionPolicy(kept_days=1), agent="urn:rayhook:staff:eve")


@pytest.fixture
def filled(database, keyring, anchor):
    audit = AuditLog(keyring, anchor=anchor, clock=lambda: 1_700_000_000.0)
    with database.sessions() as session:
        for _ in range(10):
            audit.record(
                session, AuditEntry(AuditKind.FHIR_RESOURCE_READ, ehr_id="north", agent="Practitioner/a")
            )
        audit.checkpoint(session)
        session.commit()
    return database


@pytest.mark.parametrize(
    "subject",
    [
        {},
        {"patient_id": "p"},
        {"ehr_id": "north", "patient_id": "p", "agent": "a"},
        {"first_seq": 1},
        {"last_seq": 1},
        {"agent": "a", "first_seq": 1, "last_seq": 2},
    ],
)
def test_hold_names_one_thing(subject):
    with pytest.raises(InvalidRequest):
        HoldSubject(**subject)


def test_hold_needs_its_reason(database, retention):
    with database.sessions() as session, pytest.raises(InvalidRequest):
        retention.place(session, HoldSubject(agent="a"), reason=" ", now=NOW)


def test_hold_is_released_once(database, retention):
    with database.sessions() as session:
        id_ = retention.place(session, HoldSubject(agent="a"), reason="case", now=NOW)
        retention.release(session, id_, now=NOW)
        with pytest.raises(NotFound):
            retention.release(session, id_, now=NOW)


def test_held_person_stays(filled, retention):
    with filled.sessions() as session:
        retention.place(session, HoldSubject(ehr_id="north", agent="Practitioner/a"), reason="case", now=NOW)
        plan = retention.plan(session, now=NOW)
    assert (plan.count, plan.held) == (0, 9)


def test_event_that_a_receiver_waits_for_stays(filled, retention):
    with filled.sessions() as session:
        row = {"target": "events:fhir", "position": 4, "failures": 0, "changed_at": ""}
        session.execute(insert(AUDIT_DELIVERY).values(row))
        assert retention.plan(session, now=NOW).last_seq == 4


def test_what_no_checkpoint_covers_stays(database, audit, retention):
    with database.sessions() as session:
        audit.record(session, AuditEntry(AuditKind.FHIR_RESOURCE_READ))
        session.commit()
        assert retention.plan(session, now=NOW).count == 0


def test_policy_tells_its_days_by_kind():
    policy = RetentionPolicy(10, {AuditKind.AUDIT_LOG_READ: 20})
    assert policy.text() == "events older than 10 days; audit:log:read: 20 days"
