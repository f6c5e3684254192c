"""Every client of ours checks whom it speaks to, and speaks nothing older than TLS 1.2.

Spec: RFC 9325; OWASP ASVS 5.0.0 V12.3
"""

import shutil
import ssl
import warnings

import pytest
import redis

from rayhook.audit.delivery import DeliveryFailed
from rayhook.audit.syslog import SyslogServer
from rayhook.deploy.database import create_database
from rayhook.deploy.redis import connect
from rayhook.fhir.errors import RayhookError, ServiceUnavailable, UpstreamError
from rayhook.fhir.transport import Transport
from tests.conftest import absent
from tests.doubles.audit_receivers import SyslogReceiver
from tests.doubles.certificates import FAULTS, Certificates
from tests.doubles.raw_server import RawServer
from tests.peers import postgresql, redis_server
from tests.ports import free_url

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


def context_of(pair, *, newest=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if newest is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = newest
        context.set_ciphers("ALL:@SECLEVEL=0")
    return context


@pytest.fixture
def asked(certificates):
    """Ask an EHR that serves with this context for something; return the answer's body, and what the EHR heard."""
    stopping = []

    def ask(context):
        server = RawServer(lambda connection, _: connection.sendall(ANSWER), tls=context)
        origin = f"https://localhost:{server.port}"
        transport = Transport(ca_bundle=certificates.ca, private_origins=frozenset({origin}))
        stopping.extend([server.stop, transport.close])
        try:
            return transport.request("GET", origin, allowed_origins=frozenset({origin}), deadline_s=5).body
        except RayhookError:
            assert server.requests == []
            raise

    yield ask
    for stop in stopping:
        stop()


def test_the_ehr_is_spoken_to(certificates, asked):
    assert asked(context_of(certificates.good())) == b"ok"


@pytest.mark.parametrize("fault", FAULTS)
def test_an_ehr_whose_certificate_is_wrong_is_not_spoken_to(certificates, asked, fault):
    with pytest.raises(UpstreamError) as refused:
        asked(context_of(certificates.bad(fault)))
    assert refused.value.code == "tls_refused"


def test_an_ehr_that_speaks_only_old_tls_is_not_spoken_to(certificates, asked):
    with pytest.raises(RayhookError):
        asked(context_of(certificates.good(), newest=ssl.TLSVersion.TLSv1_1))


def sent(certificates, pair):
    receiver = SyslogReceiver(pair.certificate, pair.key)
    with receiver.running() as port:
        SyslogServer("localhost", port, ca_bundle=certificates.ca, timeout_s=5).send([b"<85>1 event"])
    return receiver.messages


def test_the_audit_repository_is_spoken_to(certificates):
    assert sent(certificates, certificates.good()) == [b"<85>1 event"]


@pytest.mark.parametrize("fault", FAULTS)
def test_an_audit_repository_whose_certificate_is_wrong_is_not_spoken_to(certificates, fault):
    with pytest.raises(DeliveryFailed, match="tls_refused"):
        sent(certificates, certificates.bad(fault))


@pytest.fixture
def pinged(certificates, tmp_path):
    """Ask a Redis with this certificate whether it is there."""
    if redis_server.program() is None:
        absent("redis-server")

    def ping(pair, **options):
        port = int(free_url().rpartition(":")[2])
        with redis_server.running(tmp_path, port=port, pair=pair, **options) as server:
            client = connect(server.url, ca_bundle=certificates.ca, retries=0)
            try:
                return client.ping()
            finally:
                client.close()

    return ping


def test_redis_is_spoken_to(certificates, pinged):
    assert pinged(certificates.good())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_redis_whose_certificate_is_wrong_is_not_spoken_to(certificates, pinged, fault):
    with pytest.raises(redis.ConnectionError, match=r"(?i)certificate"):
        pinged(certificates.bad(fault))


def test_a_redis_that_speaks_only_old_tls_is_not_spoken_to(certificates, pinged):
    with pytest.raises(redis.ConnectionError):
        pinged(certificates.good(), protocols="TLSv1.1")


@pytest.fixture(scope="module")
def server():
    programs = postgresql.binaries()
    if programs is None:
        absent("PostgreSQL with TLS")
    with postgresql.running(programs) as server:
        yield server


@pytest.fixture
def read(certificates, server):
    """Read something from a PostgreSQL that serves this certificate."""

    def ask(pair, *options):
        for source, name in ((pair.certificate, "server.crt"), (pair.key, "server.key")):
            shutil.copyfile(source, server.data / name)
        (server.data / "postgresql.auto.conf").write_text("\n".join(options) + "\n")
        server.stop()
        server.start()
        url = server.url("postgres").replace(str(server.authority), str(certificates.ca))
        database = create_database(url)
        try:
            with database.reading() as session:
                return session.connection().exec_driver_sql("SELECT 1").scalar()
        finally:
            database.close()

    return ask


@pytest.mark.postgresql
def test_postgresql_is_spoken_to(certificates, read):
    assert read(certificates.good()) == 1


@pytest.mark.postgresql
@pytest.mark.parametrize("fault", FAULTS)
def test_a_postgresql_whose_certificate_is_wrong_is_not_spoken_to(certificates, read, fault):
    with pytest.raises(ServiceUnavailable):
        read(certificates.bad(fault))


@pytest.mark.postgresql
def test_a_postgresql_that_speaks_only_old_tls_is_not_spoken_to(certificates, read):
    old = (
        "ssl_min_protocol_version = 'TLSv1'",
        "ssl_max_protocol_version = 'TLSv1.1'",
        "ssl_ciphers = 'ALL:@SECLEVEL=0'",
    )
    with pytest.raises(ServiceUnavailable):
        read(certificates.good(), *old)
