"""What differs on a real PostgreSQL: locks, triggers, types, and transactions that truly run side by side."""

import importlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlmodel import SQLModel

from rayhook.audit.chain import verify
from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.report import ProblemKind
from rayhook.audit.review import recent
from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database, migrate
from rayhook.fhir.errors import ServiceUnavailable
from rayhook.inference.jobs import Authorization, JobState, claim, enqueue, fail, find, load_job
from rayhook.inference.queue import AnalysisQueue
from rayhook.inference.study import StudyReference

pytestmark = pytest.mark.postgresql

ROOT = Path(__file__).resolve().parents[2]
TABLE_MODULES = [
    "rayhook." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("audit", "auth", "cds_hooks", "inference", "smart_app")
    for path in (ROOT / package).rglob("*.py")
    if ", table=True)" in path.read_text()
]
READ = AuditEntry(
    AuditKind.FHIR_RESOURCE_READ,
    ehr_id="north",
    agent="rayhook",
    patient_id="1",
    entities=("ImagingStudy/2",),
)
REFERENCE = StudyReference(
    ehr_id="north",
    fhir_base_url="https://north.example/fhir",
    patient_id="1",
    imaging_study_id="2",
    study_instance_uid="1.2.3",
    dicomweb_url="https://north.example/dicomweb",
    token_required=False,
)
TOKEN = Authorization("token", "patient/*.rs", 2e9)


@pytest.fixture
def url(server, request):
    name = f"test_{abs(hash(request.node.nodeid))}"
    server.psql(f"CREATE DATABASE {name}")
    return server.get_uri(name)


@pytest.fixture
def database(url):
    migrate(url)
    database = create_database(url)
    yield database
    database.close()


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keys") / "keyring.json")


@pytest.fixture
def anchor(tmp_path):
    return tmp_path / "anchor.jsonl"


@pytest.fixture
def audit(keyring, anchor):
    return AuditLog(keyring, anchor=anchor)


def side_by_side(act: Callable[[int], object], times: int) -> list:
    """Return what `act` gave to each of `times` threads that began together."""
    start = threading.Barrier(times)

    def begin(number: int) -> object:
        start.wait()
        return act(number)

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(begin, range(times)))


def queued(database, keyring, key="key"):
    with database.sessions() as session:
        job, created = enqueue(session, keyring, REFERENCE, TOKEN, key=key, request_id="request")
        session.commit()
    return job, created


def claimed(database, keyring, job_id):
    with database.sessions() as session:
        found = claim(session, keyring, job_id, lease_s=60.0)
        session.commit()
    return found


def test_migrated_schema_is_that_of_the_models(database):
    for module in TABLE_MODULES:
        importlib.import_module(module)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_processes_that_start_at_once_migrate_once(url):
    command = [sys.executable, "-c", f"from rayhook.deploy.database import migrate; migrate({url!r})"]
    starts = [subprocess.Popen(command) for _ in range(2)]
    assert [start.wait(60) for start in starts] == [0, 0]
    database = create_database(url)
    with database.reading() as session:
        assert session.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1
    database.close()


@pytest.mark.parametrize("table", ["audit_event", "audit_checkpoint"])
@pytest.mark.parametrize("act", ["UPDATE {table} SET size = 0", "DELETE FROM {table}", "TRUNCATE {table}"])
def test_audit_row_is_not_changed(database, audit, table, act):
    with database.sessions() as session:
        audit.record(session, READ)
        audit.checkpoint(session)
        session.commit()
    statement = act.format(table=table).replace("size", "outcome" if table == "audit_event" else "size")
    with database.sessions() as session, pytest.raises(DBAPIError, match="append-only"):
        session.execute(text(statement))


def test_concurrent_writers_leave_no_gap(database, audit, keyring, anchor):
    def write(_: int) -> None:
        for _ in range(25):
            with database.sessions() as session:
                session.execute(text("SELECT count(*) FROM audit_event"))
                audit.record(session, READ)
                session.commit()

    side_by_side(write, 8)
    with database.reading() as session:
        assert list(session.execute(text("SELECT seq FROM audit_event ORDER BY seq")).scalars()) == list(
            range(1, 201)
        )
        assert verify(session, keyring.audit_public_key, anchor, keyring=keyring).intact


def test_recorded_event_reads_back(database, audit, keyring):
    with database.sessions() as session:
        audit.record(session, READ)
        session.commit()
    with database.reading() as session:
        [event] = recent(session, keyring, limit=9, ehr_id="north", patient_id="1")
    assert (event.agent, event.patient_id, event.entities) == (READ.agent, READ.patient_id, READ.entities)


def test_event_edited_by_the_owner_of_the_database_is_found(database, audit, keyring, anchor):
    with database.sessions() as session:
        for _ in range(3):
            audit.record(session, READ)
        session.commit()
        session.execute(text("ALTER TABLE audit_event DISABLE TRIGGER ALL"))
        session.execute(text("UPDATE audit_event SET outcome = 4 WHERE seq = 2"))
        session.commit()
    with database.reading() as session:
        [problem] = verify(session, keyring.audit_public_key, anchor).problems
    assert (problem.seq, problem.kind) == (2, ProblemKind.EDITED)


def test_event_recorded_before_a_row_is_locked_does_not_deadlock(database, audit, keyring):
    """One transaction records, then locks a job; the other locks the job, then records."""
    job, _ = queued(database, keyring)
    lock = text("SELECT id FROM analysis_job WHERE id = :id FOR UPDATE").bindparams(id=job.id)

    def act(number: int) -> None:
        for _ in range(5):
            with database.sessions() as session:
                if number % 2:
                    audit.record(session, READ)
                    time.sleep(0.01)
                session.execute(lock)
                time.sleep(0.01)
                audit.record(session, READ)
                session.commit()

    side_by_side(act, 4)
    with database.reading() as session:
        assert session.execute(text("SELECT count(*) FROM audit_event")).scalar() == 30


def test_one_of_many_callers_creates_the_job(database, keyring):
    answers = side_by_side(lambda _: queued(database, keyring), 8)
    assert len({job.id for job, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1


def test_one_of_many_workers_gets_the_job(database, keyring):
    job, _ = queued(database, keyring)
    claims = side_by_side(lambda _: claimed(database, keyring, job.id), 8)
    assert sum(found is not None for found in claims) == 1


def test_reading_session_cannot_write(database):
    with database.reading() as session, pytest.raises(DBAPIError, match="read-only"):
        session.execute(text("INSERT INTO used_jti VALUES ('issuer', 'jti', 0)"))


def test_connection_that_served_a_reader_serves_a_writer(database, keyring):
    with database.reading() as session:
        assert find(session, "key") is None
    assert queued(database, keyring)[1]


def test_connection_that_was_cut_is_replaced(database, keyring):
    with database.sessions() as session:
        session.execute(text("SELECT 1"))
        with database.sessions() as other:
            others = text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            )
            other.execute(others)
        with pytest.raises(ServiceUnavailable):
            session.execute(text("SELECT 1"))
    assert queued(database, keyring)[1]


def test_queue_runs_jobs(database, keyring):
    def run(job_id: str) -> None:
        job = claimed(database, keyring, job_id)
        with database.sessions() as session:
            fail(session, job, code="code", message="message", retryable=False)
            session.commit()

    queue = AnalysisQueue(database.reading)
    queue.start(run, 2)
    job, _ = queued(database, keyring)
    queue.send(job.id)
    assert queue.wait(job.id, 10.0)
    queue.close()
    with database.reading() as session:
        assert load_job(session, job.id).state is JobState.FAILED
