"""The commands as an officer types them, over a real installation."""

import json
import sqlite3
import uuid
from contextlib import closing

import pytest
from typer.testing import CliRunner

from rayhook.audit.delivery import Delivery
from rayhook.audit.events import AuditKind
from rayhook.audit.export import record_json
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.review import recent
from rayhook.auth.keys import Keyring
from rayhook.deploy.cli import app
from rayhook.deploy.database import create_database, migrate
from rayhook.deploy.s3 import anchor_at
from tests.doubles.object_store import make_bucket, object_store

run = CliRunner()
ENTRY = AuditEntry(
    AuditKind.SMART_APP_RESULT_VIEWED,
    ehr_id="north",
    agent="Practitioner/ada",
    patient_id="canary",
    entities=("urn:oid:1.2.3",),
    detail={"part": "=HYPERLINK()"},
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYHOOK_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    keyring = Keyring.load_or_create(tmp_path / "keyring.json")
    migrate(f"sqlite:///{tmp_path / 'rayhook.sqlite3'}")
    write(tmp_path, keyring, 5)
    return tmp_path


def write(folder, keyring, count, clock=lambda: 1_700_000_000.0):
    database = create_database(f"sqlite:///{folder / 'rayhook.sqlite3'}")
    audit = AuditLog(keyring, anchor=folder / "audit-anchor.jsonl", clock=clock)
    with database.sessions() as session:
        for _ in range(count):
            audit.record(session, ENTRY)
        audit.checkpoint(session)
        session.commit()
    database.close()


def invoke(*arguments, status):
    result = run.invoke(app, ["audit", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def call(*arguments, status=0):
    return invoke(*arguments, status=status).output


def reported(*arguments, status=0):
    return json.loads(invoke(*arguments, "--json", status=status).stdout)


def tamper(folder, statement):
    with closing(sqlite3.connect(folder / "rayhook.sqlite3")) as connection:
        connection.execute("DROP TRIGGER audit_event_no_update")
        connection.execute(statement)
        connection.commit()


def newest(folder):
    database = create_database(f"sqlite:///{folder / 'rayhook.sqlite3'}")
    with database.reading() as session:
        events = recent(session, Keyring.load_or_create(folder / "keyring.json"), limit=20)
    database.close()
    return events


@pytest.fixture
def public_key(folder, tmp_path):
    path = tmp_path / "pinned.pem"
    path.write_text(call("public-key"))
    return path


def test_untouched_log_is_intact(folder, public_key):
    report = reported("verify", "--public-key", public_key)
    assert (report["intact"], report["size"], report["sealed_size"]) == (True, 5, 5)


def test_verification_tells_what_the_log_was_compared_with(folder, public_key):
    call("verify")
    call("verify", "--public-key", public_key)
    own, pinned = (
        one.detail["how"] for one in reversed(newest(folder)) if one.kind is AuditKind.AUDIT_CHAIN_VERIFIED
    )
    assert own == "checkpoints, keyring, anchor file"
    assert pinned == "checkpoints, keyring, public key of a file, anchor file"


def test_copy_is_verified_where_there_is_no_keyring(folder, public_key):
    (folder / "keyring.json").rename(folder / "elsewhere.json")
    assert reported("verify", "--public-key", public_key)["intact"]
    tamper(folder, "UPDATE audit_event SET outcome = 8 WHERE seq = 3")
    report = reported("verify", "--public-key", public_key, status=1)
    assert report["sequence_numbers"]["changed"] == [[3, 3]]


def test_changed_event_is_named(folder):
    tamper(folder, "UPDATE audit_event SET outcome = 8 WHERE seq = 3")
    report = reported("verify", status=1)
    assert report["sequence_numbers"]["changed"] == [[3, 3]]
    assert "event 3: edited" in call("verify", status=1)


def test_printed_digest_convicts_an_older_copy(folder, tmp_path):
    """The line from the filing cabinet knows of events that the restored copy has not."""
    older = (folder / "rayhook.sqlite3").read_bytes()
    anchor = (folder / "audit-anchor.jsonl").read_bytes()
    write(folder, Keyring.load_or_create(folder / "keyring.json"), 4)
    (tmp_path / "filed.txt").write_text(call("digest"))
    for rest in folder.glob("rayhook.sqlite3-*"):
        rest.unlink()
    (folder / "rayhook.sqlite3").write_bytes(older)
    (folder / "audit-anchor.jsonl").write_bytes(anchor)
    assert reported("verify")["intact"]
    report = reported("verify", "--checkpoint", tmp_path / "filed.txt", status=1)
    assert report["sequence_numbers"]["missing"] == [[7, 9]]


@pytest.fixture
def bucket():
    with object_store():
        yield make_bucket(f"audit-{uuid.uuid4().hex}")


def test_anchor_in_s3_convicts_an_older_copy(folder, bucket):
    keyring = Keyring.load_or_create(folder / "keyring.json")
    database = create_database(f"sqlite:///{folder / 'rayhook.sqlite3'}")
    older = (folder / "rayhook.sqlite3").read_bytes()
    anchor = (folder / "audit-anchor.jsonl").read_bytes()
    write(folder, keyring, 4)
    delivery = Delivery(database.sessions, database.reading, keyring, AuditLog(keyring))
    assert delivery.send_checkpoints(anchor_at(bucket.address, kept_days=1)).sent == 2
    database.close()
    assert reported("verify", "--anchor", bucket.address)["intact"]
    for rest in folder.glob("rayhook.sqlite3-*"):
        rest.unlink()
    (folder / "rayhook.sqlite3").write_bytes(older)
    (folder / "audit-anchor.jsonl").write_bytes(anchor)
    report = reported("verify", "--anchor", bucket.address, status=1)
    assert [one["kind"] for one in report["problems"]] == ["checkpoint_missing", "truncated"]
    assert report["sequence_numbers"]["missing"][-1][1] == 9


@pytest.mark.parametrize("anchor", ["s3://", "s3://Bucket", "s3://a b/c", "nowhere.jsonl"])
def test_anchor_that_is_none_is_refused(folder, anchor):
    assert "--anchor" in call("verify", "--anchor", anchor, status=2)


def test_proof_is_checked_without_the_installation(folder, public_key, tmp_path, monkeypatch):
    call("prove", 2, "--out", tmp_path / "proof.json")
    monkeypatch.setenv("RAYHOOK_DATA_DIR", str(tmp_path / "nowhere"))
    assert "holds" in call("check-proof", tmp_path / "proof.json", "--public-key", public_key)
    forged = (tmp_path / "proof.json").read_text().replace('"outcome": 0', '"outcome": 8')
    (tmp_path / "proof.json").write_text(forged)
    assert "not in the tree" in call(
        "check-proof", tmp_path / "proof.json", "--public-key", public_key, status=1
    )


@pytest.mark.parametrize("form", ["ndjson", "csv", "fhir"])
def test_export_is_signed_and_audited(folder, public_key, tmp_path, form):
    path = tmp_path / f"events.{form}"
    call("export", "--out", path, "--format", form, "--to", "2023-11-15")
    assert "holds" in call("check-export", path, "--public-key", public_key)
    manifest = json.loads((tmp_path / f"events.{form}.manifest.json").read_text())
    assert (manifest["count"], manifest["first_seq"], manifest["last_seq"]) == (5, 1, 5)
    assert newest(folder)[0].kind is AuditKind.AUDIT_LOG_EXPORTED
    path.write_bytes(path.read_bytes().replace(b"canary", b"kanary"))
    assert "not the one" in call("check-export", path, "--public-key", public_key, status=1)


def test_exported_lines_are_the_events(folder, tmp_path):
    call("export", "--out", tmp_path / "events.ndjson")
    lines = [json.loads(line) for line in (tmp_path / "events.ndjson").read_text().splitlines()]
    assert lines[:5] == [json.loads(json.dumps(record_json(one))) for one in newest(folder)[::-1][:5]]
    assert (tmp_path / "events.ndjson").stat().st_mode & 0o777 == 0o600


def test_cell_is_no_formula(folder, tmp_path):
    call("export", "--out", tmp_path / "events.csv", "--format", "csv")
    assert ",=HYPERLINK" not in (tmp_path / "events.csv").read_text()


def test_purge_takes_what_is_old_and_leaves_what_is_held(folder, monkeypatch):
    monkeypatch.setenv("RAYHOOK_AUDIT_RETENTION_DAYS", "30")
    write(folder, Keyring.load_or_create(folder / "keyring.json"), 3, clock=lambda: 1_700_000_100.0)
    out = call("hold", "add", "--reason", "case 7", "--first-seq", 2, "--last-seq", 3)
    assert "5 events would be purged" in call("purge", "--dry-run")
    assert "5 events were purged" in call("purge")
    assert reported("verify")["purged"] == 5
    hold_id = out.split()[1]
    assert "case 7" in call("hold", "list")
    call("hold", "release", hold_id)
    assert "2 events were purged" in call("purge")
    assert {event.kind for event in newest(folder)} >= {
        AuditKind.AUDIT_HOLD_PLACED,
        AuditKind.AUDIT_HOLD_RELEASED,
        AuditKind.AUDIT_LOG_PURGED,
    }


def test_days_of_a_kind_are_its_own(folder, monkeypatch):
    monkeypatch.setenv("RAYHOOK_AUDIT_RETENTION_BY_KIND", '{"smart_app:result:viewed": 1}')
    assert "4 events would be purged" in call("purge", "--dry-run")


def test_after_a_rotation_the_old_key_still_verifies(folder, public_key):
    call("rotate-key")
    write(folder, Keyring.load_or_create(folder / "keyring.json"), 3)
    assert call("public-key") != public_key.read_text()
    assert reported("verify", "--public-key", public_key)["intact"]
    assert reported("verify")["intact"]


def test_file_without_a_statement_is_refused(folder, tmp_path):
    (tmp_path / "empty").write_text("nothing\n")
    result = run.invoke(app, ["audit", "verify", "--checkpoint", str(tmp_path / "empty")])
    assert result.exception is not None
    assert "no checkpoint" in str(result.exception)
