import logging
import subprocess
import sys
import threading
import time

import pytest
import structlog

from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database, migrate
from rayhook.inference.claims import MAX_ATTEMPTS
from rayhook.inference.jobs import JobState, claim, enqueue, fail, load_job
from rayhook.inference.queue import AnalysisQueue
from rayhook.inference.study import StudyReference

REFERENCE = StudyReference(
    ehr_id="north",
    fhir_base_url="https://north.example/fhir",
    patient_id="1",
    imaging_study_id="2",
    study_instance_uid="1.2.3",
    dicomweb_url="https://north.example/dicomweb",
    token_required=False,
)
KILLED_WORKER = """
import os, signal, sys
from pathlib import Path
from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database
from rayhook.inference.jobs import claim

url, keys, job_id = sys.argv[1:]
with create_database(url).sessions() as session:
    assert claim(session, Keyring.load_or_create(Path(keys)), job_id, lease_s=60.0) is not None
    session.commit()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keyring.json"
    Keyring.load_or_create(path)
    return path


@pytest.fixture
def work(tmp_path, keys):
    """A database, a clock that the test turns, and queues that are closed at the end."""
    url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    migrate(url)
    work = Work(url, create_database(url), keys)
    yield work
    for queue in work.queues:
        queue.close()
    work.database.close()


class Work:
    def __init__(self, url, database, keys):
        self.url, self.database, self.keys = url, database, keys
        self.keyring = Keyring.load_or_create(keys)
        self.queues = []
        self.ahead_s = 0.0

    def clock(self):
        return time.time() + self.ahead_s

    def queue(self, **options):
        queue = AnalysisQueue(self.database.reading, clock=self.clock, **options)
        self.queues.append(queue)
        return queue

    def enqueue(self, key="key"):
        with self.database.sessions() as session:
            job, _ = enqueue(
                session, self.keyring, REFERENCE, None, key=key, request_id="request", clock=self.clock
            )
            session.commit()
        return job.id

    def claim(self, job_id):
        with self.database.sessions() as session:
            claimed = claim(session, self.keyring, job_id, lease_s=60.0, clock=self.clock)
            session.commit()
        return claimed

    def fail(self, claimed):
        with self.database.sessions() as session:
            ended = fail(session, claimed, code="code", message="message", retryable=False, clock=self.clock)
            session.commit()
        return ended

    def run(self, job_id):
        claimed = self.claim(job_id)
        if claimed is not None:
            self.fail(claimed)

    def row(self, job_id):
        with self.database.reading() as session:
            return load_job(session, job_id)


def test_sent_job_is_run(work):
    queue = work.queue()
    queue.start(work.run, 1)
    job_id = work.enqueue()
    queue.send(job_id)
    assert queue.wait(job_id, 5.0)
    assert work.row(job_id).state is JobState.FAILED


def test_job_sent_before_the_start_is_run_after_it(work):
    queue = work.queue()
    job_id = work.enqueue()
    queue.send(job_id)
    queue.start(work.run, 1)
    assert queue.wait(job_id, 5.0)


def test_waiting_ends_at_its_time(work):
    queue = work.queue()
    begin = time.monotonic()
    assert not queue.wait(work.enqueue(), 0.1)
    assert 0.1 <= time.monotonic() - begin < 0.4


def test_waiting_for_a_job_that_has_ended_returns_at_once(work):
    job_id = work.enqueue()
    work.run(job_id)
    assert work.queue().wait(job_id, 0.0)


def test_job_that_ends_in_another_process_is_noticed(work):
    queue = work.queue()
    job_id = work.enqueue()
    threading.Timer(0.1, work.run, [job_id]).start()
    assert queue.wait(job_id, 5.0)


def test_end_of_a_job_wakes_who_waits(work):
    """Twenty waits: polling alone would need 10 ms each on the average."""
    queue = work.queue()
    queue.start(work.run, 1)
    for number in range(20):
        job_id = work.enqueue(str(number))
        queue.send(job_id)
        assert queue.wait(job_id, 5.0)


def test_jobs_run_in_as_many_threads_as_asked(work):
    both = threading.Barrier(2, timeout=5.0)
    queue = work.queue()

    def run(job_id):
        both.wait()
        work.run(job_id)

    queue.start(run, 2)
    job_ids = [work.enqueue(key) for key in "ab"]
    for job_id in job_ids:
        queue.send(job_id)
    assert all(queue.wait(job_id, 5.0) for job_id in job_ids)


def test_worker_outlives_a_job_that_raises(work, caplog):
    caplog.set_level(logging.CRITICAL)
    queue = work.queue()
    bad, good = work.enqueue("bad"), work.enqueue("good")

    def run(job_id):
        if job_id == bad:
            raise ZeroDivisionError
        work.run(job_id)

    queue.start(run, 1)
    queue.send(bad)
    queue.send(good)
    assert queue.wait(good, 5.0)


def test_closing_lets_the_job_in_hand_end(work):
    begun = threading.Event()

    def run(job_id):
        begun.set()
        time.sleep(0.2)
        work.run(job_id)

    queue = work.queue()
    queue.start(run, 1)
    job_id = work.enqueue()
    queue.send(job_id)
    assert begun.wait(5.0)
    queue.close()
    assert work.row(job_id).state is JobState.FAILED


def test_job_whose_message_was_lost_is_sent_by_the_sweep(work):
    job_id = work.enqueue()
    work.ahead_s = 10.0
    queue = work.queue(sweep_interval_s=0.05)
    queue.start(work.run, 1)
    assert queue.wait(job_id, 5.0)


def test_waiting_message_is_not_doubled_by_the_sweep(work):
    work.enqueue()
    work.ahead_s = 10.0
    queue = work.queue()
    assert [queue.sweep() for _ in range(3)] == [1, 1, 1]
    assert queue._broker.queues["analysis"].qsize() == 1


def test_abandoned_job_is_sent_again_and_its_first_worker_changes_nothing(work):
    """Claimed, never finished, lease over: the sweep finds another worker; the first one comes back too late."""
    job_id = work.enqueue()
    first = work.claim(job_id)
    work.ahead_s = 61.0
    queue = work.queue(sweep_interval_s=0.05)
    taken, may_end = threading.Event(), threading.Event()

    def run(job_id):
        claimed = work.claim(job_id)
        taken.set()
        assert may_end.wait(5.0)
        work.fail(claimed)

    queue.start(run, 1)
    assert taken.wait(5.0)
    assert not work.fail(first)
    may_end.set()
    assert queue.wait(job_id, 5.0)
    row = work.row(job_id)
    assert (row.state, row.attempts) == (JobState.FAILED, 2)
    assert not work.fail(first)


def test_job_of_a_killed_worker_is_done_by_another(work):
    job_id = work.enqueue()
    worker = subprocess.run(
        [sys.executable, "-c", KILLED_WORKER, work.url, str(work.keys), job_id], check=False, timeout=60
    )
    assert worker.returncode == -9
    assert work.row(job_id).state is JobState.RUNNING
    work.ahead_s = 61.0
    queue = work.queue(sweep_interval_s=0.05)
    queue.start(work.run, 1)
    assert queue.wait(job_id, 5.0)


def test_message_that_kills_every_worker_ends_dead(work):
    """A worker that never comes back, each time anew; the claim after the last gives up."""
    job_id = work.enqueue()
    queue = work.queue(sweep_interval_s=0.02)

    def run(job_id):
        work.claim(job_id)
        work.ahead_s += 61.0

    queue.start(run, 1)
    queue.send(job_id)
    assert queue.wait(job_id, 5.0)
    row = work.row(job_id)
    assert (row.state, row.attempts) == (JobState.DEAD, MAX_ATTEMPTS)


def test_sweep_outlives_a_database_that_is_away(work):
    queue = work.queue(sweep_interval_s=0.02)
    with work.database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE analysis_job RENAME TO away")
    with structlog.testing.capture_logs() as logs:
        queue.start(work.run, 1)
        deadline = time.monotonic() + 5.0
        while not logs and time.monotonic() < deadline:
            time.sleep(0.01)
    assert logs[0]["event"] == "job_sweep_failed"
    with work.database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO analysis_job")
    job_id = work.enqueue()
    work.ahead_s = 10.0
    assert queue.wait(job_id, 5.0)
