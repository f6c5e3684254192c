"""Processes of the release before this one on this release's schema, and its rows in this release's hands."""

import json
import shutil
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Boolean, MetaData, delete, insert, select, update

from rayhook.audit.chain import verify
from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.review import AuditSearch, search
from rayhook.auth.accounts import StaffAccountRow
from rayhook.auth.keys import Keyring
from rayhook.auth.sessions import find_session
from rayhook.deploy.database import create_database, migrate
from rayhook.deploy.schema import COMPATIBLE_SINCE
from rayhook.inference.jobs import Authorization, JobState, claim, enqueue, load_job, load_result
from rayhook.inference.outbox import Errand, OutboxRow
from tests import storage

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data" / "schema_0010"
KNOWN = json.loads((DATA / "known.json").read_text())
ROWS = [json.loads(line) for line in (DATA / "rows.ndjson").read_text().splitlines()]
EVENTS = sum(one["table"] == "audit_event" for one in ROWS)
PREVIOUS = "0010"
UNCHANGEABLE = {"audit_checkpoint", "audit_entity", "audit_event", "audit_hold"}


def upgrade(database, revision):
    config = Config()
    config.set_main_option("script_location", str(ROOT / "deploy" / "migrations"))
    config.set_main_option("path_separator", "os")
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def value_of(column, value):
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"])
    return bool(value) if isinstance(column.type, Boolean) and value is not None else value


@pytest.fixture(scope="module")
def previous(tmp_path_factory):
    """The tables as the previous release knows them: each column, and no other."""
    database = create_database(f"sqlite:///{tmp_path_factory.mktemp('previous') / 'rayhook.sqlite3'}")
    upgrade(database, PREVIOUS)
    metadata = MetaData()
    metadata.reflect(database.engine)
    database.close()
    return metadata


def in_order(previous):
    """Return the rows table by table, what is pointed at first."""
    names = [table.name for table in previous.sorted_tables]
    return sorted(ROWS, key=lambda one: names.index(one["table"]))


def written(previous, database):
    """Write the rows as the previous release writes them; the database numbers checkpoints itself."""
    with database.engine.begin() as connection:
        for one in in_order(previous):
            table = previous.tables[one["table"]]
            values = {name: value_of(table.columns[name], value) for name, value in one["row"].items()}
            if one["table"] == "audit_checkpoint":
                del values["id"]
            connection.execute(insert(table).values(values))


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    path = Path(shutil.copy(DATA / "keyring.json", tmp_path_factory.mktemp("keys")))
    path.chmod(0o600)
    return Keyring.load_or_create(path)


@pytest.fixture
def anchor(tmp_path):
    return Path(shutil.copy(DATA / "anchor.jsonl", tmp_path))


@pytest.fixture(params=["upgraded afterwards", "upgraded before"])
def database(request, both, previous):
    """Filled by the previous release: then upgraded, or upgraded while it was running and writing."""
    if request.param == "upgraded before":
        database = create_database(both.url)
        written(previous, database)
        yield database
        database.close()
        return
    storage.drop_tables(both)
    database = create_database(both.owner_url)
    upgrade(database, PREVIOUS)
    written(previous, database)
    migrate(both.owner_url)
    yield database
    database.close()


def test_its_log_is_intact_and_goes_on(database, keyring, anchor):
    audit = AuditLog(keyring, anchor=anchor)
    with database.sessions() as session:
        for _ in range(120):
            audit.record(session, AuditEntry(AuditKind.AUDIT_LOG_READ, agent="officer"))
        session.commit()
    with database.reading() as session:
        report = verify(session, keyring.audit_public_key, anchor, keyring=keyring)
    assert (report.intact, report.size) == (True, EVENTS + 120)


def test_its_events_are_found_and_read(database, keyring):
    with database.reading() as session:
        wanted = AuditSearch(ehr_id="north", patient_id="canary-patient")
        [found] = search(session, keyring, wanted, limit=9).records
    assert (found.agent, found.entities) == ("Practitioner/ada", ("ImagingStudy/2",))


def test_its_result_is_read(database, keyring):
    with database.reading() as session:
        stored = load_result(session, keyring, KNOWN["result"])
        errand = session.get(OutboxRow, (KNOWN["result"], Errand.REPORT.value))
    assert (stored.reference.patient_id, errand.attempts) == ("canary-patient", 1)


def test_its_queued_job_is_taken_up(database, keyring):
    with database.sessions() as session:
        claimed = claim(session, keyring, KNOWN["queued"], lease_s=60, clock=lambda: KNOWN["now"])
        session.commit()
    assert claimed.reference.study_instance_uid == "1.2.826.888"
    assert claimed.authorization.access_token == "canary-token"


def test_its_abandoned_job_is_taken_up(database, keyring):
    with database.sessions() as session:
        claimed = claim(session, keyring, KNOWN["running"], lease_s=60, clock=lambda: KNOWN["now"] + 3600)
        session.commit()
    assert (claimed.fence, claimed.attempts) == (2, 2)


def test_its_failed_job_is_queued_again_when_it_is_asked_for(database, keyring):
    token = Authorization("token", "patient/*.rs", KNOWN["now"] + 7200)
    with database.sessions() as session:
        reference = claim(session, keyring, KNOWN["queued"], lease_s=60, clock=lambda: KNOWN["now"]).reference
        job, is_new = enqueue(session, keyring, reference, token, key="failed", request_id="again")
        session.commit()
    assert (job.id, is_new) == (KNOWN["failed"], True)
    with database.reading() as session:
        assert load_job(session, KNOWN["failed"]).state is JobState.QUEUED


def test_its_session_and_its_account_are_there(database, keyring):
    with database.sessions() as session:
        found = find_session(session, keyring, KNOWN["session"], clock=lambda: KNOWN["now"])
        session.commit()
        account = session.get(StaffAccountRow, KNOWN["account"])
    assert (found.patient_id, found.access_token) == ("canary-patient", "secret-token")
    assert account.roles == "administrator"


def test_it_reads_changes_and_deletes_what_it_wrote(both, previous):
    """Every column it knows, in every table that it fills: none has gone, none has become narrower or needed."""
    database = create_database(both.url)
    written(previous, database)
    with database.engine.begin() as connection:
        for one in reversed(in_order(previous)):
            table = previous.tables[one["table"]]
            row = connection.execute(select(table)).mappings().first()
            where = [column == row[column.name] for column in table.primary_key]
            if table.name in UNCHANGEABLE:
                continue
            connection.execute(update(table).where(*where).values(dict(row)))
            connection.execute(delete(table).where(*where))
        left = {
            table.name
            for table in previous.sorted_tables
            if table.name not in UNCHANGEABLE | {"alembic_version"}
            and connection.execute(select(table)).first() is not None
        }
    database.close()
    assert left == set()


def test_it_needs_nothing_that_is_new(both, previous):
    """What a migration added has to be left out by who does not know it."""
    database = create_database(both.owner_url)
    now = MetaData()
    now.reflect(database.engine)
    database.close()
    asked = {
        f"{table.name}.{column.name}"
        for table in now.sorted_tables
        if table.name in previous.tables
        for column in table.columns
        if column.name not in previous.tables[table.name].columns
        and not column.nullable
        and column.server_default is None
    }
    gone = {
        f"{table.name}.{column.name}"
        for table in previous.sorted_tables
        for column in table.columns
        if table.name not in now.tables or column.name not in now.tables[table.name].columns
    }
    assert (asked, gone) == (set(), set())


def test_it_is_the_release_that_the_schema_says(both):
    assert COMPATIBLE_SINCE == PREVIOUS
