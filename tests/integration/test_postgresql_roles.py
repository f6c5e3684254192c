"""What the owner, the service and the audit reader may do on PostgreSQL, and what `check` says where it is otherwise."""

import importlib

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlmodel import SQLModel
from typer.testing import CliRunner

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.keys import Keyring
from rayhook.deploy import cli
from rayhook.deploy.database import (
    SCHEMA_REVISION,
    administering,
    create_database,
    ensure_schema,
    migrate,
    parse_url,
)
from rayhook.deploy.database_check import check
from rayhook.deploy.database_roles import (
    audit_privileges,
    audit_role,
    grant,
    service_privileges,
    service_role,
)
from rayhook.deploy.postgresql import ConnectionSettings
from rayhook.deploy.schema import Fit, fit
from rayhook.fhir.errors import Conflict, Forbidden, InvalidRequest, ServiceUnavailable
from tests.integration.test_compatibility import PREVIOUS, upgrade
from tests.storage import drop_tables
from tests.unit.deploy.test_database import TABLE_MODULES

pytestmark = pytest.mark.postgresql

ROLES = (service_role(), audit_role())
ORDINARY = {"audit_delivery", "audit_review_item", "audit_watch"}
READ = AuditEntry(AuditKind.FHIR_RESOURCE_READ, ehr_id="north", agent="rayhook", patient_id="1")


@pytest.fixture
def place(wheel_of_postgresql):
    with wheel_of_postgresql.copied() as made:
        yield made


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keys") / "keyring.json")


@pytest.fixture
def audit(keyring, tmp_path):
    return AuditLog(keyring, anchor=tmp_path / "anchor.jsonl")


def of_audit(place):
    return place.url.replace("rayhook_service", "rayhook_audit")


def execute(url, *statements):
    with administering(parse_url(url), ConnectionSettings()) as connection:
        return [connection.exec_driver_sql(statement) for statement in statements]


def as_superuser(place, *statements):
    execute(place.owner_url.replace("rayhook_owner", "postgres"), *statements)


def found(place, url=None):
    findings = check(parse_url(url or place.url), ConnectionSettings(), ROLES)
    return {one.subject: one.text for one in findings if not one.ok}


def test_prepared_database_has_nothing_wrong(place):
    assert found(place) == {}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_event SET outcome = 4",
        "DELETE FROM audit_event",
        "TRUNCATE audit_event",
        "DROP TRIGGER audit_event_append_only ON audit_event",
        "ALTER TABLE audit_event DISABLE TRIGGER ALL",
        "DROP TABLE audit_event",
        "UPDATE audit_checkpoint SET size = 0",
        "DELETE FROM audit_entity",
        "UPDATE audit_hold SET released_at = 'now'",
        "INSERT INTO audit_tombstone VALUES (1, '', 1)",
        "INSERT INTO audit_key VALUES (1, 1, '', '', '', '', '')",
        "UPDATE alembic_version SET version_num = '0001'",
        "CREATE TABLE other (id int)",
        "CREATE TEMPORARY TABLE other (id int)",
        "CREATE OR REPLACE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
        "SET session_replication_role = replica",
        "SET ROLE rayhook_owner",
        "CREATE ROLE other",
        "ALTER TABLE analysis_job ADD COLUMN other int",
    ],
)
def test_service_cannot(place, audit, statement):
    database = create_database(place.url)
    with database.sessions() as session:
        audit.record(session, READ)
        audit.checkpoint(session)
        session.commit()
    as_superuser(place, "REVOKE TEMPORARY ON DATABASE " + parse_url(place.url).database + " FROM PUBLIC")
    with (
        database.sessions() as session,
        pytest.raises(ProgrammingError, match=r"permission denied|must be owner"),
    ):
        session.execute(text(statement))
    database.close()


@pytest.mark.parametrize(
    ("statement", "may"),
    [
        ("SELECT count(*) FROM audit_event", True),
        ("SELECT count(*) FROM audit_checkpoint", True),
        ("SELECT count(*) FROM alembic_version", True),
        ("SELECT count(*) FROM analysis_result", False),
        ("SELECT count(*) FROM analysis_job", False),
        ("SELECT count(*) FROM smart_session", False),
        ("SELECT count(*) FROM staff_account", False),
        ("INSERT INTO audit_entity VALUES ('', 1)", False),
        ("DELETE FROM audit_event", False),
        ("SELECT nextval('audit_checkpoint_id_seq')", False),
    ],
)
def test_audit_reader_reads_the_audit_alone(place, statement, may):
    if may:
        execute(of_audit(place), statement)
        return
    with pytest.raises(ProgrammingError, match="permission denied"):
        execute(of_audit(place), statement)


