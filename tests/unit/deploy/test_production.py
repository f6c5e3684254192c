"""Production names everything that it does not start with, and starts with what is right."""

import pytest
import trustme

from rayhook.deploy.app import create_app
from rayhook.deploy.health import Health
from rayhook.deploy.production import Finding, findings, require_secure
from rayhook.deploy.settings import Settings
from rayhook.fhir.errors import InvalidRequest

URL = "https://rayhook.example.org"
POSTGRESQL = "postgresql://rayhook:s3cret@db.example.org/rayhook?sslmode=verify-full&sslrootcert=/etc/ca.pem"
REDIS = "rediss://rayhook:s3cret@redis.example.org:6379/0"


@pytest.fixture
def pair(tmp_path):
    """A certificate and its key, as a secret's files ought to be."""
    made = trustme.CA().issue_cert("rayhook.example.org")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    key.chmod(0o640)
    return {"tls_certificate": certificate, "tls_key": key}


def production(tmp_path, **values):
    given = {"public_base_url": URL, "data_dir": tmp_path / "var", "database_url": POSTGRESQL} | values
    return Settings(environment="production", **given)


def rules(settings, environment=None):
    return {one.setting: one.rule for one in findings(settings, environment or {})}


def test_what_is_right_is_not_refused(tmp_path, pair):
    settings = production(tmp_path, host="0.0.0.0", redis_url=REDIS, **pair)
    assert findings(settings, {}) == []
    require_secure(settings)


def test_sqlite_on_loopback_behind_a_proxy_is_not_refused(tmp_path):
    assert findings(production(tmp_path, database_url=None), {}) == []


@pytest.mark.parametrize(
    ("values", "setting", "rule"),
    [
        ({"public_base_url": "http://rayhook.example.org"}, "RAYHOOK_PUBLIC_BASE_URL", "must be https"),
        ({"host": "0.0.0.0"}, "RAYHOOK_HOST", "http is for loopback only"),
        ({"host": "rayhook.internal"}, "RAYHOOK_HOST", "http is for loopback only"),
        ({"log_level": "DEBUG"}, "RAYHOOK_LOG_LEVEL", "DEBUG"),
        ({"audit_fhir_feed": "http://arr.example.org/fhir"}, "RAYHOOK_AUDIT_FHIR_FEED", "must be https"),
        ({"redis_url": "redis://:s3cret@redis/0"}, "RAYHOOK_REDIS_URL", "must be rediss://"),
        ({"redis_url": "rediss://redis/0"}, "RAYHOOK_REDIS_URL", "needs a password"),
        ({"redis_url": REDIS + "?ssl_cert_reqs=none"}, "RAYHOOK_REDIS_URL", "ssl_cert_reqs"),
        (
            {"redis_url": REDIS + "?ssl_cert_reqs=none&ssl_cert_reqs=required"},
            "RAYHOOK_REDIS_URL",
            "ssl_cert_reqs",
        ),
        ({"redis_url": REDIS + "?ssl_check_hostname=false"}, "RAYHOOK_REDIS_URL", "ssl_check_hostname"),
        ({"database_url": POSTGRESQL.replace("verify-full", "require")}, "DATABASE_URL", "verify-full"),
        ({"database_url": POSTGRESQL.partition("?")[0]}, "DATABASE_URL", "verify-full"),
        ({"database_url": POSTGRESQL.partition("&")[0]}, "DATABASE_URL", "sslrootcert"),
        ({"database_url": POSTGRESQL.replace(":s3cret", "")}, "DATABASE_URL", "needs a password"),
        ({"database_url": POSTGRESQL + "&ssl_min_protocol_version=TLSv1"}, "DATABASE_URL", "TLSv1.2"),
        ({"database_url": "mysql://h/d"}, "DATABASE_URL", "SQLite file or PostgreSQL"),
    ],
)
def test_each_weakness_is_named_with_its_rule(tmp_path, monkeypatch, values, setting, rule):
    for name in ("PGPASSWORD", "PGPASSFILE", "PGHOST", "PGSSLMODE"):
        monkeypatch.delenv(name, raising=False)
    found = rules(production(tmp_path, **values))
    assert list(found) == [setting]
    assert rule in found[setting]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///rayhook?host=/var/run/postgresql",
        "postgresql://rayhook@/rayhook",
        POSTGRESQL.replace(":s3cret", "") + "&sslcert=/c.pem&sslkey=/k.pem",
        POSTGRESQL.replace(":s3cret", "") + "&passfile=/run/secrets/pgpass",
    ],
)
def test_sockets_certificates_and_password_files_are_right(tmp_path, monkeypatch, url):
    monkeypatch.delenv("PGHOST", raising=False)
    assert findings(production(tmp_path, database_url=url), {}) == []


