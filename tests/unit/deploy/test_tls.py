"""What our own listener accepts, by real handshakes. Spec: RFC 9325; OWASP ASVS 5.0.0 V12.1"""

import shutil
import socket
import ssl
import threading
import warnings

import pytest
import trustme
import uvicorn

from rayhook.deploy.health import Health
from rayhook.deploy.server import Server
from rayhook.deploy.tls import ServedCertificate, expires_at, server_context
from tests.doubles.certificates import Certificates

OLD = [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1]
WEAK = ["AES128-SHA", "AES256-GCM-SHA384", "ECDHE-RSA-AES256-SHA384", "ECDHE-RSA-AES128-SHA"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def served(certificates, tmp_path):
    """The certificate that a running server serves, in files that may be replaced, and the server's port."""
    pair = certificates.good()
    files = [shutil.copy(path, tmp_path) for path in (pair.certificate, pair.key)]
    certificate = ServedCertificate(*(tmp_path / path.rpartition("/")[2] for path in files))
    with serving(certificate) as port:
        yield certificate, port, tmp_path


class serving:  # noqa: N801 - used as a function
    def __init__(self, certificate):
        config = uvicorn.Config(
            hello,
            host="127.0.0.1",
            port=0,
            ssl_context_factory=lambda *_: certificate.context,
            lifespan="off",
        )
        self.server = Server(config, Health(), drain_s=0, shutdown_s=60)
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            threading.Event().wait(0.01)
        return self.server.servers[0].sockets[0].getsockname()[1]

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()


async def hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def client(certificates, *, version=None, suites=None):
    context = ssl.create_default_context(cafile=certificates.ca)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        if suites is not None:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(f"{suites}:@SECLEVEL=0")
    return context


def shaken(context, port):
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        return secured.version(), secured.cipher()[0], secured.getpeercert()["serialNumber"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_newer_versions_are_spoken(certificates, served, version):
    spoken, _, _ = shaken(client(certificates, version=version), served[1])
    assert spoken == version.name.replace("_", ".")


@pytest.fixture(scope="module")
def weak(tmp_path_factory):
    """A server that takes anything, and ours, each over the same RSA key: what the one speaks the other refuses."""
    certificates = Certificates(tmp_path_factory.mktemp("weak"))
    pair = certificates.good(key_type=trustme.KeyType.RSA)
    ours, anything = (
        ServedCertificate(pair.certificate, pair.key),
        ServedCertificate(pair.certificate, pair.key),
    )
    anything.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    anything.context.set_ciphers("ALL:@SECLEVEL=0")
    anything.context.load_cert_chain(pair.certificate, pair.key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        anything.context.minimum_version = ssl.TLSVersion.TLSv1
    with serving(ours) as port, serving(anything) as open_port:
        yield certificates, port, open_port


@pytest.mark.parametrize("version", OLD)
def test_older_versions_are_refused(weak, version):
    certificates, port, open_port = weak
    context = client(certificates, version=version)
    context.set_ciphers("ALL:@SECLEVEL=0")
    assert shaken(context, open_port)[0] == version.name.replace("_", ".")
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        shaken(context, port)


@pytest.mark.parametrize("suites", WEAK)
def test_suites_without_forward_secrecy_or_authenticated_encryption_are_refused(weak, suites):
    certificates, port, open_port = weak
    context = client(certificates, suites=suites)
    assert shaken(context, open_port)[1] == suites
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        shaken(context, port)


@pytest.mark.parametrize("suites", ["ECDHE+AESGCM", "ECDHE+CHACHA20"])
def test_strong_suites_of_tls_1_2_are_spoken(certificates, served, suites):
    _, suite, _ = shaken(client(certificates, suites=suites), served[1])
    assert suite.startswith("ECDHE-")


def test_http_in_plain_text_gets_no_answer(served):
    with socket.create_connection(("127.0.0.1", served[1]), timeout=10) as plain:
        plain.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        try:
            answer = plain.recv(100)
        except ConnectionResetError:
            answer = b""
    assert b"HTTP" not in answer


def test_a_new_certificate_is_served_without_a_restart(certificates, served):
    certificate, port, folder = served
    before = shaken(client(certificates), port)[2]
    replace(certificates, folder)
    assert certificate.renew()
    assert shaken(client(certificates), port)[2] != before
    assert not certificate.renew()


def test_half_a_change_is_not_taken_up(certificates, served):
    certificate, port, folder = served
    before = shaken(client(certificates), port)[2]
    other = certificates.good()
    shutil.copy(other.certificate, folder)
    assert not certificate.renew()
    assert shaken(client(certificates), port)[2] == before
    shutil.copy(other.key, folder)
    assert certificate.renew()


def test_files_that_are_away_for_a_while_change_nothing(certificates, served):
    certificate, port, folder = served
    for path in folder.glob("good-*"):
        path.unlink()
    assert not certificate.renew()
    shaken(client(certificates), port)


def replace(certificates, folder):
    other = certificates.good()
    shutil.copy(other.certificate, folder)
    shutil.copy(other.key, folder)


def test_the_end_of_a_certificate_is_told(certificates):
    pair = certificates.bad("expired")
    assert ServedCertificate(pair.certificate, pair.key).left_s() < 0
    assert expires_at(pair.key) is None


def test_a_certificate_with_another_key_is_refused(certificates):
    pair, other = certificates.good(), certificates.bad("of another name")
    with pytest.raises(ssl.SSLError):
        server_context(pair.certificate, other.key)
