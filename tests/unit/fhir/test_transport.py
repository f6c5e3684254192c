import gzip
import logging
import resource
import socket
import ssl
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
import trustme
from structlog.testing import capture_logs

from rayhook.fhir.correlation import request_id
from rayhook.fhir.errors import (
    EgressDenied,
    InvalidRequest,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from rayhook.fhir.transport import Transport, origin_of
from tests.doubles.raw_server import always, answer, dripping, in_turn
from tests.ports import free_port

TOKEN = "secret-token-0123456789"
MEBIBYTE = 1024 * 1024


def resolving_to(*addresses, port):
    """A resolver that answers as getaddrinfo does; `calls` counts the look-ups."""

    def resolve(host, asked_port, **options):
        resolve.calls.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    resolve.calls = []
    return resolve


def get(transport, url, *, origin=None, deadline_s=5.0, **options):
    allowed = frozenset({origin or origin_of(url)})
    return transport.request("GET", url, allowed_origins=allowed, deadline_s=deadline_s, **options)


def everything_said(error):
    """The whole chain of an exception as a log would show it."""
    return "".join(traceback.format_exception(error))


@pytest.fixture
def transports():
    made = []

    def make(**options):
        made.append(Transport(**options))
        return made[-1]

    yield make
    for transport in made:
        transport.close()


def test_answer_has_status_headers_and_body(serve, transport):
    server = serve(always(answer(b"body", status="418 Teapot", headers="X-A: b\r\n")))
    response = get(transport, f"{server.origin}/x")
    assert (response.status, response.headers["x-a"], response.body) == (418, "b", b"body")


def test_request_line_and_host_are_of_the_url(serve, transport):
    server = serve(always(answer()))
    get(transport, f"{server.origin}/fhir/Patient/1?_x=y")
    assert server.requests[0].startswith(b"GET /fhir/Patient/1?_x=y HTTP/1.1\r\n")
    assert f"host: 127.0.0.1:{server.port}".encode() in server.requests[0]


def test_content_is_sent(serve, transport):
    server = serve(always(answer()))
    transport.request(
        "POST", server.origin, allowed_origins=frozenset({server.origin}), deadline_s=5, content=b"abc"
    )
    assert server.requests[0].endswith(b"\r\n\r\nabc")


def test_identity_is_asked_for(serve, transport):
    server = serve(always(answer()))
    get(transport, server.origin)
    assert b"accept-encoding: identity\r\n" in server.requests[0]


def test_request_id_is_forwarded(serve, transport):
    server = serve(always(answer()))
    mark = request_id.set("req-12345678")
    get(transport, server.origin)
    request_id.reset(mark)
    assert b"x-request-id: req-12345678\r\n" in server.requests[0]


def test_connection_is_used_again(serve, transport):
    server = serve(always(answer()))
    for _ in range(3):
        get(transport, server.origin)
    assert server.connections == 1


def test_many_threads_share_one_transport(serve, transport):
    server = serve(lambda connection, request: connection.sendall(answer(request.split()[1])))
    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(lambda n: get(transport, f"{server.origin}/{n}").body, range(40)))
    assert bodies == [b"/%d" % n for n in range(40)]


def test_cookies_are_not_kept(serve, transport):
    server = serve(always(answer(headers="Set-Cookie: session=1\r\n")))
    get(transport, server.origin)
    get(transport, server.origin)
    assert b"cookie" not in server.requests[1].lower()


def test_proxy_of_the_environment_is_not_used(serve, transports, monkeypatch):
    server, proxy = serve(always(answer())), serve(always(answer()))
    monkeypatch.setenv("HTTP_PROXY", proxy.origin)
    monkeypatch.setenv("ALL_PROXY", proxy.origin)
    get(transports(allow_loopback_http=True), server.origin)
    assert proxy.requests == []


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 T", "308 P"])
def test_redirects_are_not_followed(serve, transport, status):
    canary = serve(always(answer()))
    server = serve(always(answer(status=status, headers=f"Location: {canary.origin}/\r\n")))
    response = get(transport, server.origin, headers={"Authorization": f"Bearer {TOKEN}"})
    assert response.status == int(status[:3])
    assert canary.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        "https://ehr.example.evil/fhir",
        "https://ehr.example:8443/fhir",
        "https://evil.example/https://ehr.example/",
        "https://ehr.example@evil.example/",
        "https://ehr.example./fhir",
        "https://sub.ehr.example/fhir",
        "https://ehr.example\\@evil.example/",
        "http://ehr.example/fhir",
        "https://2130706433/",
        "file:///etc/passwd",
        "ehr.example/fhir",
        "https://169.254.169.254/latest/meta-data",
    ],
)
def test_only_the_exact_origin_is_allowed(transports, url):
    resolver = resolving_to("127.0.0.1", port=1)
    with pytest.raises(EgressDenied):
        get(transports(resolver=resolver), url, origin="https://ehr.example")
    assert resolver.calls == []


