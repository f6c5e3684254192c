"""What production does not start with: every setting that is not secure, named with its rule, all at once.

Spec: OWASP ASVS 5.0.0 V12, V13.2, V13.3, V16.5.3; 45 CFR 164.312(e)
"""

import ipaddress
import os
import ssl
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import psycopg
from sqlalchemy.engine import URL

from rayhook.deploy.database import parse_url
from rayhook.deploy.postgresql import transport_problem
from rayhook.deploy.settings import Settings
from rayhook.deploy.storage_settings import PREFIX
from rayhook.deploy.tls import server_context
from rayhook.fhir.errors import InvalidRequest

_DATABASE: Final = "DATABASE_URL"
_DEMO_STAFF: Final = "demo-staff.json"
_AWS_ENDPOINTS: Final = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS", "AWS_ENDPOINT_URL_S3")
_SECRET_FILES: Final = (
    "audit_fhir_feed_token_file",
    "audit_syslog_key",
    "database_password_file",
    "metrics_token_file",
    "tls_key",
)
_YES: Final = frozenset({"1", "on", "true", "y", "yes"})


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One setting, by the name of its variable, and the rule that it breaks; never its value."""

    setting: str
    rule: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.rule}"


def require_secure(settings: Settings) -> None:
    """Raise InvalidRequest, naming every setting and its rule, where production must not start with them."""
    found = [] if settings.development else findings(settings)
    if found:
        raise InvalidRequest(
            "production does not start insecurely:\n" + "\n".join(f"  {one}" for one in found),
            code="insecure_setting",
        )


def findings(settings: Settings, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Return what production refuses, whatever environment the settings are for; `environment` beside them."""
    rules = (
        _listener(settings),
        _database(settings),
        _redis(settings),
        _outside(settings),
        _files(settings),
        _process(settings, environment),
    )
    return sorted({one for part in rules for one in part})


def _named(field: str, rule: str) -> Finding:
    return Finding(PREFIX + field.upper(), rule)


def _listener(settings: Settings) -> Iterator[Finding]:
    if urlsplit(settings.public_base_url).scheme != "https":
        yield _named("public_base_url", "must be https in production")
    if settings.tls_certificate is None:
        if not _is_loopback(settings.host) and not settings.tls_proxy:
            yield _named(
                "host",
                "http is for loopback only: give RAYHOOK_TLS_CERTIFICATE, or say with RAYHOOK_TLS_PROXY=true "
                "that nothing but a proxy which ends TLS reaches this address",
            )
        return
    try:
        server_context(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError):
        yield _named("tls_certificate", "and RAYHOOK_TLS_KEY must be readable and belong together")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _database(settings: Settings) -> Iterator[Finding]:
    try:
        url = parse_url(settings.resolved_database_url)
    except InvalidRequest as error:
        yield Finding(_DATABASE, error.message)
        return
    if url.get_backend_name() != "postgresql":
        return
    problem = transport_problem(url)
    if problem is not None:
        yield Finding(_DATABASE, problem)
    if _is_remote(url) and settings.database_password_file is None and not _authenticates(url):
        yield Finding(
            _DATABASE, "needs a password, or sslcert and sslkey, where PostgreSQL is reached over TCP"
        )


def _libpq(url: URL) -> dict[str, str]:
    """Return the options that libpq would use: the URL's, then the environment's."""
    from_environment = {
        option.keyword.decode(): (option.val or b"").decode() for option in psycopg.pq.Conninfo.get_defaults()
    }
    given = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    in_url = {"host": url.host, "password": url.password and str(url.password)}
    return from_environment | {name: value for name, value in in_url.items() if value} | given


def _is_remote(url: URL) -> bool:
    options = _libpq(url)
    hosts = (options.get("hostaddr") or options.get("host") or "").split(",")
    return any(host and not host.startswith(("/", "@")) for host in hosts)


def _authenticates(url: URL) -> bool:
    options = _libpq(url)
    has_certificate = bool(options.get("sslcert") and options.get("sslkey"))
    return (
        bool(options.get("password") or options.get("passfile") or options.get("service")) or has_certificate
    )


def _redis(settings: Settings) -> Iterator[Finding]:
    if settings.redis_url is None:
        return
    parts = urlsplit(settings.redis_url)
    if parts.scheme == "unix":
        return
    if parts.scheme != "rediss":
        yield _named("redis_url", "must be rediss:// or unix:// in production")
    given = {
        name: values[0].lower() for name, values in parse_qs(parts.query).items()
    }  # redis-py takes the first
    if given.get("ssl_cert_reqs", "required") != "required":
        yield _named("redis_url", "ssl_cert_reqs must be required")
    if given.get("ssl_check_hostname", "true") not in _YES:
        yield _named("redis_url", "ssl_check_hostname must be true")
    if not (unquote(parts.password or "") or given.get("password")):
        yield _named("redis_url", "needs a password, or a user and a password of the ACL")


def _outside(settings: Settings) -> Iterator[Finding]:
    if settings.audit_fhir_feed is not None and urlsplit(settings.audit_fhir_feed).scheme != "https":
        yield _named("audit_fhir_feed", "must be https in production")


def _files(settings: Settings) -> Iterator[Finding]:
    for field in _SECRET_FILES:
        path: Path | None = getattr(settings, field)
        if path is not None:
            yield from _secret(PREFIX + field.upper(), path, others=stat.S_IRWXO)
    if settings.keyring_path.exists():
        yield from _secret(
            f"{PREFIX}DATA_DIR",
            settings.keyring_path,
            others=stat.S_IRWXO | stat.S_IRWXG,
            what="the keyring in it",
        )
    if settings.ca_bundle is not None and not settings.ca_bundle.is_file():
        yield _named("ca_bundle", "is not a file")
    if (settings.data_dir / _DEMO_STAFF).exists():
        yield _named("data_dir", "holds a demonstration, whose accounts have passwords that anybody can read")


def _secret(name: str, path: Path, *, others: int, what: str = "the file") -> Iterable[Finding]:
    try:
        mode = path.stat().st_mode
    except OSError:
        return (Finding(name, f"{what} cannot be read"),)
    if mode & others:
        whose = "its owner" if others & stat.S_IRWXG else "its owner and group"
        return (Finding(name, f"{what} may be read by others than {whose}"),)
    return ()


def _process(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    if settings.log_level == "DEBUG":
        yield _named("log_level", "DEBUG lets libraries log what they send: INFO is the lowest in production")
    for name in _AWS_ENDPOINTS:
        if environment.get(name) and urlsplit(environment[name]).scheme != "https":
            yield Finding(name, "must be https in production")
    if environment.get("SSLKEYLOGFILE"):
        yield Finding(
            "SSLKEYLOGFILE", "must not be set: it has the keys of every TLS connection written to a file"
        )
