"""Which job is taken, who keeps it, and how it comes back: one transaction a call, and a clock that the test turns."""

from dataclasses import replace

import pytest
from sqlalchemy import text

from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database, migrate
from rayhook.fhir.errors import Conflict, NotFound, QueueFull
from rayhook.inference import claims, jobs
from rayhook.inference.intake import Intake
from rayhook.inference.job_list import count_jobs, open_jobs, retry_job, retry_jobs
from rayhook.inference.job_table import Authorization, JobState, Priority, WorkerQueue
from tests.unit.inference.samples import reference

HOUR_S = 3600.0
TOKEN = Authorization("token", "patient/*.rs", 1e12)


class Desk:
    """The functions under test on one database, each call in its own transaction."""

    def __init__(self, database, keyring):
        self.database, self.keyring, self.now = database, keyring, 1e9

    def clock(self):
        return self.now

    def __call__(self, function, *arguments, **options):
        with self.database.sessions() as session:
            result = function(session, *arguments, **options)
            session.commit()
        return result

    def ask(self, key="key", *, of=None, token=TOKEN, **options):
        row, _ = self(
            jobs.enqueue,
            self.keyring,
            of or reference(),
            token,
            key=key,
            request_id="r",
            clock=self.clock,
            **options,
        )
        return row.id

    def take(self, **options):
        return self(claims.claim_next, self.keyring, lease_s=10.0, clock=self.clock, **options)

    def row(self, job_id):
        return self(jobs.load_job, job_id)

    def fence(self, job_id):
        query = text("SELECT fence FROM analysis_job WHERE id = :id")
        return self(lambda session: session.execute(query, {"id": job_id}).scalar())

    def fail(self, claimed, *, retryable=True):
        return self(jobs.fail, claimed, code="code", message="why", retryable=retryable, clock=self.clock)


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keys") / "keyring.json")


@pytest.fixture
def desk(tmp_path, keyring):
    url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    migrate(url)
    database = create_database(url)
    yield Desk(database, keyring)
    database.close()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Priority.STAT, Priority.ASAP),
        (Priority.ASAP, Priority.URGENT),
        (Priority.URGENT, Priority.ROUTINE),
    ],
)
def test_the_more_urgent_is_taken_first_though_it_was_asked_for_later(desk, first, second):
    later = desk.ask("older", priority=second)
    desk.now += 600
    sooner = desk.ask("newer", priority=first)
    assert [desk.take().job.id for _ in range(2)] == [sooner, later]


def test_of_equals_the_older_is_taken_first(desk):
    asked = []
    for number in range(5):
        asked.append(desk.ask(f"key-{number}"))
        desk.now += 1
    assert [desk.take().job.id for _ in range(5)] == asked


def test_a_routine_job_does_not_wait_for_ever(desk):
    old = desk.ask("old", priority=Priority.ROUTINE)
    desk.now += 25 * HOUR_S
    desk.ask("new", priority=Priority.ASAP)
    assert desk.take().job.id == old


def test_nothing_is_taken_where_nothing_waits(desk):
    assert desk.take().job is None


def test_a_worker_takes_only_of_its_queues(desk):
    intake = Intake(gpu_modalities=frozenset({"MR"}))
    id_ = desk.ask(of=replace(reference(), modalities=("MR",)), intake=intake)
    assert desk.row(id_).queue is WorkerQueue.GPU
    assert desk.take(queues=[WorkerQueue.CPU]).job is None
    assert desk.take(queues=[WorkerQueue.GPU]).job.id == id_


def test_a_study_of_other_modalities_waits_for_a_processor(desk):
    id_ = desk.ask(
        of=replace(reference(), modalities=("CT",)), intake=Intake(gpu_modalities=frozenset({"MR"}))
    )
    assert desk.row(id_).queue is WorkerQueue.CPU


def test_asking_again_raises_the_priority(desk):
    first, second = desk.ask("first"), desk.ask("second")
    desk.ask("second", priority=Priority.STAT)
    assert [desk.take().job.id for _ in range(2)] == [second, first]


def test_asking_again_never_lowers_the_priority(desk):
    id_ = desk.ask(priority=Priority.STAT)
    desk.ask(priority=Priority.ROUTINE)
    assert desk.row(id_).priority is Priority.STAT


def test_the_second_study_finds_no_room(desk):
    intake = Intake(limit=1)
    desk.ask("first", intake=intake)
    with pytest.raises(QueueFull):
        desk.ask("second", intake=intake)


def test_what_waits_already_needs_no_room(desk):
    intake = Intake(limit=1)
    assert desk.ask(intake=intake) == desk.ask(intake=intake)


def test_a_stat_job_passes_the_limit_by_the_reserve(desk):
    intake = Intake(limit=1, reserve=1)
    desk.ask("first", intake=intake)
    desk.ask("second", intake=intake, priority=Priority.STAT)
    with pytest.raises(QueueFull):
        desk.ask("third", intake=intake, priority=Priority.STAT)


