"""A job whose end could not be written: it comes back by itself, and the audit tells of it."""

import pytest

from rayhook.audit.record import AuditLog
from rayhook.audit.review import recent
from rayhook.fhir.errors import AuditUnavailable, ServiceUnavailable
from rayhook.inference.docket import Docket
from rayhook.inference.job_table import JobState
from rayhook.inference.lease import Leases

from .test_claims import desk, keyring  # noqa: F401 - fixtures


class FullLog(AuditLog):
    """Takes nothing while `is_full`."""

    is_full = False

    def record(self, session, entry):
        if self.is_full:
            raise AuditUnavailable("the log is full")
        super().record(session, entry)


@pytest.fixture
def docket(desk, keyring):  # noqa: F811
    return Docket(
        sessions=desk.database.sessions,
        keyring=keyring,
        audit=FullLog(keyring),
        lease_s=10.0,
        clock=desk.clock,
        leases=Leases(desk.database.unsynced, lease_s=10.0, clock=desk.clock),
    )


def drop(desk, docket):  # noqa: F811
    """Lose the database in the middle of a job; return the job's id."""
    id_ = desk.ask()
    with pytest.raises(ServiceUnavailable), docket.holding(docket.take_next()):
        raise ServiceUnavailable("the database does not answer")
    return id_


def told(desk, keyring):  # noqa: F811
    with desk.database.reading() as session:
        events = recent(session, keyring, limit=10)
    return [(one.kind.value, one.request_id, one.detail.get("code")) for one in events]


def test_it_is_put_off_with_the_next_beat(desk, docket):  # noqa: F811
    id_ = drop(desk, docket)
    assert desk.row(id_).state is JobState.RUNNING
    docket.leases.beat()
    row = desk.row(id_)
    assert (row.is_put_off, row.attempts, row.error_code) == (True, 0, "database_unavailable")


def test_the_audit_tells_that_it_was_put_off(desk, docket, keyring):  # noqa: F811
    drop(desk, docket)
    docket.leases.beat()
    assert told(desk, keyring) == [("inference:job:postponed", "r", "database_unavailable")]


def test_it_is_put_off_once(desk, docket):  # noqa: F811
    id_ = drop(desk, docket)
    docket.leases.beat()
    desk.now += 3
    again = docket.take_next()
    docket.leases.beat()
    assert (desk.row(id_).state, again.attempts) == (JobState.RUNNING, 1)


def test_one_that_went_to_another_is_left_to_it(desk, docket, keyring):  # noqa: F811
    id_ = drop(desk, docket)
    desk.now += 11
    assert docket.take_next().id == id_
    docket.leases.beat()
    assert (desk.row(id_).state, told(desk, keyring)) == (JobState.RUNNING, [])


def test_while_the_audit_takes_nothing_it_is_not_put_off(desk, docket):  # noqa: F811
    id_ = drop(desk, docket)
    docket.audit.is_full = True
    docket.leases.beat()
    assert desk.row(id_).state is JobState.RUNNING
    docket.audit.is_full = False
    docket.leases.beat()
    assert desk.row(id_).is_put_off


def test_while_it_cannot_be_put_off_the_jobs_in_hand_keep_their_leases(desk, docket):  # noqa: F811
    drop(desk, docket)
    docket.audit.is_full = True
    other = desk.ask("other")
    with docket.holding(docket.take_next()) as hold:
        for _ in range(3):
            desk.now += 9
            docket.leases.beat()
        assert (hold.is_lost, desk.row(other).state) == (False, JobState.RUNNING)