def test_registered_origin_is_reached_in_other_spelling(serve, transport):
    server = serve(always(answer()))
    assert get(transport, server.origin.replace("http", "HTTP", 1), origin=server.origin).status == 200


def test_http_to_loopback_needs_the_development_switch(serve, transports):
    server = serve(always(answer()))
    with pytest.raises(EgressDenied):
        get(transports(private_origins=frozenset({server.origin})), server.origin)
    assert server.connections == 0


def test_http_elsewhere_is_refused_in_development_too(transports):
    resolver = resolving_to("127.0.0.1", port=1)
    with pytest.raises(EgressDenied):
        get(transports(allow_loopback_http=True, resolver=resolver), "http://ehr.example/")
    assert resolver.calls == []


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["0.0.0.0"],
        ["8.8.8.8", "127.0.0.1"],
        ["8.8.8.8", "192.168.1.1"],
    ],
)
def test_name_at_an_inner_address_is_refused(transports, addresses):
    transport = transports(resolver=resolving_to(*addresses, port=443))
    with pytest.raises(EgressDenied) as caught:
        get(transport, "https://ehr.example/fhir")
    assert caught.value.code == "address_refused"


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1/", "https://[::1]/", "https://[::ffff:10.0.0.1]/", "https://10.1.2.3/"]
)
def test_inner_address_written_out_is_refused(transports, url):
    with pytest.raises(EgressDenied):
        get(transports(), url)


def test_link_local_address_is_refused_to_a_private_origin(transports):
    transport = transports(
        private_origins=frozenset({"https://ehr.example"}), resolver=resolving_to("169.254.169.254", port=443)
    )
    with pytest.raises(EgressDenied):
        get(transport, "https://ehr.example/")


def test_denial_does_not_repeat_the_address(transports):
    with pytest.raises(EgressDenied) as caught:
        get(transports(), f"https://evil.example/{TOKEN}", origin="https://ehr.example")
    assert TOKEN not in everything_said(caught.value)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def ca_bundle(authority, tmp_path):
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


def tls_for(authority, *names):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture
def hospital(serve, authority, ca_bundle, transports):
    """A TLS server and a transport that finds it under the name ehr.hospital.example."""

    def make(*names, trusted=True, handle=None):
        server = serve(handle or always(answer(b"tls")), tls=tls_for(authority, *names))
        origin = f"https://ehr.hospital.example:{server.port}"
        transport = transports(
            ca_bundle=ca_bundle if trusted else None,
            private_origins=frozenset({origin}),
            resolver=resolving_to("127.0.0.1", port=server.port),
        )
        return server, origin, transport

    return make


def test_certificate_is_verified_by_name_though_the_address_is_connected_to(hospital):
    _, origin, transport = hospital("ehr.hospital.example")
    assert get(transport, origin).body == b"tls"


@pytest.mark.parametrize("name", ["pacs.hospital.example", "127.0.0.1"])
def test_certificate_of_another_name_is_refused(hospital, name):
    server, origin, transport = hospital(name)
    with pytest.raises(UpstreamError) as caught:
        get(transport, origin, headers={"Authorization": f"Bearer {TOKEN}"})
    assert caught.value.code == "tls_refused"
    assert server.requests == []


def test_unknown_authority_is_refused(hospital):
    _, origin, transport = hospital("ehr.hospital.example", trusted=False)
    with pytest.raises(UpstreamError) as caught:
        get(transport, origin)
    assert caught.value.code == "tls_refused"


def test_name_is_looked_up_once_for_check_and_connection(hospital):
    """DNS rebinding: a second look-up could answer otherwise."""
    server, origin, transport = hospital("ehr.hospital.example")
    get(transport, origin)
    assert len(transport._backend._resolver.calls) == 1
    assert server.connections == 1


def test_rebinding_between_requests_is_met(serve, authority, ca_bundle, transports):
    server = serve(
        always(answer(headers="Connection: close\r\n")), tls=tls_for(authority, "ehr.hospital.example")
    )
    origin = f"https://ehr.hospital.example:{server.port}"
    answers = [["127.0.0.1"], ["169.254.169.254"]]

    def rebinding(host, port, **options):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers.pop(0)]

    transport = transports(ca_bundle=ca_bundle, private_origins=frozenset({origin}), resolver=rebinding)
    assert get(transport, origin).status == 200
    with pytest.raises(EgressDenied):
        get(transport, origin)


def test_deadline_holds_in_a_silent_handshake(transports):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        origin = f"https://ehr.hospital.example:{port}"
        transport = transports(
            private_origins=frozenset({origin}), resolver=resolving_to("127.0.0.1", port=port)
        )
        assert 0.45 < seconds_to_time_out(transport, origin, deadline_s=0.5) < 0.8


