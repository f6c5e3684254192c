import threading

import pytest
import structlog
from sqlalchemy import text

from rayhook.audit.chain import verify
from rayhook.audit.checkpoint import Anchor, stored_trees
from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.review import recent
from rayhook.fhir.correlation import request_id
from rayhook.fhir.errors import AuditUnavailable

pytestmark = pytest.mark.usefixtures("both")

READ = AuditEntry(
    AuditKind.FHIR_RESOURCE_READ,
    ehr_id="north",
    agent="Practitioner/ada",
    patient_id="canary-patient",
    entities=("ImagingStudy/canary-study", "urn:oid:1.2.826.777"),
    detail={"interaction": "canary-detail"},
)


def record(database, audit, *entries):
    with database.sessions() as session:
        for entry in entries:
            audit.record(session, entry)
        session.commit()


def size(database) -> int:
    with database.reading() as session:
        return session.execute(text("SELECT count(*) FROM audit_event")).scalar()


def columns(database, names: str) -> list[tuple]:
    with database.reading() as session:
        return [tuple(row) for row in session.execute(text(f"SELECT {names} FROM audit_event ORDER BY seq"))]


def is_intact(database, keyring, anchor) -> bool:
    with database.reading() as session:
        return verify(session, keyring.audit_public_key, anchor, keyring=keyring).intact


def test_recorded_event_reads_back(database, audit, keyring):
    record(database, audit, READ)
    with database.reading() as session:
        [event] = recent(session, keyring, limit=9)
    assert (event.seq, event.kind, event.outcome, event.ehr_id) == (1, READ.kind, Outcome.SUCCESS, "north")
    assert (event.agent, event.patient_id, event.entities, event.detail) == (
        READ.agent,
        READ.patient_id,
        READ.entities,
        READ.detail,
    )


def test_event_without_its_commit_never_happened(database, audit):
    with database.sessions() as session:
        audit.record(session, READ)
    assert size(database) == 0


def test_rolled_back_event_is_not_written_by_the_next_commit(database, audit):
    with database.sessions() as session:
        audit.record(session, READ)
        session.rollback()
        session.execute(text("SELECT 1"))
        session.commit()
    assert size(database) == 0


def test_event_of_a_closed_session_is_not_written_by_its_next_commit(database, audit):
    session = database.sessions()
    session.execute(text("SELECT 1"))
    audit.record(session, READ)
    session.close()
    session.commit()
    session.close()
    assert size(database) == 0


def test_each_commit_writes_its_own_events(database, audit):
    with database.sessions() as session:
        for _ in range(3):
            audit.record(session, READ)
            session.commit()
    assert columns(database, "seq") == [(1,), (2,), (3,)]


def test_savepoint_does_not_write_ahead(database, audit):
    with database.sessions() as session:
        audit.record(session, READ)
        with session.begin_nested():
            session.execute(text("SELECT 1"))
        assert session.execute(text("SELECT count(*) FROM audit_event")).scalar() == 0
        session.commit()
    assert size(database) == 1


def test_session_begun_as_a_context_writes_at_its_end(database, audit):
    with database.sessions() as session, session.begin():
        audit.record(session, READ)
    assert size(database) == 1


def test_work_is_lost_with_an_audit_that_cannot_be_written(database, audit):
    with database.sessions() as session:
        session.execute(text("DROP TABLE audit_event"))
        session.commit()
    with database.sessions() as session:
        session.execute(text("INSERT INTO used_jti VALUES ('issuer', 'jti', 0)"))
        audit.record(session, READ)
        with pytest.raises(AuditUnavailable):
            session.commit()
    with database.reading() as session:
        assert session.execute(text("SELECT count(*) FROM used_jti")).scalar() == 0


def test_request_is_the_one_at_hand_when_recorded(database, audit):
    with database.sessions() as session:
        token = request_id.set("request-at-hand")
        audit.record(session, READ)
        request_id.reset(token)
        session.commit()
    assert columns(database, "request_id") == [("request-at-hand",)]


