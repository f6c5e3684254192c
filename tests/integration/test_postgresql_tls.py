"""PostgreSQL over TCP: TLS, passwords, limits, and a server that goes away and comes back."""

import os
import socket
import threading
import time

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from typer.testing import CliRunner

from rayhook.deploy.cli import app
from rayhook.deploy.database import create_database, ensure_schema, migrate, parse_url
from rayhook.deploy.postgresql import ConnectionSettings, transport_problem
from rayhook.fhir.errors import InvalidRequest, RayhookError, ServiceUnavailable
from tests.conftest import absent
from tests.peers.postgresql import binaries, running

pytestmark = pytest.mark.postgresql


@pytest.fixture(scope="module")
def server():
    programs = binaries()
    if programs is None:
        absent("PostgreSQL with TLS")
    with running(programs) as server:
        yield server


@pytest.fixture(scope="module")
def migrated(server):
    server.execute("CREATE DATABASE migrated")
    migrate(server.url("migrated"))
    return server.url("migrated")


def opened(url, **settings):
    return create_database(url, ConnectionSettings(**settings))


def value(database, query):
    with database.reading() as session:
        return session.execute(text(query)).scalar()


@pytest.fixture
def database(migrated):
    database = opened(migrated)
    yield database
    database.close()


def test_connection_is_encrypted(database):
    query = "SELECT ssl AND version IN ('TLSv1.2', 'TLSv1.3') FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    assert value(database, query)


def test_server_without_the_right_authority_is_not_spoken_to(server, migrated):
    strange = migrated.replace(str(server.authority), str(server.strangers))
    with pytest.raises(ServiceUnavailable) as refusal:
        ensure_schema(strange)
    assert refusal.value.code == "database_untrusted"


def test_certificate_of_another_name_is_not_taken(migrated):
    with pytest.raises(ServiceUnavailable) as refusal:
        ensure_schema(migrated.replace("localhost", "127.0.0.1"))
    assert refusal.value.code == "database_untrusted"


def test_wrong_password_is_told_as_such(server):
    with pytest.raises(ServiceUnavailable) as refusal:
        ensure_schema(server.url("migrated", password="of-nobody"))
    assert refusal.value.code == "database_refused"
    assert "of-nobody" not in str(refusal.value)


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("statement_timeout", "7s"),
        ("lock_timeout", "3s"),
        ("idle_in_transaction_session_timeout", "9s"),
        ("application_name", "rayhook"),
    ],
)
def test_server_knows_the_limits(migrated, setting, shown):
    database = opened(migrated, statement_timeout_s=7, lock_timeout_s=3, idle_in_transaction_timeout_s=9)
    assert value(database, f"SHOW {setting}") == shown
    database.close()


@pytest.mark.parametrize(
    ("level", "option", "set_to"),
    [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000),
    ],
)
def test_server_that_vanished_without_a_word_is_given_up(database, level, option, set_to):
    with database.engine.connect() as connection:
        number = connection.connection.driver_connection.fileno()
        with socket.socket(fileno=os.dup(number)) as seen:
            assert seen.getsockopt(level, option) == set_to


def test_what_the_url_says_comes_before_the_usual(migrated):
    database = opened(f"{migrated}&application_name=other&options=-c%20work_mem%3D8MB")
    told = [value(database, f"SHOW {name}") for name in ("application_name", "work_mem", "lock_timeout")]
    database.close()
    assert told == ["other", "8MB", "10s"]


def test_statement_that_takes_too_long_is_ended(migrated):
    database = opened(migrated, statement_timeout_s=0.2)
    with pytest.raises(ServiceUnavailable) as refusal:
        value(database, "SELECT pg_sleep(10)")
    database.close()
    assert refusal.value.code == "database_timeout"


def test_lock_that_is_not_given_is_not_waited_for(migrated):
    database = opened(migrated, lock_timeout_s=0.2)
    with database.sessions() as holder, database.sessions() as other:
        holder.execute(text("LOCK TABLE used_jti"))
        with pytest.raises(ServiceUnavailable) as refusal:
            other.execute(text("LOCK TABLE used_jti"))
    database.close()
    assert refusal.value.code == "database_timeout"


def test_transaction_that_does_nothing_is_ended_and_the_next_one_goes_on(migrated):
    database = opened(migrated, idle_in_transaction_timeout_s=0.2)
    with database.sessions() as session:
        session.execute(text("SELECT 1"))
        time.sleep(0.6)
        with pytest.raises(ServiceUnavailable):
            session.execute(text("SELECT 1"))
    assert value(database, "SELECT 1") == 1
    database.close()


def test_full_pool_is_told_soon(migrated):
    database = opened(migrated, pool_size=1, pool_overflow=1, pool_timeout_s=0.2)
    began = time.monotonic()
    with database.sessions() as one, database.reading() as other:
        one.execute(text("SELECT 1"))
        other.execute(text("SELECT 1"))
        with pytest.raises(ServiceUnavailable) as refusal:
            value(database, "SELECT 1")
    assert (refusal.value.code, time.monotonic() - began < 2) == ("database_busy", True)
    assert value(database, "SELECT 1") == 1
    database.close()


def test_full_server_is_told_as_busy(server, migrated):
    server.execute("CREATE ROLE few LOGIN PASSWORD 'few' CONNECTION LIMIT 1")
    first, second = (opened(server.url("migrated", role="few", password="few")) for _ in range(2))
    with first.sessions() as session:
        session.execute(text("SELECT 1"))
        with pytest.raises(ServiceUnavailable) as refusal:
            value(second, "SELECT 1")
    first.close()
    second.close()
    assert refusal.value.code == "database_busy"


