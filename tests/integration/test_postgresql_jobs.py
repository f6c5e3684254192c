"""Workers side by side on a real PostgreSQL: no job is two workers', and none waits behind another's lock."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database, migrate
from rayhook.inference import claims, jobs
from rayhook.inference.job_table import JobState, Priority
from tests.unit.inference.samples import reference

pytestmark = pytest.mark.postgresql


@pytest.fixture
def database(server, request):
    name = f"jobs_{abs(hash(request.node.nodeid))}"
    server.psql(f"CREATE DATABASE {name}")
    url = server.get_uri(name)
    migrate(url)
    database = create_database(url)
    yield database
    database.close()


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keys") / "keyring.json")


@pytest.fixture
def ask(database, keyring):
    def ask(key, **options):
        study = replace(reference(), study_instance_uid=f"1.2.3.{len(key)}")
        with database.sessions() as session:
            row, _ = jobs.enqueue(session, keyring, study, None, key=key, request_id="r", **options)
            session.commit()
        return row.id

    return ask


@pytest.fixture
def take(database, keyring):
    def take():
        with database.sessions() as session:
            claim = claims.claim_next(session, keyring, lease_s=60.0)
            session.commit()
        return claim.job

    return take


def test_workers_side_by_side_take_each_job_once(ask, take):
    asked = [ask(f"key-{number}") for number in range(24)]
    start = threading.Barrier(6)

    def work(_number):
        start.wait()
        taken = []
        while (job := take()) is not None:
            taken.append(job.id)
        return taken

    with ThreadPoolExecutor(6) as pool:
        taken = [id_ for ids in pool.map(work, range(6)) for id_ in ids]
    assert sorted(taken) == sorted(asked)


def test_a_worker_does_not_wait_for_anothers_claim(database, keyring, ask):
    first, second = ask("first"), ask("second")
    with database.sessions() as one:
        assert claims.claim_next(one, keyring, lease_s=60.0).job.id == first
        with database.sessions() as other:
            assert claims.claim_next(other, keyring, lease_s=60.0).job.id == second
            other.commit()
        one.commit()


def test_the_most_urgent_is_taken_first(ask, take):
    routine = ask("a", priority=Priority.ROUTINE)
    asap = ask("b", priority=Priority.ASAP)
    stat = ask("c", priority=Priority.STAT)
    assert [take().id for _ in range(3)] == [stat, asap, routine]


def test_a_job_is_not_cancelled_and_completed_both(database, ask, take):
    """Whichever comes first: the other finds it ended."""
    for number in range(10):
        id_ = ask(f"key-{number}")
        claimed = take()
        start = threading.Barrier(2)

        def fail(claimed=claimed, start=start):
            start.wait()
            with database.sessions() as session:
                ended = jobs.fail(session, claimed, code="code", message="why", retryable=False)
                session.commit()
            return ended

        def cancel(id_=id_, start=start):
            start.wait()
            with database.sessions() as session:
                try:
                    claims.cancel(session, id_)
                except claims.Conflict:
                    return False
                session.commit()
            return True

        with ThreadPoolExecutor(2) as pool:
            failed, cancelled = pool.submit(fail), pool.submit(cancel)
            assert failed.result() != cancelled.result()
        with database.reading() as session:
            state = jobs.load_job(session, id_).state
        assert state is (JobState.CANCELLED if cancelled.result() else JobState.FAILED)


def test_the_oldest_of_many_is_found_by_the_index(database):
    with database.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO analysis_job (id, key, state, attempts, fence, ehr_id, patient_index, study_index, reference, "
            "request_id, retryable, created_at, updated_at, due_at) SELECT n::text, n::text, 'queued', 0, 0, 'e', '', '', "
            "''::bytea, '', false, n, n, n FROM generate_series(1, 20000) AS n"
        )
        connection.exec_driver_sql("ANALYZE analysis_job")
        plan = connection.exec_driver_sql(
            "EXPLAIN SELECT * FROM analysis_job WHERE state = 'queued' AND queue IN ('cpu') "
            "AND (next_attempt_at IS NULL OR next_attempt_at <= 1) ORDER BY due_at, id LIMIT 1 FOR UPDATE SKIP LOCKED"
        ).all()
    assert "ix_analysis_job_due" in str(plan)
