import pytest

from rayhook.deploy.database import parse_url
from rayhook.deploy.postgresql import ConnectionSettings, transport_problem

SECURE = "sslmode=verify-full&sslrootcert=/etc/rayhook/ca.pem"


@pytest.fixture(autouse=True)
def without_variables(monkeypatch):
    for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGSSLMODE", "PGSSLROOTCERT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////var/lib/rayhook/rayhook.sqlite3",
        "postgresql:///rayhook",
        "postgresql:///rayhook?host=/run/postgresql",
        f"postgresql://rayhook_service@db.example/rayhook?{SECURE}",
        "postgresql://rayhook_service@db.example/rayhook?sslmode=verify-full&sslrootcert=system",
        f"postgresql:///rayhook?host=one.example:5432&host=two.example:5432&{SECURE}",
    ],
)
def test_url_that_nobody_on_the_way_can_listen_to(url):
    assert transport_problem(parse_url(url)) is None


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("postgresql://db.example/rayhook", "sslmode"),
        ("postgresql://127.0.0.1/rayhook", "sslmode"),
        ("postgresql:///rayhook?host=db.example", "sslmode"),
        ("postgresql:///rayhook?host=/run/postgresql,db.example", "sslmode"),
        ("postgresql:///rayhook?host=/run/postgresql&host=db.example:5432", "sslmode"),
        ("postgresql:///rayhook?host=/run/postgresql&hostaddr=10.0.0.1", "sslmode"),
        ("postgresql:///rayhook?service=hospital", "sslmode"),
        ("postgresql://db.example/rayhook?sslmode=require&sslrootcert=/ca.pem", "sslmode"),
        ("postgresql://db.example/rayhook?sslmode=verify-ca&sslrootcert=/ca.pem", "sslmode"),
        ("postgresql://db.example/rayhook?sslmode=verify-full", "sslrootcert"),
        (f"postgresql://db.example/rayhook?{SECURE}&ssl_min_protocol_version=TLSv1.1", "TLSv1.2"),
    ],
)
def test_url_that_somebody_could_listen_to(url, rule):
    assert rule in transport_problem(parse_url(url))


@pytest.mark.parametrize(
    ("variable", "text"), [("PGHOST", "db.example"), ("PGHOSTADDR", "10.0.0.1"), ("PGSERVICE", "hospital")]
)
def test_variables_of_libpq_lead_over_the_network_too(monkeypatch, variable, text):
    monkeypatch.setenv(variable, text)
    assert transport_problem(parse_url("postgresql:///rayhook")) is not None


def test_that_libpq_is_told_elsewhere_is_not_enough(monkeypatch):
    """A URL that another process is started with, without the variables, would be open."""
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", "/ca.pem")
    assert transport_problem(parse_url("postgresql://db.example/rayhook")) is not None


def test_rule_names_no_password():
    assert "canary" not in transport_problem(parse_url("postgresql://rayhook:canary@db.example/rayhook"))


def test_work_on_the_schema_takes_its_time():
    settings = ConnectionSettings(statement_timeout_s=5, lock_timeout_s=5, pool_size=9).unlimited()
    assert (settings.connections, "statement_timeout=0" in settings.server_options()) == (1, True)