def test_changed_password_needs_no_restart(server, migrated, tmp_path):
    server.execute("CREATE ROLE changing LOGIN PASSWORD 'first'")
    path = tmp_path / "password"
    path.write_text("first\n")
    path.chmod(0o600)
    url = server.url("migrated", role="changing", password=None)
    database = opened(url, password_file=path)
    assert value(database, "SELECT current_user") == "changing"
    server.execute("ALTER ROLE changing PASSWORD 'second'")
    path.write_text("second\n")
    database.engine.dispose()
    assert value(database, "SELECT current_user") == "changing"
    database.close()


@pytest.mark.parametrize(("content", "mode"), [("secret", 0o644), ("", 0o600), (None, 0o600)])
def test_password_file_that_is_open_empty_or_absent_is_refused(migrated, tmp_path, content, mode):
    path = tmp_path / "password"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(InvalidRequest):
        ensure_schema(migrated, ConnectionSettings(password_file=path))


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_every_thread_goes_on_after_a_restart(server, database, mode):
    """None ends, each is told of nothing but an unavailable database, and all work again within ten seconds."""
    stopping, failures = threading.Event(), []
    worked = dict.fromkeys(range(8), 0.0)

    def work(number: int) -> None:
        sessions = (database.sessions, database.reading, database.unsynced)[number % 3]
        while not stopping.is_set():
            try:
                with sessions() as session:
                    session.execute(text("SELECT 1"))
                    time.sleep(0.005)
                    session.execute(text("SELECT 1"))
                    session.commit()
                worked[number] = time.monotonic()
            except ServiceUnavailable:
                time.sleep(0.02)
            except Exception as error:
                failures.append(error)
                raise

    threads = [threading.Thread(target=work, args=(number,)) for number in worked]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    server.stop(mode)
    time.sleep(0.2)
    server.start()
    started = time.monotonic()
    while not all(when > started for when in worked.values()) and time.monotonic() < started + 10:
        time.sleep(0.02)
    stopping.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(when > started for when in worked.values())


def test_first_statements_after_an_idle_restart_do_not_fail(server, database):
    """Nobody noticed the restart: the pool's connections are dead, and are replaced before they are used."""
    sessions = [database.sessions() for _ in range(10)]
    for session in sessions:
        session.execute(text("SELECT 1"))
    for session in sessions:
        session.close()
    server.stop()
    server.start()
    for session in sessions:
        assert session.execute(text("SELECT 1")).scalar() == 1
        session.close()


def rayhook(*arguments, **environment):
    return CliRunner().invoke(app, ["database", *arguments], env={"COLUMNS": "300", **environment})


@pytest.fixture(scope="module")
def prepared(server, tmp_path_factory):
    """An installation as the documentation says: an owner, its roles with passwords, over TLS."""
    folder = tmp_path_factory.mktemp("prepared")
    server.execute("CREATE ROLE rayhook_owner LOGIN CREATEROLE PASSWORD 'owner'")
    server.execute("CREATE DATABASE hospital OWNER rayhook_owner")
    environment = {
        "RAYHOOK_DATABASE_OWNER_URL": server.url("hospital", role="rayhook_owner", password="owner")
    }
    files = [f"--{name}-password-file={folder / name}" for name in ("service", "audit")]
    for arguments in (["prepare", *files], ["migrate"], ["prepare", *files]):
        answer = rayhook(*arguments, **environment)
        assert answer.exit_code == 0, answer.output
    return folder


@pytest.mark.parametrize("name", ["service", "audit"])
def test_prepared_role_connects_with_its_password(server, prepared, name):
    url = server.url("hospital", role=f"rayhook_{name}", password=None)
    database = opened(url, password_file=prepared / name)
    assert value(database, "SELECT current_user") == f"rayhook_{name}"
    database.close()
    assert (prepared / name).stat().st_mode & 0o777 == 0o600


def test_server_keeps_no_password(server, prepared):
    database = opened(server.url("hospital"))
    kept = value(database, "SELECT rolpassword FROM pg_authid WHERE rolname = 'rayhook_service'")
    database.close()
    assert kept.startswith("SCRAM-SHA-256$")
    assert (prepared / "service").read_text().strip() not in (server.folder / "log").read_text()


def test_prepared_installation_is_as_it_should_be(server, prepared):
    url = server.url("hospital", role="rayhook_service", password=None)
    answer = rayhook("check", DATABASE_URL=url, RAYHOOK_DATABASE_PASSWORD_FILE=str(prepared / "service"))
    assert answer.exit_code == 0, answer.output
    assert "TLSv1" in answer.output


def test_installation_that_wants_more_connections_than_there_are_is_told(server, prepared):
    url = server.url("hospital", role="rayhook_service", password=None)
    environment = {"DATABASE_URL": url, "RAYHOOK_DATABASE_PASSWORD_FILE": str(prepared / "service")}
    answer = rayhook("check", "--processes", "2", **environment)
    assert (answer.exit_code, "2 of 30 connections each want 60" in answer.output) == (1, True)


def test_role_without_the_right_to_it_makes_no_roles(server, prepared):
    url = server.url("hospital", role="rayhook_service", password=None)
    environment = {"DATABASE_URL": url, "RAYHOOK_DATABASE_PASSWORD_FILE": str(prepared / "service")}
    answer = rayhook("prepare", **environment)
    assert isinstance(answer.exception, RayhookError)
    assert answer.exception.code == "not_the_owner"


def test_urls_of_this_file_are_secure(server):
    assert transport_problem(parse_url(server.url("hospital"))) is None
    assert transport_problem(make_url(server.url("hospital")).difference_update_query(["sslrootcert"]))