def test_patient_data_is_not_on_disk(database, audit, both):
    record(database, audit, READ)
    database.close()
    stored = both.content()
    assert b"fhir:resource:read" in stored
    assert b"canary" not in stored
    assert b"1.2.826.777" not in stored


def test_same_patient_has_one_index(database, audit):
    record(database, audit, READ, READ)
    first, second = columns(database, "patient_index, entity_index, agent_index")
    assert first == second


def test_same_id_in_another_ehr_is_another_patient(database, audit):
    record(database, audit, READ, AuditEntry(READ.kind, ehr_id="south", patient_id=READ.patient_id))
    (first,), (second,) = columns(database, "patient_index")
    assert first != second


def test_time_is_utc_with_microseconds(database, keyring):
    record(database, AuditLog(keyring, clock=lambda: 1_767_225_600.000002), READ)
    assert columns(database, "recorded_at") == [("2026-01-01T00:00:00.000002Z",)]


def test_concurrent_writers_leave_no_gap(database, audit, keyring, anchor):
    start = threading.Barrier(8)

    def write() -> None:
        start.wait()
        for _ in range(25):
            with database.sessions() as session:
                session.execute(text("SELECT count(*) FROM audit_event"))
                audit.record(session, READ)
                session.commit()

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert columns(database, "seq") == [(seq,) for seq in range(1, 201)]
    assert is_intact(database, keyring, anchor)


def test_every_hundredth_event_is_sealed_and_anchored(database, audit, anchor):
    record(database, audit, *[READ] * 99)
    assert not anchor.exists()
    record(database, audit, READ)
    assert [line.tree_head.size for line in Anchor(anchor).checkpoints()] == [100]


def test_checkpoint_seals_what_is_there(database, audit, anchor):
    record(database, audit, READ, READ)
    with database.sessions() as session:
        audit.checkpoint(session)
        session.commit()
    assert [line.tree_head.size for line in Anchor(anchor).checkpoints()] == [2]


def test_checkpoint_goes_to_the_anchor_given(database, audit, anchor, tmp_path):
    with database.sessions() as session:
        audit.checkpoint(session, tmp_path / "other.jsonl")
        session.commit()
    assert not anchor.exists()
    assert (tmp_path / "other.jsonl").exists()


def test_checkpoint_that_is_rolled_back_is_not_anchored(database, audit, anchor):
    with database.sessions() as session:
        audit.record(session, READ)
        audit.checkpoint(session)
        session.rollback()
        session.commit()
    assert not anchor.exists()


def test_checkpoint_of_nothing_new_is_not_made(database, audit):
    for _ in range(2):
        with database.sessions() as session:
            audit.checkpoint(session)
            session.commit()
    with database.reading() as session:
        assert len(stored_trees(session)) == 1


def test_checkpoint_lost_between_commit_and_anchor_is_anchored_later(database, audit, anchor):
    record(database, audit, *[READ] * 100)
    anchor.unlink()
    with database.sessions() as session:
        audit.checkpoint(session)
        session.commit()
    assert [line.tree_head.size for line in Anchor(anchor).checkpoints()] == [100]


def test_anchor_that_cannot_be_written_is_logged_and_does_not_undo_the_act(database, keyring, tmp_path):
    audit = AuditLog(keyring, anchor=tmp_path / "absent" / "anchor.jsonl")
    with structlog.testing.capture_logs() as logs:
        record(database, audit, *[READ] * 100)
    assert size(database) == 100
    assert [log["event"] for log in logs] == ["audit_anchor_unwritable"]


def test_tampered_log_is_written_on_and_the_contradiction_is_logged(both, database, audit, keyring, anchor):
    record(database, audit, *[READ] * 100)
    with database.sessions() as session:
        session.execute(text(both.unguarded("audit_event")))
        session.execute(text("UPDATE audit_event SET hash = 'no hash' WHERE seq = 100"))
        session.commit()
    with structlog.testing.capture_logs() as logs:
        record(database, audit, *[READ] * 100)
    assert [log["event"] for log in logs] == ["audit_checkpoint_inconsistent"]
    assert not is_intact(database, keyring, anchor)