def test_deadline_holds_in_a_dripping_tls_body(hospital):
    drip = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x")
    _, origin, transport = hospital("ehr.hospital.example", handle=drip)
    assert 0.45 < seconds_to_time_out(transport, origin, deadline_s=0.5) < 0.8


def seconds_to_time_out(transport, url, *, deadline_s, **options):
    started = time.monotonic()
    with pytest.raises(UpstreamTimeout):
        get(transport, url, deadline_s=deadline_s, **options)
    return time.monotonic() - started


@pytest.mark.parametrize(
    "handle",
    [
        dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x"),
        dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        dripping(b"HTTP/1.1 200 OK\r\n", b"X-Drip: 1\r\n"),
        dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", pause_s=0),
        lambda connection, request: time.sleep(1),
    ],
    ids=["body", "chunks", "headers", "informational", "endless", "silent"],
)
def test_deadline_holds_against(serve, transport, handle):
    assert 0.45 < seconds_to_time_out(transport, serve(handle).origin, deadline_s=0.5) < 0.8


def test_deadline_holds_against_a_server_that_does_not_read(transports):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        origin = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        transport = transports(allow_loopback_http=True)
        started = time.monotonic()
        with pytest.raises(UpstreamTimeout):
            transport.request(
                "POST",
                origin,
                allowed_origins=frozenset({origin}),
                deadline_s=0.5,
                content=bytes(32 * MEBIBYTE),
            )
        assert time.monotonic() - started < 0.9


def test_deadline_holds_against_a_slow_resolver(transports):
    release = threading.Event()

    def slow(host, port, **options):
        release.wait(5)
        return []

    transport = transports(resolver=slow)
    took_s = seconds_to_time_out(transport, "https://ehr.example/", deadline_s=0.3)
    release.set()
    assert 0.25 < took_s < 0.6


def test_deadline_in_the_past_is_over_at_once(serve, transport):
    server = serve(always(answer()))
    get(transport, server.origin)
    assert seconds_to_time_out(transport, server.origin, deadline_s=0) < 0.2
    assert len(server.requests) == 1


def test_slow_reader_is_held_to_the_deadline_too(serve, transport):
    server = serve(always(answer(bytes(MEBIBYTE))))
    allowed = frozenset({server.origin})
    with transport.stream(
        "GET", server.origin, allowed_origins=allowed, deadline_s=0.3, max_bytes=2**30
    ) as response:
        slowly = (time.sleep(0.1) for _ in response.iter_bytes())
        with pytest.raises(UpstreamTimeout):
            list(slowly)


@pytest.mark.parametrize(
    "handle",
    [
        always(answer(bytes(2000))),
        dripping(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"400\r\n" + bytes(1024) + b"\r\n",
            pause_s=0,
        ),
        dripping(b"HTTP/1.1 200 OK\r\n\r\n", bytes(1024), pause_s=0),
        always(answer(gzip.compress(bytes(2000)), headers="Content-Encoding: gzip\r\n")),
    ],
    ids=["declared", "endless", "unframed", "compressed"],
)
def test_body_over_the_cap_is_refused(serve, transport, handle):
    with pytest.raises(UpstreamError) as caught:
        get(transport, serve(handle).origin, max_bytes=1999)
    assert caught.value.code == "upstream_too_large"


def test_body_at_the_cap_is_read(serve, transport):
    assert len(get(transport, serve(always(answer(bytes(1999)))).origin, max_bytes=1999).body) == 1999


def test_gzip_bomb_costs_little_memory_and_time(serve, transport):
    member = gzip.compress(bytes(256 * MEBIBYTE), compresslevel=1)
    server = serve(always(answer(member, headers="Content-Encoding: gzip\r\n")))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    with pytest.raises(UpstreamError):
        get(transport, server.origin)
    assert time.monotonic() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 128 * 1024


def test_truncated_body_is_no_answer(serve, transport):
    server = serve(
        lambda connection, _: (
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
            connection.shutdown(socket.SHUT_RDWR),
        )
    )
    with pytest.raises(UpstreamUnavailable):
        get(transport, server.origin)


def test_nobody_listening_is_unavailable(transport):
    with pytest.raises(UpstreamUnavailable):
        get(transport, f"http://127.0.0.1:{free_port()}/")