def test_audit_reader_verifies_with_the_pinned_key(place, audit, keyring, tmp_path):
    database = create_database(place.url)
    with database.sessions() as session:
        for _ in range(3):
            audit.record(session, READ)
        audit.checkpoint(session)
        session.commit()
    database.close()
    key = tmp_path / "audit.pem"
    key.write_bytes(_pem(keyring))
    arguments = ["audit", "verify", "--data-dir", str(tmp_path / "elsewhere"), "--public-key", str(key)]
    arguments += ["--anchor", str(tmp_path / "anchor.jsonl")]
    verified = CliRunner().invoke(cli.app, arguments, env={"DATABASE_URL": of_audit(place)})
    assert verified.exit_code == 0, verified.output
    as_superuser(place, "ALTER TABLE audit_event DISABLE TRIGGER ALL", "UPDATE audit_event SET outcome = 4")
    assert CliRunner().invoke(cli.app, arguments, env={"DATABASE_URL": of_audit(place)}).exit_code == 1


def _pem(keyring):
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return keyring.audit_public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("statement", "subject", "told"),
    [
        ("GRANT UPDATE ON audit_event TO rayhook_service", "rayhook_service", "has UPDATE on audit_event"),
        (
            "GRANT UPDATE (outcome) ON audit_event TO rayhook_service",
            "rayhook_service",
            "has UPDATE on audit_event",
        ),
        ("GRANT TRUNCATE ON used_jti TO rayhook_service", "rayhook_service", "has TRUNCATE on used_jti"),
        ("REVOKE INSERT ON used_jti FROM rayhook_service", "rayhook_service", "lacks INSERT on used_jti"),
        (
            "REVOKE USAGE ON SEQUENCE audit_checkpoint_id_seq FROM rayhook_service",
            "rayhook_service",
            "lacks USAGE on audit_checkpoint_id_seq",
        ),
        (
            "GRANT SELECT ON analysis_result TO rayhook_audit",
            "rayhook_audit",
            "has SELECT on analysis_result",
        ),
        (
            "GRANT SELECT ON analysis_result TO PUBLIC",
            "everybody",
            "everybody has privileges on analysis_result",
        ),
        ("GRANT CREATE ON SCHEMA public TO PUBLIC", "everybody", "everybody may make tables and functions"),
        ("GRANT CREATE ON SCHEMA public TO rayhook_audit", "rayhook_audit", "may make tables and functions"),
        ("ALTER TABLE used_jti OWNER TO rayhook_service", "rayhook_service", "owns tables"),
    ],
)
def test_what_was_changed_by_hand_is_told_and_prepared_again(place, statement, subject, told):
    as_superuser(place, statement)
    assert told in found(place)[subject]
    as_superuser(
        place,
        "ALTER TABLE used_jti OWNER TO rayhook_owner",
        "REVOKE ALL ON analysis_result FROM PUBLIC",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    )
    with administering(parse_url(place.owner_url), ConnectionSettings()) as connection:
        grant(connection, ROLES)
    assert found(place) == {}


@pytest.mark.parametrize(
    ("statement", "undo", "told"),
    [
        (
            "CREATE ROLE boss; ALTER TABLE used_jti OWNER TO boss; GRANT boss TO rayhook_service",
            "ALTER TABLE used_jti OWNER TO rayhook_owner; DROP ROLE boss",
            "may act as boss, who owns tables",
        ),
        ("ALTER ROLE rayhook_service SUPERUSER", "ALTER ROLE rayhook_service NOSUPERUSER", "is a superuser"),
        (
            "ALTER ROLE rayhook_service CREATEROLE",
            "ALTER ROLE rayhook_service NOCREATEROLE",
            "may make roles",
        ),
        (
            "GRANT pg_write_all_data TO rayhook_service",
            "REVOKE pg_write_all_data FROM rayhook_service",
            "has DELETE, UPDATE on audit_event",
        ),
    ],
)
def test_power_of_a_role_is_told(place, statement, undo, told):
    as_superuser(place, *statement.split(";"))
    try:
        assert told in found(place)["rayhook_service"]
    finally:
        as_superuser(place, *undo.split(";"))