def test_a_job_in_hand_takes_no_room(desk):
    intake = Intake(limit=1)
    desk.ask("first", intake=intake)
    desk.take()
    assert desk.ask("second", intake=intake)


def test_what_found_no_room_is_told_to_who_counts(desk):
    told = []
    intake = Intake(limit=1, refused=told.append)
    desk.ask("first", intake=intake)
    with pytest.raises(QueueFull):
        desk.ask("second", intake=intake, priority=Priority.URGENT)
    assert told == [Priority.URGENT]


def test_a_job_whose_worker_is_silent_is_taken_again(desk):
    id_ = desk.ask()
    first = desk.take().job
    desk.now += 10.0
    second = desk.take().job
    assert (second.id, second.attempts) == (id_, 2)
    assert second.fence > first.fence


def test_a_job_whose_lease_is_kept_is_not_taken(desk):
    desk.ask()
    claimed = desk.take().job
    for _ in range(4):
        desk.now += 9.0
        assert desk(claims.renew, claimed, lease_s=10.0, clock=desk.clock)
    assert desk.take().job is None


def test_a_job_that_ends_each_worker_dies_and_is_told(desk):
    id_ = desk.ask()
    for _ in range(claims.MAX_ATTEMPTS):
        desk.take()
        desk.now += 10.0
    claim = desk.take()
    assert claim.job is None
    assert [(row.id, row.state, row.error_code) for row in claim.died] == [
        (id_, JobState.DEAD, "attempts_exhausted")
    ]


def test_a_dead_job_does_not_keep_another_waiting(desk):
    desk.ask("poison", priority=Priority.STAT)
    for _ in range(claims.MAX_ATTEMPTS):
        desk.take()
        desk.now += 10.0
    other = desk.ask("other")
    assert desk.take().job.id == other


def test_a_job_handed_back_is_no_attempt(desk):
    id_ = desk.ask()
    claimed = desk.take().job
    assert desk(claims.hand_back, claimed, clock=desk.clock)
    row = desk.row(id_)
    assert (row.state, row.attempts) == (JobState.QUEUED, 0)
    assert not desk.fail(claimed)


def test_a_job_handed_back_keeps_its_token(desk):
    desk.ask()
    desk(claims.hand_back, desk.take().job, clock=desk.clock)
    assert desk.take().job.authorization == TOKEN


def test_a_job_put_off_is_not_taken_before_its_time(desk):
    id_ = desk.ask()
    desk(
        claims.put_off,
        desk.take().job,
        until=desk.now + 60,
        code="upstream_timeout",
        message="late",
        clock=desk.clock,
    )
    assert desk.take().job is None
    row = desk.row(id_)
    assert (row.is_put_off, row.attempts, row.error_code) == (True, 0, "upstream_timeout")
    desk.now += 60
    claimed = desk.take().job
    assert (claimed.id, claimed.retries, claimed.authorization) == (id_, 1, TOKEN)


def test_asking_again_takes_up_at_once_what_was_put_off(desk):
    desk.ask()
    options = {"until": desk.now + 60, "code": "code", "message": "why", "clock": desk.clock}
    desk(claims.put_off, desk.take().job, **options)
    id_ = desk.ask(priority=Priority.ASAP)
    assert desk.take().job.id == id_


def test_asking_again_never_lowers_the_priority_of_what_was_put_off(desk):
    id_ = desk.ask(priority=Priority.STAT)
    due_at = desk(lambda session: session.get(jobs.AnalysisJob, id_).due_at)
    options = {"until": desk.now + 60, "code": "code", "message": "why", "clock": desk.clock}
    desk(claims.put_off, desk.take().job, **options)
    desk.ask(priority=Priority.ROUTINE)
    assert desk.row(id_).priority is Priority.STAT
    assert desk(lambda session: session.get(jobs.AnalysisJob, id_).due_at) == due_at


def spoil(desk, job_id):
    update = text("UPDATE analysis_job SET reference = :bytes WHERE id = :id")
    desk(lambda session: session.execute(update, {"bytes": b"not sealed by anybody", "id": job_id}))


def test_a_job_that_cannot_be_read_keeps_no_other_waiting(desk):
    spoiled = desk.ask("first", priority=Priority.STAT)
    spoil(desk, spoiled)
    other = desk.ask("second")
    assert desk.take().job.id == other


def test_a_job_that_cannot_be_read_is_tried_again_later(desk):
    id_ = desk.ask()
    spoil(desk, id_)
    assert desk.take().job is None
    row = desk.row(id_)
    assert (row.state, row.attempts, row.error_code) == (JobState.QUEUED, 1, "decryption_failed")
    assert row.next_attempt_at > desk.now


def test_a_job_that_can_never_be_read_dies_and_is_told(desk):
    id_ = desk.ask()
    spoil(desk, id_)
    died = []
    for _ in range(claims.MAX_ATTEMPTS):
        died += desk.take().died
        desk.now += 60.0
    assert [(row.id, row.state, row.error_code) for row in died] == [
        (id_, JobState.DEAD, "decryption_failed")
    ]


