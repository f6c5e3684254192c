import threading
import time

import pytest
import structlog
from sqlalchemy import text

from rayhook.fhir.errors import ServiceUnavailable
from rayhook.inference import claims
from rayhook.inference.job_table import JobState, WorkerQueue
from rayhook.inference.lease import Leases
from rayhook.inference.workers import Worker, forget_worker, living_workers, note_worker

from .test_claims import desk, keyring  # noqa: F401 - fixtures


@pytest.fixture
def leases(desk):  # noqa: F811
    made = Leases(desk.database.unsynced, lease_s=10.0, clock=desk.clock)
    yield made
    made.close()


def test_a_beat_keeps_the_job_in_hand(desk, leases):  # noqa: F811
    desk.ask()
    with leases.holding(desk.take().job):
        for _ in range(4):
            desk.now += 9
            leases.beat()
        assert desk.take().job is None


def test_who_lost_a_job_is_told_at_the_next_beat(desk, leases):  # noqa: F811
    id_ = desk.ask()
    with leases.holding(desk.take().job) as hold:
        desk(claims.cancel, id_, clock=desk.clock)
        leases.beat()
        with pytest.raises(ServiceUnavailable) as refusal:
            hold.check()
    assert refusal.value.code == "lease_lost"


def test_a_job_that_we_ended_is_not_told_as_lost(desk, leases):  # noqa: F811
    """Its report is on its way to the EHR meanwhile."""
    desk.ask()
    claimed = desk.take().job
    with structlog.testing.capture_logs() as logs, leases.holding(claimed) as hold:
        desk.fail(claimed)
        hold.is_over = True
        leases.beat()
        hold.check()
    assert not logs


def test_who_still_has_a_job_goes_on(desk, leases):  # noqa: F811
    desk.ask()
    with leases.holding(desk.take().job) as hold:
        leases.beat()
        hold.check()


def test_what_is_in_hand_is_handed_back(desk, leases):  # noqa: F811
    id_ = desk.ask()
    with leases.holding(desk.take().job) as hold:
        assert leases.hand_back() == 1
        assert hold.is_lost
    row = desk.row(id_)
    assert (row.state, row.attempts) == (JobState.QUEUED, 0)


def test_what_has_ended_is_not_handed_back(desk, leases):  # noqa: F811
    id_ = desk.ask()
    claimed = desk.take().job
    with leases.holding(claimed):
        desk.fail(claimed)
        assert leases.hand_back() == 0
    assert desk.row(id_).state is JobState.FAILED


def test_the_thread_goes_on_after_an_error_that_nobody_expected(desk):  # noqa: F811
    has_failed, beats = threading.Event(), threading.Event()

    def present(_session):
        if not has_failed.is_set():
            has_failed.set()
            raise KeyError("unexpected")
        beats.set()

    leases = Leases(desk.database.sessions, lease_s=0.03, present=present)
    leases.start()
    try:
        assert beats.wait(10.0)
    finally:
        leases.close()


def test_the_thread_beats_by_itself(desk):  # noqa: F811
    id_ = desk.ask()
    query = text("SELECT lease_until FROM analysis_job WHERE id = :id")

    def lease_until():
        return desk(lambda session: session.execute(query, {"id": id_}).scalar())

    leases = Leases(desk.database.unsynced, lease_s=0.3)
    claimed = desk(claims.claim_next, desk.keyring, lease_s=0.3).job
    first = lease_until()
    leases.start()
    with leases.holding(claimed):
        deadline = time.monotonic() + 10.0
        while lease_until() == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    leases.close()


def worker(**changes):
    values = {
        "id": "w",
        "name": "host:1",
        "queues": (WorkerQueue.CPU,),
        "threads": 2,
        "device": "cpu",
        "version": "1",
        "started_at": 0.0,
        "seen_at": 0.0,
    }
    return Worker(**(values | changes))


def test_a_worker_is_alive_while_it_is_heard_of(desk):  # noqa: F811
    desk(note_worker, worker(), now=100.0)
    desk(note_worker, worker(), now=200.0)
    (found,) = desk(living_workers, now=214.0)
    assert (found.id, found.queues, found.seen_at) == ("w", (WorkerQueue.CPU,), 200.0)
    assert desk(living_workers, now=216.0) == []


def test_a_worker_that_stops_is_forgotten(desk):  # noqa: F811
    desk(note_worker, worker(), now=100.0)
    desk(forget_worker, "w")
    assert desk(living_workers, now=100.0) == []


def test_a_worker_that_stops_says_so(desk):  # noqa: F811
    desk(note_worker, worker(), now=100.0)
    desk(note_worker, worker(), now=101.0, is_stopping=True)
    assert [one.is_stopping for one in desk(living_workers, now=101.0)] == [True]
