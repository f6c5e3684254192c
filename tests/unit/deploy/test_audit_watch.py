import re
import time as clock
from datetime import time, timedelta
from pathlib import Path

import pytest

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.review import AuditSearch, search
from rayhook.audit.unusual import Watching
from rayhook.audit.verification import Verifier
from rayhook.audit.watch import Thresholds
from rayhook.auth.keys import Keyring
from rayhook.deploy import audit_watch
from rayhook.deploy.audit_watch import load_thresholds, watching
from rayhook.deploy.database import create_database, migrate
from rayhook.fhir.errors import InvalidRequest

AUDIT = Path(__file__).resolve().parents[3] / "deploy" / "docs" / "audit.md"


def written(tmp_path, content):
    path = tmp_path / "watch.toml"
    path.write_text(content)
    return path


def test_without_a_file_the_defaults_hold():
    assert load_thresholds(None) == Thresholds()


def test_an_empty_file_says_the_defaults(tmp_path):
    found = load_thresholds(written(tmp_path, ""))
    assert (found.patients, found.denials, found.quiet) == (50, 5, timedelta(hours=1))


def test_the_documented_file_is_one(tmp_path):
    example = re.search(r"```toml\n(patients.*?)```", AUDIT.read_text(), flags=re.DOTALL)
    found = load_thresholds(written(tmp_path, example[1]))
    assert found.night_from == time(22)
    assert found.vips == {("general-hospital", "1234")}
    assert found.people == {("general-hospital", "Practitioner/7"): "5678"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("patients = 0", "patients"),
        ("patient = 5", "patient"),
        ('time_zone = "Mars/Olympus"', "time_zone"),
        ("night_from = 'late'", "night_from"),
        ("patients =", "watch file"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, told):
    with pytest.raises(InvalidRequest, match=told):
        load_thresholds(written(tmp_path, content))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load_thresholds(tmp_path / "nothing.toml")


def test_the_service_looks_and_verifies_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(audit_watch, "_LOOK_EVERY_S", 0.01)
    url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    migrate(url)
    database, keyring = create_database(url), Keyring.load_or_create(tmp_path / "keyring.json")
    audit = AuditLog(keyring, anchor=tmp_path / "anchor.jsonl")
    parts = database.sessions, database.reading, keyring, audit
    with database.sessions() as session:
        audit.record(session, AuditEntry(AuditKind.SMART_APP_EMERGENCY_STARTED, agent="a", purpose="BTG"))
        session.commit()
    expected = {AuditKind.AUDIT_REVIEW_RAISED, AuditKind.AUDIT_CHAIN_VERIFIED}
    kinds = set()
    with watching(Watching(*parts, Thresholds()), Verifier(*parts), verify_every_s=0.01):
        until = clock.monotonic() + 20
        while not expected <= kinds and clock.monotonic() < until:
            clock.sleep(0.02)
            with database.reading() as session:
                found = search(session, keyring, AuditSearch(kinds=tuple(expected)), limit=500).records
            kinds = {record.kind for record in found}
    database.close()
    assert kinds == expected