def test_a_job_that_ended_the_engine_dies_after_its_attempts(desk):
    id_ = desk.ask()
    ends = []
    for _ in range(claims.MAX_ATTEMPTS):
        options = {"until": desk.now, "code": "engine_ended", "message": "why", "clock": desk.clock}
        ends.append(desk(claims.survive, desk.take().job, **options))
    assert ends == [JobState.QUEUED] * (claims.MAX_ATTEMPTS - 1) + [JobState.DEAD]
    assert desk.row(id_).error_code == "attempts_exhausted"


def test_asking_again_does_not_take_up_a_dead_job(desk):
    id_ = desk.ask()
    for _ in range(claims.MAX_ATTEMPTS):
        desk.take()
        desk.now += 10.0
    desk.take()
    desk.ask(priority=Priority.STAT)
    assert desk.row(id_).state is JobState.DEAD


@pytest.mark.parametrize("is_in_hand", [False, True])
def test_a_cancelled_job_is_not_done(desk, is_in_hand):
    id_ = desk.ask()
    claimed = desk.take().job if is_in_hand else None
    row = desk(claims.cancel, id_, clock=desk.clock)
    assert (row.state, row.error_code) == (JobState.CANCELLED, "cancelled_by_staff")
    assert desk.take().job is None
    if claimed is not None:
        assert not desk(claims.renew, claimed, lease_s=10.0, clock=desk.clock)
        assert not desk.fail(claimed)
        assert desk.fence(id_) > claimed.fence


def test_cancelling_erases_the_token(desk):
    id_ = desk.ask()
    desk(claims.cancel, id_, clock=desk.clock)
    query = text("SELECT authorization FROM analysis_job")
    assert desk(lambda session: session.execute(query).scalar()) is None


def test_a_job_that_has_ended_is_not_cancelled(desk):
    id_ = desk.ask()
    desk.fail(desk.take().job)
    with pytest.raises(Conflict):
        desk(claims.cancel, id_)


def test_an_unknown_job_is_not_cancelled(desk):
    with pytest.raises(NotFound):
        desk(claims.cancel, "unknown")


def test_asking_again_does_not_take_up_a_cancelled_job(desk):
    id_ = desk.ask()
    desk(claims.cancel, id_, clock=desk.clock)
    desk.ask(priority=Priority.STAT)
    assert desk.row(id_).state is JobState.CANCELLED


def test_a_study_taken_back_by_its_ehr_ends_its_jobs_and_no_others(desk):
    mine = desk.ask("mine", of=replace(reference(), source_version="1"))
    others = [
        desk.ask("images", of=replace(reference(), study_instance_uid="1.2.9")),
        desk.ask("patient", of=replace(reference(), patient_id="another", imaging_study_id="another")),
    ]
    ended = desk(claims.cancel_study, desk.keyring, replace(reference(), source_version="2"))
    assert [(row.id, row.error_code) for row in ended] == [(mine, "study_withdrawn")]
    assert [desk.row(id_).state for id_ in others] == [JobState.QUEUED] * 2


def test_cancelled_and_dead_jobs_are_tried_again_by_name_alone(desk):
    id_ = desk.ask()
    desk(claims.cancel, id_, clock=desk.clock)
    assert desk(retry_jobs, clock=desk.clock) == []
    assert desk(retry_job, id_, clock=desk.clock).state is JobState.CANCELLED
    assert desk.take().job.id == id_


def test_jobs_are_counted_by_state_and_queue(desk):
    intake = Intake(gpu_modalities=frozenset({"CT"}))
    desk.ask("first", of=replace(reference(), modalities=("CT",)), intake=intake)
    desk.ask("second")
    desk.now += 30
    desk.take(queues=[WorkerQueue.CPU])
    counts = desk(count_jobs, now=desk.now)
    assert counts.by_queue == {
        (JobState.QUEUED, WorkerQueue.GPU): 1,
        (JobState.RUNNING, WorkerQueue.CPU): 1,
    }
    assert (counts.by_state[JobState.QUEUED], counts.oldest_waiting_s) == (1, 30.0)


def test_what_is_under_way_is_listed_in_the_order_of_work(desk):
    in_hand = desk.ask("in hand")
    desk.take()
    desk.now += 1
    routine, stat = desk.ask("routine"), desk.ask("stat", priority=Priority.STAT)
    assert [job.id for job in desk(open_jobs)] == [in_hand, stat, routine]


def test_a_job_of_a_process_of_the_previous_release_comes_first(desk):
    """It knows nothing of when a job is due: its rows have the column's default."""
    desk.ask("new", priority=Priority.STAT)
    old = desk.ask("old")
    desk(lambda session: session.execute(text(f"UPDATE analysis_job SET due_at = 0 WHERE id = '{old}'")))
    assert desk.take().job.id == old
