"""A database that schema 0003's own code filled, brought up to date: on SQLite and on PostgreSQL."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Boolean, MetaData, Table, insert, text
from sqlmodel import SQLModel

from rayhook.audit.chain import verify
from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.review import AuditSearch, search
from rayhook.auth.keys import Keyring
from rayhook.auth.sessions import find_session
from rayhook.deploy.database import create_database, migrate
from rayhook.inference.jobs import JobState, claim, load_job
from rayhook.inference.results import load_result, results_for_patient
from tests.unit.deploy.test_database import TABLE_MODULES

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data" / "schema_0003"
KNOWN = json.loads((DATA / "known.json").read_text())
EVENTS, SEALED = 123, 120


def value_of(column, value):
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"])
    return bool(value) if isinstance(column.type, Boolean) and value is not None else value


def fill(connection):
    """Insert the rows as they were; the database numbers checkpoints itself."""
    metadata = MetaData()
    for line in (DATA / "rows.ndjson").read_text().splitlines():
        one = json.loads(line)
        table = Table(one["table"], metadata, autoload_with=connection)
        values = {name: value_of(table.columns[name], value) for name, value in one["row"].items()}
        if one["table"] == "audit_checkpoint":
            del values["id"]
        connection.execute(insert(table).values(values))


def old_database(url):
    config = Config()
    config.set_main_option("script_location", str(ROOT / "deploy" / "migrations"))
    config.set_main_option("path_separator", "os")
    database = create_database(url)
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        fill(connection)
    database.close()


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    path = Path(shutil.copy(DATA / "keyring.json", tmp_path_factory.mktemp("keys")))
    path.chmod(0o600)
    return Keyring.load_or_create(path)


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def upgraded(request, tmp_path_factory):
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('upgraded') / 'rayhook.sqlite3'}"
    else:
        url = request.getfixturevalue("server").get_uri()
    old_database(url)
    migrate(url)
    database = create_database(url)
    yield database
    database.close()


@pytest.fixture
def session(upgraded):
    """A session whose changes are undone."""
    with upgraded.sessions() as session:
        yield session
        session.rollback()


@pytest.fixture
def anchor(tmp_path):
    return Path(shutil.copy(DATA / "anchor.jsonl", tmp_path))


def test_old_log_is_intact(session, keyring, anchor):
    report = verify(session, keyring.audit_public_key, anchor, keyring=keyring)
    assert (report.intact, report.size, report.sealed_size) == (True, EVENTS, SEALED)


def test_old_events_are_read(session, keyring):
    wanted = AuditSearch(ehr_id="north", patient_id="patient-3")
    records = search(session, keyring, wanted, limit=200).records
    assert len(records) == sum(number % 7 == 3 and number % 5 != 0 for number in range(EVENTS))
    assert {record.agent for record in records} == {"Practitioner/ada"}
    assert all(record.detail["number"] for record in records)


@pytest.mark.parametrize("entity", ["ImagingStudy/4", "urn:oid:1.2.826.2"])
def test_old_events_are_found_by_what_they_touched(session, keyring, entity):
    """The index of entities is newer than they are."""
    records = search(session, keyring, AuditSearch(ehr_id="north", entity=entity), limit=200).records
    expected = {
        number + 1
        for number in range(EVENTS)
        if number % 5 != 0 and entity in {f"ImagingStudy/{number % 11}", f"urn:oid:1.2.826.{number % 3}"}
    }
    assert {record.seq for record in records} == expected


def test_columns_that_old_events_did_not_have_are_empty(session):
    query = text("SELECT count(*) FROM audit_event WHERE client_id IS NOT NULL OR context_sealed IS NOT NULL")
    assert session.execute(query).scalar() == 0


def test_old_session_is_alive_without_roles(session, keyring):
    found = find_session(session, keyring, KNOWN["session"], clock=lambda: KNOWN["now"])
    assert found is not None
    assert (found.patient_id, found.fhir_user, found.access_token) == (
        "canary-patient",
        "Practitioner/ada",
        "secret-token",
    )
    assert (found.roles, found.refresh_token, found.window_mark) == (frozenset(), None, "")


def test_old_result_is_read(session, keyring):
    stored = load_result(session, keyring, KNOWN["result"])
    assert stored is not None
    assert stored.reference.patient_id == "canary-patient"
    assert stored.result.findings[0].display == "Glioma"
    assert [one.id for one in results_for_patient(session, keyring, "north", "canary-patient")] == [stored.id]


def test_report_that_did_not_reach_the_ehr_is_due_again(session):
    found = session.execute(text("SELECT result_id, errand, attempts FROM result_outbox")).all()
    assert [tuple(row) for row in found] == [(KNOWN["result"], "report", 0)]


def test_queued_job_is_taken_up(session, keyring):
    claimed = claim(session, keyring, KNOWN["queued"], lease_s=60, clock=lambda: KNOWN["now"])
    assert claimed is not None
    assert claimed.reference.study_instance_uid == "1.2.826.888"
    assert load_job(session, KNOWN["queued"]).state is JobState.RUNNING


def test_card_of_before_is_kept(session):
    row = session.execute(text("SELECT card, result_id, suggestions FROM cds_card_issued")).one()
    assert tuple(row) == ("card-1", KNOWN["result"], "s-1")


def test_schema_is_that_of_the_models(upgraded):
    for module in TABLE_MODULES:
        importlib.import_module(module)
    with upgraded.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_old_event_is_not_changed_by_anybody(session):
    with pytest.raises(Exception, match="append-only"):
        session.execute(text("UPDATE audit_event SET outcome = 8 WHERE seq = 5"))


def test_log_goes_on_and_an_edit_of_before_is_found(tmp_path, keyring, anchor):
    url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    old_database(url)
    migrate(url)
    database = create_database(url)
    audit = AuditLog(keyring, anchor=anchor)
    with database.sessions() as session:
        for _ in range(120):
            audit.record(session, AuditEntry(AuditKind.AUDIT_LOG_READ, agent="officer", client_id="pages"))
        session.commit()
    with database.reading() as session:
        report = verify(session, keyring.audit_public_key, anchor, keyring=keyring)
        assert (report.intact, report.size) == (True, EVENTS + 120)
    with database.sessions() as session:
        session.execute(text("DROP TRIGGER audit_event_no_update"))
        session.execute(text("UPDATE audit_event SET outcome = 8 WHERE seq = 5"))
        session.commit()
    with database.reading() as session:
        report = verify(session, keyring.audit_public_key, anchor, keyring=keyring)
    database.close()
    assert report.as_json()["sequence_numbers"]["changed"] == [[5, 5]]
