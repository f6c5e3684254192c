"""The production profile as a hospital would run it: TLS on the listener, to PostgreSQL and to Redis, all real."""

import os
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import httpx
import pytest
from typer.testing import CliRunner

from rayhook.deploy.cli import app
from tests.conftest import ROOT, absent
from tests.doubles.certificates import Certificates
from tests.peers import postgresql, redis_server
from tests.ports import free_port

pytestmark = [pytest.mark.postgresql, pytest.mark.timeout(300)]

START_S = 120.0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def database():
    programs = postgresql.binaries()
    if programs is None:
        absent("PostgreSQL with TLS")
    with postgresql.running(programs) as server:
        server.execute("CREATE DATABASE rayhook")
        yield server


@pytest.fixture(scope="module")
def redis(certificates, tmp_path_factory):
    if redis_server.program() is None:
        absent("redis-server")
    folder = tmp_path_factory.mktemp("redis")
    with redis_server.running(folder, port=free_port(), pair=certificates.good()) as server:
        yield server


@pytest.fixture(scope="module")
def environment(certificates, database, redis, tmp_path_factory):
    folder = tmp_path_factory.mktemp("production")
    (folder / "ehrs.toml").touch()
    (folder / "password").touch(0o600)
    (folder / "password").write_text(postgresql.PASSWORD)
    port, pair = free_port(), certificates.good()
    settings = {
        "DATABASE_URL": database.url("rayhook", password=None),
        "RAYHOOK_CA_BUNDLE": str(certificates.ca),
        "RAYHOOK_DATABASE_PASSWORD_FILE": str(folder / "password"),
        "RAYHOOK_DATA_DIR": str(folder / "data"),
        "RAYHOOK_DRAIN_S": "0.5",
        "RAYHOOK_EHR_REGISTRY": str(folder / "ehrs.toml"),
        "RAYHOOK_ENVIRONMENT": "production",
        "RAYHOOK_HOST": "127.0.0.1",
        "RAYHOOK_MODELS": "mri-flair-tumour",
        "RAYHOOK_ORGANIZATION": "Hospital of the test",
        "RAYHOOK_PORT": str(port),
        "RAYHOOK_PUBLIC_BASE_URL": f"https://localhost:{port}",
        "RAYHOOK_REDIS_URL": redis.url,
        "RAYHOOK_TLS_CERTIFICATE": str(pair.certificate),
        "RAYHOOK_TLS_KEY": str(pair.key),
        "RAYHOOK_WORKER_HEALTH_PORT": str(free_port()),
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAYHOOK_")}
    return kept | settings


@contextmanager
def process(command, environment, port, certificates):
    """Run a command until it is ready, and yield a client that checks its certificate."""
    context = ssl.create_default_context(cafile=certificates.ca)
    child = subprocess.Popen(
        [sys.executable, "-m", "rayhook.deploy.cli", command],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"https://localhost:{port}", verify=context, timeout=10) as client:
            await_status(client, 200, START_S, child)
            yield client
    finally:
        child.terminate()
        child.wait(timeout=60)


def await_status(client, status, timeout_s, child=None):
    deadline, found = time.monotonic() + timeout_s, None
    while found is None or found.status_code != status:
        assert time.monotonic() < deadline, found and found.text
        assert child is None or child.poll() is None, "the process ended"
        with suppress(httpx.TransportError):
            found = client.get("/health/ready")
        time.sleep(0.1)
    return found.json()


@pytest.fixture(scope="module")
def service(environment, certificates):
    with process("serve", environment, environment["RAYHOOK_PORT"], certificates) as client:
        yield client


def test_every_part_is_well(service):
    told = service.get("/health/ready").json()
    assert told["status"] == "ok", told
    assert {"audit", "database", "engine", "keyring", "redis", "schema"} <= told["checks"].keys()


def test_browsers_are_told_to_come_by_https_only(service):
    assert service.get("/cds-services").headers["strict-transport-security"].startswith("max-age=63072000")


def test_plain_http_gets_no_answer(service, environment):
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://localhost:{environment['RAYHOOK_PORT']}/health/live", timeout=5)


def test_every_connection_to_postgresql_is_encrypted(service, database):
    import psycopg

    query = (
        "SELECT count(*), bool_and(ssl.ssl AND ssl.version IN ('TLSv1.2', 'TLSv1.3')) FROM pg_stat_activity "
        "JOIN pg_stat_ssl ssl USING (pid) WHERE datname = 'rayhook'"
    )
    with psycopg.connect(database.url("postgres")) as connection:
        count, encrypted = connection.execute(query).fetchone()
    assert (count > 0, encrypted) == (True, True)


def test_every_connection_to_redis_is_by_tls(service, redis):
    with redis.client() as client:
        own = [one for one in client.client_list() if one["name"] == "rayhook"]
    assert own
    assert all(one["laddr"] == f"127.0.0.1:{redis.port}" for one in own)


def test_the_certificates_end_is_told(service):
    assert "rayhook_tls_certificate_left_seconds" in service.get("/metrics").text


def test_a_worker_beside_it_is_ready_by_https(service, environment, certificates):
    with process("worker", environment, environment["RAYHOOK_WORKER_HEALTH_PORT"], certificates) as worker:
        assert worker.get("/health/live").json() == {"status": "ok"}
        assert "rayhook_health" in worker.get("/metrics").text


def test_without_redis_it_is_degraded_and_ready(service, redis):
    redis.stop()
    deadline = time.monotonic() + 10
    while (told := service.get("/health/ready")).json()["status"] != "degraded":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (told.status_code, told.json()["checks"]["redis"]) == (200, "degraded")
    redis.start()
    assert await_status(service, 200, 10)


def test_without_postgresql_it_is_alive_and_not_ready_and_comes_back(service, database):
    database.stop("immediate")
    try:
        told = await_status(service, 503, 10)
        assert (told["checks"]["database"], told["checks"]["audit"]) == ("unavailable", "unavailable")
        assert service.get("/health/live").status_code == 200
        assert service.get("/health/startup").status_code == 200
    finally:
        database.start()
    assert await_status(service, 200, 15)["checks"]["database"] == "ok"


WEAKENED = {
    "RAYHOOK_PUBLIC_BASE_URL": {"RAYHOOK_PUBLIC_BASE_URL": "http://rayhook.example.org"},
    "RAYHOOK_HOST": {"RAYHOOK_HOST": "0.0.0.0", "RAYHOOK_TLS_CERTIFICATE": None, "RAYHOOK_TLS_KEY": None},
    "RAYHOOK_LOG_LEVEL": {"RAYHOOK_LOG_LEVEL": "DEBUG"},
    "SSLKEYLOGFILE": {"SSLKEYLOGFILE": "/dev/null"},
    "AWS_ENDPOINT_URL": {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
}


@pytest.mark.parametrize("named", WEAKENED)
def test_each_weakening_is_named(environment, named):
    answer = CliRunner().invoke(app, ["check"], env=_changed(environment, WEAKENED[named]))
    assert (answer.exit_code, answer.output.split()[:2]) == (1, ["refused", f"{named}:"])


@pytest.mark.parametrize("weaker", ["sslmode=require", "sslmode=verify-ca", "sslmode=prefer"])
def test_a_weaker_way_to_postgresql_is_named(environment, weaker):
    url = environment["DATABASE_URL"].replace("sslmode=verify-full", weaker)
    answer = CliRunner().invoke(app, ["check"], env=_changed(environment, {"DATABASE_URL": url}))
    assert (answer.exit_code, "DATABASE_URL: sslmode=verify-full" in answer.output) == (1, True)


@pytest.mark.parametrize("weaker", ["redis://:s3cret@localhost:1/0", "rediss://localhost:1/0"])
def test_a_weaker_way_to_redis_is_named(environment, weaker):
    answer = CliRunner().invoke(app, ["check"], env=_changed(environment, {"RAYHOOK_REDIS_URL": weaker}))
    assert (answer.exit_code, "RAYHOOK_REDIS_URL:" in answer.output) == (1, True)


def test_these_settings_are_right(environment):
    answer = CliRunner().invoke(app, ["check"], env=_changed(environment, {}))
    assert (answer.exit_code, answer.output) == (0, "production starts with these settings\n")


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_neither_process_starts_with_any_of_it(environment, command):
    weak = _changed(environment, WEAKENED["RAYHOOK_HOST"] | WEAKENED["RAYHOOK_LOG_LEVEL"])
    done = subprocess.run(
        [sys.executable, "-m", "rayhook.deploy.cli", command],
        env={name: value for name, value in weak.items() if value is not None},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "insecure_setting" in done.stderr
    assert "RAYHOOK_HOST:" in done.stderr
    assert "RAYHOOK_LOG_LEVEL:" in done.stderr


def _changed(environment, changes):
    return {"COLUMNS": "300"} | environment | changes