def test_a_password_in_a_file_is_right(tmp_path):
    file = tmp_path / "password"
    file.touch(0o600)
    url = POSTGRESQL.replace(":s3cret", "")
    assert findings(production(tmp_path, database_url=url, database_password_file=file), {}) == []


def test_a_proxy_that_ends_tls_has_to_be_said(tmp_path):
    assert findings(production(tmp_path, host="0.0.0.0", tls_proxy=True), {}) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_for_a_proxy_on_this_host(tmp_path, host):
    assert findings(production(tmp_path, host=host), {}) == []


def test_a_pair_that_is_none_is_refused(tmp_path, pair):
    pair["tls_key"].write_bytes(trustme.CA().issue_cert("x").private_key_pem.bytes())
    assert "belong together" in rules(production(tmp_path, **pair))["RAYHOOK_TLS_CERTIFICATE"]


def test_a_key_that_others_may_read_is_refused(tmp_path, pair):
    pair["tls_key"].chmod(0o644)
    assert "read by others" in rules(production(tmp_path, **pair))["RAYHOOK_TLS_KEY"]


def test_a_token_file_that_is_not_there_is_refused(tmp_path):
    found = rules(production(tmp_path, metrics_token_file=tmp_path / "none"))
    assert found == {"RAYHOOK_METRICS_TOKEN_FILE": "the file cannot be read"}


def test_a_keyring_that_the_group_may_read_is_refused(tmp_path):
    settings = production(tmp_path)
    settings.keyring_path.parent.mkdir()
    settings.keyring_path.touch(0o640)
    settings.keyring_path.chmod(0o640)
    assert "keyring" in rules(settings)["RAYHOOK_DATA_DIR"]


def test_a_demonstration_is_not_production(tmp_path):
    settings = production(tmp_path)
    settings.data_dir.mkdir()
    (settings.data_dir / "demo-staff.json").touch()
    assert "demonstration" in rules(settings)["RAYHOOK_DATA_DIR"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("AWS_ENDPOINT_URL_KMS", "http://kms.internal"), ("SSLKEYLOGFILE", "/tmp/keys")],
)
def test_the_environment_beside_the_settings_counts(tmp_path, name, value):
    assert list(rules(production(tmp_path), {name: value})) == [name]


def test_all_are_named_at_once(tmp_path):
    settings = production(tmp_path, public_base_url="http://h", host="0.0.0.0", log_level="DEBUG")
    with pytest.raises(InvalidRequest) as refusal:
        require_secure(settings)
    told = [line.split(":")[0].strip() for line in str(refusal.value).splitlines()[1:]]
    assert told == ["RAYHOOK_HOST", "RAYHOOK_LOG_LEVEL", "RAYHOOK_PUBLIC_BASE_URL"]


def test_no_finding_holds_a_value(tmp_path):
    insecure = production(tmp_path, database_url="postgresql://u:s3cret@h/d", redis_url="redis://:s3cret@h")
    assert not any("s3cret" in str(one) for one in findings(insecure, {}))


def test_the_service_is_not_made(tmp_path):
    with pytest.raises(InvalidRequest, match="RAYHOOK_HOST"):
        create_app(production(tmp_path, host="0.0.0.0"), Health())


def test_development_may(tmp_path):
    require_secure(Settings(environment="development", host="0.0.0.0", data_dir=tmp_path))


def test_findings_are_told_as_setting_and_rule():
    assert str(Finding("RAYHOOK_HOST", "is wrong")) == "RAYHOOK_HOST: is wrong"
