"""Every kind of tampering is found and located, nothing lawful raises an alarm: on SQLite and on PostgreSQL."""

import shutil
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from rayhook.audit.record import AuditLog
from rayhook.audit.retention import HoldSubject, Retention, RetentionPolicy
from rayhook.audit.review import recent
from rayhook.auth.key_rotation import rotate_audit_key
from rayhook.auth.keyring_file import KeyringFile
from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database, migrate
from rayhook.deploy.s3 import anchor_at
from tests.doubles.object_store import make_bucket, object_store
from tests.integration.audit_tampering import EVENTS, S3_TAMPERING, TAMPERING, Bench

LATER = datetime(2040, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def keyring_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keyring.json"
    Keyring.load_or_create(path)
    return path


@pytest.fixture(scope="module")
def filled(tmp_path_factory, keyring_path):
    """A SQLite file and its anchor, filled once."""
    folder = tmp_path_factory.mktemp("filled")
    url = f"sqlite:///{folder / 'rayhook.sqlite3'}"
    migrate(url)
    _fill(Bench(create_database(url), Keyring.load_or_create(keyring_path), folder))
    return folder


@pytest.fixture(scope="module")
def template(server, tmp_path_factory, keyring_path):
    """A PostgreSQL database to copy, filled once."""
    folder = tmp_path_factory.mktemp("template")
    server.psql("CREATE DATABASE audit_template")
    url = server.get_uri("audit_template")
    migrate(url)
    _fill(Bench(create_database(url), Keyring.load_or_create(keyring_path), folder))
    return folder


def _fill(bench):
    for start in range(0, EVENTS, 65):
        bench.fill(65, start=start)
    bench.database.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def bench(request, tmp_path, keyring_path):
    keyring = Keyring.load_or_create(keyring_path)
    if request.param == "sqlite":
        source = request.getfixturevalue("filled")
        shutil.copy(source / "rayhook.sqlite3", tmp_path)
        url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    else:
        source, server = request.getfixturevalue("template"), request.getfixturevalue("server")
        name = f"audit_{abs(hash(request.node.nodeid))}"
        server.psql(f"CREATE DATABASE {name} TEMPLATE audit_template")
        url = server.get_uri(name)
    shutil.copy(source / "anchor.jsonl", tmp_path)
    database = create_database(url)
    yield Bench(database, keyring, tmp_path, clock=1_700_100_000.0)
    database.close()


def numbers(report, verdict):
    spans = report.as_json()["sequence_numbers"][verdict]
    return {number for first, last in spans for number in range(first, last + 1)}


@pytest.mark.parametrize("experiment", TAMPERING, ids=lambda experiment: experiment.name)
def test_tampering_is_found_and_located(bench, experiment):
    experiment.act(bench)
    report = bench.report()
    assert not report.intact
    if experiment.verdict is not None:
        assert numbers(report, experiment.verdict) >= set(experiment.numbers)


@pytest.fixture(scope="module")
def store():
    with object_store() as endpoint:
        yield endpoint


@pytest.fixture
def witnessed(bench, store):
    bench.bucket = make_bucket(f"audit-{uuid.uuid4().hex}")
    bench.locked = anchor_at(bench.bucket.address, kept_days=2192)
    return bench


@pytest.mark.parametrize("experiment", S3_TAMPERING, ids=lambda experiment: experiment.name)
def test_s3_anchor_convicts(witnessed, experiment):
    experiment.act(witnessed)
    report = witnessed.report()
    assert not report.intact
    if experiment.verdict is not None:
        assert numbers(report, experiment.verdict) >= set(experiment.numbers)


def test_s3_anchor_raises_no_alarm_over_an_untouched_log(witnessed):
    """Nor over one that grew since it was told last."""
    witnessed.send()
    witnessed.fill(120, start=500)
    assert witnessed.report().intact


def test_untouched_log_raises_no_alarm(bench):
    report = bench.report()
    assert (report.intact, report.size, report.notes) == (True, EVENTS, ())


def rotated(bench):
    def hand_over(key):
        with bench.database.sessions() as session:
            bench.audit().hand_over(session, key, agent="officer")
            session.commit()

    path = shutil.copy(bench.keyring._source.path, bench.folder / "rotated.json")
    path.chmod(0o600)
    rotate_audit_key(KeyringFile(path), hand_over)
    return Keyring.load_or_create(path)


def test_key_rotation_raises_no_alarm(bench):
    """Whoever has pinned the first key verifies on, and so does whoever pins the second."""
    new = rotated(bench)
    bench.fill(120, start=500, keyring=new)
    assert bench.report().intact
    bench.keyring = new
    assert bench.report().intact


def test_retired_key_signs_nothing_new(bench):
    new = rotated(bench)
    bench.fill(10, start=500, keyring=new)
    before = bench.latest()
    bench.fill(10, start=600)
    assert bench.latest() == before
    assert bench.report().intact


def purged(bench, **holds):
    policy = RetentionPolicy(kept_days=1)
    retention = Retention(bench.keyring, bench.audit(), policy, agent="officer")
    with bench.database.sessions() as session:
        for subject in holds.get("subjects", ()):
            retention.place(session, subject, reason="case 7", now=LATER)
        session.commit()
        plan = retention.purge(session, now=LATER)
        session.commit()
    return plan


def test_retention_with_tombstones_raises_no_alarm(bench):
    plan = purged(bench)
    assert plan.count == EVENTS - 1
    report = bench.report()
    assert (report.intact, report.purged) == (True, EVENTS - 1)
    bench.fill(150, start=900)
    assert bench.report().intact


def test_tampering_after_a_purge_is_found(bench):
    purged(bench, subjects=[HoldSubject(first_seq=100, last_seq=110)])
    bench.run("UPDATE audit_event SET outcome = 4 WHERE seq = 105")
    assert numbers(bench.report(), "changed") == {105}


def test_edited_tombstone_is_found(bench):
    purged(bench)
    bench.run("UPDATE audit_tombstone SET hash = :hash WHERE seq = 50", hash="0" * 64)
    assert not bench.report().intact


def test_held_patient_stays(bench):
    plan = purged(bench, subjects=[HoldSubject(ehr_id="north", patient_id="patient-3")])
    with bench.database.reading() as session:
        found = recent(session, bench.keyring, limit=1000, ehr_id="north", patient_id="patient-3")
    assert len(found) >= plan.held > 30
    assert bench.report().intact


def test_event_without_tombstone_is_not_deleted(bench):
    with bench.database.sessions() as session, pytest.raises(Exception, match="append-only"):
        session.execute(text("DELETE FROM audit_event WHERE seq = 5"))


def test_backup_and_restore_raise_no_alarm(bench):
    """What was there at the time of the backup is all there, and the log goes on from it."""
    snapshot = bench.snapshot()
    bench.restore(snapshot)
    bench.fill(30, start=700)
    assert bench.report().intact


def test_events_of_before_the_migration_raise_no_alarm(tmp_path, keyring_path):
    """Columns that were added later are no part of the hash of an event that has none of them."""
    url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    migrate(url)
    bench = Bench(create_database(url), Keyring.load_or_create(keyring_path), tmp_path)
    bench.fill(3)
    row = {**bench.rows()[0], "client_id": None, "context_sealed": None}
    from rayhook.audit.leaf import HASHED, canonical_text

    text_of = canonical_text([row[name] for name in HASHED])
    assert b"client_id" not in text_of
    assert b"context_sealed" not in text_of
    bench.database.close()


def test_crypto_shredding_leaves_the_log_verifiable(bench):
    """With the keyring gone nobody reads a patient's events any more; anybody verifies them with the public key."""
    assert bench.report(with_keyring=False).intact
    with bench.database.reading() as session, pytest.raises(Exception, match="does not belong"):
        recent(session, Keyring.load_or_create(bench.folder / "other.json"), limit=1)


def test_unused_policy_takes_nothing(bench):
    retention = Retention(bench.keyring, AuditLog(bench.keyring), RetentionPolicy(), agent="officer")
    with bench.database.reading() as session:
        plan = retention.plan(session, now=datetime(2023, 11, 16, tzinfo=UTC) + timedelta(days=365 * 5))
    assert plan.count == 0
