import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text

from rayhook.audit.chain import verify
from rayhook.audit.events import AuditKind
from rayhook.audit.leaf import event_hash
from rayhook.audit.models import AUDIT_EVENT
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.report import ChainReport, Problem, ProblemKind
from rayhook.auth.keys import Keyring

ENTRY = AuditEntry(AuditKind.FHIR_RESOURCE_READ, ehr_id="north", patient_id="1", detail={"a": "b"})


@pytest.fixture
def sealed(database, audit):
    """Five events in two checkpoints."""
    fill(database, audit, 3)
    fill(database, audit, 2)
    return database


def fill(database, audit, count: int, *, seal: bool = True) -> None:
    with database.sessions() as session:
        for _ in range(count):
            audit.record(session, ENTRY)
        if seal:
            audit.checkpoint(session)
        session.commit()


def tamper(database, *statements: str) -> None:
    with database.sessions() as session:
        for table in ("audit_event", "audit_checkpoint"):
            session.execute(text(f"DROP TRIGGER {table}_no_update"))
            session.execute(text(f"DROP TRIGGER {table}_no_delete"))
        for statement in statements:
            session.execute(text(statement))
        session.commit()


def report(database, keyring, anchor, *, with_keyring=False) -> ChainReport:
    with database.reading() as session:
        return verify(session, keyring.audit_public_key, anchor, keyring=keyring if with_keyring else None)


def problems(database, keyring, anchor, **options) -> list[tuple[int, str]]:
    found = report(database, keyring, anchor, **options).problems
    return [(problem.seq, problem.kind.value) for problem in found]


def test_empty_log_is_intact(database, keyring, anchor):
    assert report(database, keyring, anchor) == ChainReport(intact=True, size=0, sealed_size=0, problems=())


def test_untouched_log_is_intact(sealed, keyring, anchor):
    assert report(sealed, keyring, anchor) == ChainReport(intact=True, size=5, sealed_size=5, problems=())


def test_events_since_the_last_checkpoint_are_counted_as_unsealed(sealed, audit, keyring, anchor):
    fill(sealed, audit, 4, seal=False)
    found = report(sealed, keyring, anchor)
    assert (found.intact, found.size, found.sealed_size) == (True, 9, 5)


def test_another_public_key_trusts_nothing(sealed, anchor):
    with sealed.reading() as session:
        found = verify(session, Ed25519PrivateKey.generate().public_key(), anchor)
    assert {problem.kind for problem in found.problems} == {
        ProblemKind.CHECKPOINT_FORGED,
        ProblemKind.ANCHOR_DAMAGED,
    }


def test_checkpoint_signed_with_a_key_of_the_attacker_is_found(sealed, keyring, anchor, tmp_path):
    """The pinned key: an attacker who rewrites the log can sign it, but not so."""
    tamper(sealed, "DELETE FROM audit_event", "DELETE FROM audit_checkpoint", "DELETE FROM patient_key")
    fill(sealed, AuditLog(Keyring.load_or_create(tmp_path / "attacker.json")), 5)
    assert problems(sealed, keyring, anchor) == [
        (5, "checkpoint_forged"),
        (3, "checkpoint_missing"),
        (5, "checkpoint_missing"),
        (3, "regrown"),
    ]


@pytest.mark.parametrize("column", ["size", "root", "head", "signed_at", "signature", "frontier"])
def test_edited_checkpoint_is_found(sealed, keyring, anchor, column):
    tamper(sealed, f"UPDATE audit_checkpoint SET {column} = {column} || '1' WHERE id = 1")
    assert "checkpoint_forged" in [kind for _, kind in problems(sealed, keyring, anchor)]


def test_deleted_checkpoint_is_found_by_the_anchor(sealed, keyring, anchor):
    tamper(sealed, "DELETE FROM audit_checkpoint WHERE id = 1")
    assert problems(sealed, keyring, anchor) == [(3, "checkpoint_missing")]