def test_unknown_name_is_unavailable(transports):
    def unknown(host, port, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(UpstreamUnavailable):
        get(transports(resolver=unknown), "https://ehr.example/")


@pytest.mark.parametrize(
    "first", [b"", answer(status="503 Busy", headers="Retry-After: 0\r\n"), answer(status="429 Slow")]
)
def test_get_is_tried_again(serve, transport, first):
    server = serve(in_turn(first, answer(b"second")))
    assert get(transport, server.origin).body == b"second"


def test_get_is_tried_three_times_at_most(serve, transport):
    server = serve(always(answer(status="503 Busy")))
    assert get(transport, server.origin).status == 503
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", ["500 Broken", "502 Bad", "404 None", "401 Who"])
def test_other_statuses_are_final(serve, transport, status):
    server = serve(always(answer(status=status)))
    get(transport, server.origin)
    assert len(server.requests) == 1


def test_post_is_never_repeated(serve, transport):
    server = serve(always(answer(status="503 Busy", headers="Retry-After: 0\r\n")))
    transport.request(
        "POST", server.origin, allowed_origins=frozenset({server.origin}), deadline_s=5, content=b""
    )
    assert len(server.requests) == 1


def test_wait_beyond_the_deadline_is_not_begun(serve, transport):
    server = serve(always(answer(status="503 Busy", headers="Retry-After: 60\r\n")))
    started = time.monotonic()
    assert get(transport, server.origin, deadline_s=5).status == 503
    assert time.monotonic() - started < 1


def test_asked_for_wait_is_kept(serve, transport):
    server = serve(in_turn(answer(status="503 Busy", headers="Retry-After: 1\r\n"), answer()))
    started = time.monotonic()
    get(transport, server.origin)
    assert time.monotonic() - started >= 1


def test_connection_closed_while_idle_is_replaced(serve, transport):
    server = serve(lambda connection, _: (connection.sendall(answer()), connection.close()))
    assert [get(transport, server.origin).status for _ in range(2)] == [200, 200]
    assert server.connections == 2


def test_token_with_a_line_break_is_not_in_the_error(serve, transport):
    server = serve(always(answer()))
    with pytest.raises(InvalidRequest) as caught:
        get(transport, server.origin, headers={"Authorization": f"Bearer {TOKEN}\nX: y"})
    assert TOKEN not in everything_said(caught.value)


def test_malformed_answer_is_not_in_the_error(serve, transport):
    server = serve(always(f"HTTP/1.1 200 OK\r\n{TOKEN} x: y\r\n\r\n".encode()))
    with pytest.raises(UpstreamUnavailable) as caught:
        get(transport, server.origin)
    assert TOKEN not in everything_said(caught.value)


@pytest.mark.parametrize(
    "handle",
    [
        always(b"rubbish\r\n\r\n"),
        lambda connection, _: connection.close(),
        lambda connection, _: time.sleep(0.5),
    ],
    ids=["rubbish", "closed", "silent"],
)
def test_no_failure_tells_token_or_path(serve, transport, handle, caplog):
    caplog.set_level(logging.DEBUG)
    with capture_logs() as logs, pytest.raises(UpstreamError) as caught:
        get(
            transport,
            f"{serve(handle).origin}/Patient/patient-id-77",
            headers={"Authorization": f"Bearer {TOKEN}"},
            deadline_s=0.3,
        )
    said = everything_said(caught.value) + repr(logs) + caplog.text
    assert TOKEN not in said
    assert "patient-id-77" not in said


def test_location_is_not_logged(serve, transport, caplog):
    caplog.set_level(logging.DEBUG)
    get(transport, serve(always(answer(headers="Location: /Patient/patient-id-77\r\n"))).origin)
    assert "patient-id-77" not in caplog.text


def test_response_repr_shows_no_content(serve, transport):
    assert "phi" not in repr(get(transport, serve(always(answer(b"phi", headers="X-A: phi\r\n"))).origin))


def test_pieces_come_before_the_end(serve, transport):
    gate = threading.Event()

    def handle(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        gate.wait(5)
        connection.sendall(b"after")

    origin = serve(handle).origin
    with transport.stream(
        "GET", origin, allowed_origins=frozenset({origin}), deadline_s=5, max_bytes=100
    ) as response:
        pieces = response.iter_bytes()
        assert next(pieces) == b"first"
        gate.set()
        assert b"".join(pieces) == b"after"


def test_stream_left_early_gives_its_connection_up(serve, transport):
    server = serve(always(answer(bytes(8 * MEBIBYTE))))
    options = {"allowed_origins": frozenset({server.origin}), "deadline_s": 5, "max_bytes": 2**30}
    with transport.stream("GET", server.origin, **options) as response:
        next(response.iter_bytes())
    with transport.stream("GET", server.origin, **options) as response:
        assert len(b"".join(response.iter_bytes())) == 8 * MEBIBYTE


def test_error_of_the_reader_is_not_told_as_the_servers(serve, transport):
    origin = serve(always(answer())).origin

    def read():
        with transport.stream(
            "GET", origin, allowed_origins=frozenset({origin}), deadline_s=5, max_bytes=9
        ) as response:
            next(response.iter_bytes())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