def test_granting_again_changes_nothing(place):
    acls = "SELECT relname, relacl::text FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY relname"
    with administering(parse_url(place.owner_url), ConnectionSettings()) as connection:
        before = connection.exec_driver_sql(acls).all()
        grant(connection, ROLES)
        assert connection.exec_driver_sql(acls).all() == before


def test_service_goes_on_while_privileges_are_granted_again(place):
    database = create_database(place.url)
    with database.sessions() as session:
        session.execute(text("INSERT INTO used_jti VALUES ('issuer', 'jti', 0)"))
        with administering(parse_url(place.owner_url), ConnectionSettings(lock_timeout_s=1)) as connection:
            grant(connection, ROLES)
            session.execute(text("INSERT INTO used_jti VALUES ('issuer', 'other', 0)"))
        session.commit()
    database.close()


@pytest.mark.parametrize("name", ["", "Rayhook", "a b", 'a"', "pg_service", "1a", "a" * 64])
def test_name_that_no_role_should_have_is_refused(name):
    with pytest.raises(InvalidRequest):
        service_role(name)


def test_every_table_of_the_audit_is_decided_on():
    """A new one is for the service to change only where somebody says so here."""
    for module in TABLE_MODULES:
        importlib.import_module(module)
    importlib.import_module("rayhook.audit.models")
    tables = {name for name in SQLModel.metadata.tables if name.startswith("audit_")}
    assert {name for name in tables if "UPDATE" in service_privileges(name)} == ORDINARY
    assert {name for name in tables if not audit_privileges(name)} == ORDINARY


def older(place):
    drop_tables(place)
    database = create_database(place.owner_url)
    upgrade(database, PREVIOUS)
    database.close()
    with administering(parse_url(place.owner_url), ConnectionSettings()) as connection:
        grant(connection, ROLES)


def test_service_does_not_start_on_an_older_schema(place):
    older(place)
    with pytest.raises(ServiceUnavailable) as refusal:
        ensure_schema(place.url)
    assert (refusal.value.code, PREVIOUS in refusal.value.message) == ("schema_outdated", True)
    assert found(place)["schema"].startswith(PREVIOUS)


def test_service_does_not_start_on_an_empty_database(place):
    drop_tables(place)
    as_superuser(place, "GRANT USAGE ON SCHEMA public TO rayhook_service")
    with pytest.raises(ServiceUnavailable) as refusal:
        ensure_schema(place.url)
    assert refusal.value.code == "schema_outdated"


def test_only_the_owner_migrates(place):
    older(place)
    with pytest.raises(Forbidden):
        migrate(place.url)


def test_migrating_grants_what_is_new(place):
    older(place)
    migrated = CliRunner().invoke(
        cli.app, ["database", "migrate"], env={"RAYHOOK_DATABASE_OWNER_URL": place.owner_url}
    )
    assert migrated.exit_code == 0, migrated.output
    ensure_schema(place.url)
    assert found(place) == {}


def test_owner_that_serves_migrates_itself(place):
    """As it was before there were roles: one role for everything goes on working."""
    older(place)
    ensure_schema(place.owner_url)
    with administering(parse_url(place.url), ConnectionSettings()) as connection:
        assert fit(connection) is Fit.SAME


def test_service_works_with_the_schema_of_the_next_release(place):
    as_superuser(
        place,
        "UPDATE alembic_version SET version_num = '9000'",
        f"COMMENT ON TABLE alembic_version IS 'Rayhook: works with releases of schema {SCHEMA_REVISION} and newer'",
    )
    ensure_schema(place.url)
    assert found(place) == {}


@pytest.mark.parametrize(
    "comment", ["'Rayhook: works with releases of schema 8999 and newer'", "NULL", "'else'"]
)
def test_service_does_not_start_on_a_schema_that_is_too_new(place, comment):
    as_superuser(
        place,
        "UPDATE alembic_version SET version_num = '9000'",
        f"COMMENT ON TABLE alembic_version IS {comment}",
    )
    with pytest.raises(Conflict) as refusal:
        ensure_schema(place.url)
    assert refusal.value.code == "schema_too_new"