def test_deleted_tail_with_its_checkpoints_is_found_by_the_anchor(sealed, keyring, anchor):
    tamper(sealed, "DELETE FROM audit_event WHERE seq > 3", "DELETE FROM audit_checkpoint WHERE size > 3")
    assert problems(sealed, keyring, anchor) == [(5, "checkpoint_missing"), (4, "truncated")]


def test_emptied_database_is_found_by_the_anchor(sealed, keyring, anchor):
    tamper(sealed, "DELETE FROM audit_event", "DELETE FROM audit_checkpoint")
    assert problems(sealed, keyring, anchor)[-1] == (1, "truncated")


def test_absent_anchor_is_found(sealed, keyring, anchor):
    anchor.unlink()
    assert problems(sealed, keyring, anchor) == [(0, "anchor_missing")]


def test_edited_anchor_is_found(sealed, keyring, anchor):
    first, second = anchor.read_text().splitlines()
    anchor.write_text(f"{json.dumps({**json.loads(first), 'size': 4})}\n{second}\n")
    assert problems(sealed, keyring, anchor) == [(1, "anchor_damaged")]


def test_hundred_events_without_a_checkpoint_are_found(database, audit, keyring, anchor):
    fill(database, audit, 100, seal=False)
    tamper(database, "DELETE FROM audit_checkpoint")
    anchor.unlink()
    assert problems(database, keyring, anchor) == [(100, "checkpoint_missing")]


def test_forged_mac_is_found_with_the_keyring(sealed, keyring, anchor):
    tamper(sealed, "UPDATE audit_event SET mac = '' WHERE seq = 2")
    assert problems(sealed, keyring, anchor, with_keyring=True) == [(2, "forged")]


def test_crypto_shredded_log_still_verifies(sealed, keyring, anchor):
    """What is hashed is what is stored: without the keyring nothing can be opened, and all can be verified."""
    assert report(sealed, keyring, anchor, with_keyring=False).intact


def test_clock_that_moved_back_is_noted_and_no_problem(database, keyring, anchor):
    for time in (2000.0, 1000.0, 3000.0):
        fill(database, AuditLog(keyring, anchor=anchor, clock=lambda: time), 1)  # noqa: B023 - called at once
    found = report(database, keyring, anchor)
    assert (found.intact, found.notes) == (True, (Problem(2, ProblemKind.CLOCK_MOVED_BACK),))


@pytest.mark.parametrize("value", ["1.5", "x'ff'", "'text'", "NULL"])
@pytest.mark.parametrize("column", ["outcome", "kind", "detail_sealed"])
def test_value_of_another_type_is_found(sealed, keyring, anchor, column, value):
    tamper(
        sealed,
        "CREATE TABLE loose AS SELECT * FROM audit_event",
        f"UPDATE loose SET {column} = {value} WHERE seq = 2",
        "DROP TABLE audit_event",
        "ALTER TABLE loose RENAME TO audit_event",
    )
    assert problems(sealed, keyring, anchor) == [(2, "edited")]


def test_text_that_is_no_text_is_found(sealed, keyring, anchor):
    tamper(sealed, "UPDATE audit_event SET kind = CAST(x'ff' AS TEXT) WHERE seq = 2")
    assert "unreadable" in [kind for _, kind in problems(sealed, keyring, anchor)]


def test_event_with_no_number_is_found(sealed, keyring, anchor):
    tamper(
        sealed,
        "CREATE TABLE loose AS SELECT * FROM audit_event",
        "UPDATE loose SET seq = 'five' WHERE seq = 5",
        "DROP TABLE audit_event",
        "ALTER TABLE loose RENAME TO audit_event",
    )
    assert problems(sealed, keyring, anchor) == [(4, "inserted"), (5, "truncated")]


def test_problems_end_after_the_first_thousand(database, audit, keyring, anchor):
    fill(database, audit, 1100)
    tamper(database, "UPDATE audit_event SET outcome = 4")
    assert len(problems(database, keyring, anchor)) == 1000


def test_what_no_event_holds_is_not_hashed():
    with pytest.raises(ValueError, match="float"):
        event_hash({column.name: 1.5 for column in AUDIT_EVENT.columns})
