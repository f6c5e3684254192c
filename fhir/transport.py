"""The one outbound HTTP client: every request to an EHR, a PACS or a key server goes through here.

What it holds to, whoever calls it and whatever answers:
- only origins that the caller's EHR has registered, compared exactly, never by prefix;
- the resolved address is checked and then connected to, TLS verifying the name;
- one deadline for the whole exchange, name look-up and a dripping body included;
- a cap on the decoded body;
- no redirects, cookies, proxies or credentials from the environment;
- no token, path or query in an error or a log line.
"""

import logging
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpcore
import structlog

from rayhook.fhir.correlation import request_id
from rayhook.fhir.errors import (
    EgressDenied,
    InvalidRequest,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from rayhook.fhir.network import AddressPolicy, CheckedBackend, Deadline, Resolver
from rayhook.fhir.wire import URL, Headers, decoded, encode_headers, parse_url, retry_after_s

log = structlog.get_logger()
# httpcore logs response headers at DEBUG, and a Location header holds a patient's id.
logging.getLogger("httpcore").setLevel(logging.WARNING)

_MEBIBYTE = 1024 * 1024
_MAX_ATTEMPTS = 3
_FIRST_PAUSE_S = 0.1
_RETRIED_METHODS = frozenset({"GET", "HEAD"})
_RETRIED_STATUSES = frozenset({429, 503})
_LOOPBACK_HOST = re.compile(r"localhost|127(?:\.[0-9]{1,3}){3}|\[::1\]")


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StreamedResponse:
    """An answer whose body is still on its way; `iter_bytes` can be gone through once."""

    status: int
    headers: Headers = field(repr=False)
    _chunks: Iterator[bytes] = field(repr=False)

    def iter_bytes(self) -> Iterator[bytes]:
        """Yield the decoded body; raises as `Transport.request` does."""
        return self._chunks


@dataclass(frozen=True, slots=True)
class _Exchange:
    method: str
    url: URL
    deadline: Deadline
    headers: list[tuple[bytes, bytes]] = field(repr=False)
    content: bytes | None = field(repr=False)


class Transport:
    """Safe to share between threads; connections are kept and used again.

    ca_bundle replaces the system's trust store.
    private_origins are those whose registration says that they are on the hospital's own network, or on this
    host: only they may resolve to private addresses.
    allow_loopback_http is the development switch: any allowed origin may be on loopback, and there without TLS.
    """

    def __init__(
        self,
        *,
        ca_bundle: Path | None = None,
        allow_loopback_http: bool = False,
        private_origins: frozenset[str] = frozenset(),
        max_body_bytes: int = 16 * _MEBIBYTE,
        connect_timeout_s: float = 2.0,
        resolver: Resolver = socket.getaddrinfo,
    ) -> None:
        self._allow_loopback_http = allow_loopback_http
        self._max_body_bytes = max_body_bytes
        self._connect_timeout_s = connect_timeout_s
        policy = AddressPolicy(allow_loopback_http, frozenset(map(_endpoint, private_origins)))
        self._backend = CheckedBackend(policy, resolver)
        self._pool = httpcore.ConnectionPool(
            ssl_context=_tls_context(ca_bundle),
            max_connections=64,
            max_keepalive_connections=16,
            keepalive_expiry=30.0,
            network_backend=self._backend,
        )

    def request(
        self,
        method: str,
        url: str,
        *,
        allowed_origins: frozenset[str],
        deadline_s: float,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        max_bytes: int | None = None,
    ) -> Response:
        """Send one request and read the whole answer, whatever its status; a 3xx is an answer like any other.

        GET and HEAD are tried again within the deadline where no connection came about, or on 429 and 503.
        Raises EgressDenied, UpstreamTimeout, UpstreamUnavailable, and UpstreamError for an answer that is too
        large or damaged.
        """
        limit = self._max_body_bytes if max_bytes is None else max_bytes
        with self.stream(
            method,
            url,
            allowed_origins=allowed_origins,
            deadline_s=deadline_s,
            headers=headers,
            content=content,
            max_bytes=limit,
        ) as response:
            return Response(response.status, response.headers, b"".join(response.iter_bytes()))

    @contextmanager
    def stream(
        self,
        method: str,
        url: str,
        *,
        allowed_origins: frozenset[str],
        deadline_s: float,
        max_bytes: int,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> Iterator[StreamedResponse]:
        """Send one request and leave the body to be read piece by piece, all within the one deadline."""
        permitted = self._permitted(url, allowed_origins)
        exchange = _Exchange(
            method=method.upper(),
            url=permitted,
            deadline=Deadline.after(deadline_s),
            content=content,
            headers=_fields(permitted, headers or {}, content),
        )
        answer = self._answer(exchange)
        try:
            fields = Headers(answer.headers)
            yield StreamedResponse(answer.status, fields, _body(exchange, answer, fields, max_bytes))
        finally:
            answer.close()

    def close(self) -> None:
        self._pool.close()
        self._backend.close()

    def _permitted(self, text: str, allowed_origins: frozenset[str]) -> URL:
        try:
            url = parse_url(text)
        except InvalidRequest as error:
            raise EgressDenied("the address is not a plain http(s) URL") from error
        if url.origin not in allowed_origins:
            log.warning("egress_denied", reason="origin")
            raise EgressDenied("the address is not at a registered origin")
        if url.scheme == "http" and not (self._allow_loopback_http and _LOOPBACK_HOST.fullmatch(url.host)):
            log.warning("egress_denied", reason="scheme", origin=url.origin)
            raise EgressDenied("http is allowed to loopback only, and there only in development")
        return url

    def _answer(self, exchange: _Exchange) -> httpcore.Response:
        """Return the answer that counts, after the tries that the deadline has room for; its body is unread."""
        attempt = 0
        while True:
            attempt += 1
            try:
                answer = self._send(exchange)
            except UpstreamUnavailable:
                pause_s = _pause_s(exchange, attempt)
                if pause_s is None:
                    raise
            else:
                pause_s = _pause_s(exchange, attempt, answer)
                if pause_s is None:
                    return answer
                answer.close()
            log.info("outbound_repeated", origin=exchange.url.origin, attempt=attempt)
            time.sleep(pause_s)

    def _send(self, exchange: _Exchange) -> httpcore.Response:
        url, deadline = exchange.url, exchange.deadline
        request = httpcore.Request(
            exchange.method,
            httpcore.URL(scheme=url.scheme, host=url.host.strip("[]"), port=url.port, target=url.target),
            headers=exchange.headers,
            content=exchange.content,
            extensions={
                "timeout": {
                    "connect": deadline.within(self._connect_timeout_s),
                    "read": deadline,
                    "write": deadline,
                    "pool": max(0.0, deadline.remaining()),
                }
            },
        )
        with _told(exchange):
            return self._pool.handle_request(request)


def origin_of(url: str) -> str:
    """Return `scheme://host[:port]`, lower case, the scheme's own port left out.

    Raises InvalidRequest for anything but a plain http(s) URL: no user information, no trailing dot.
    """
    return parse_url(url).origin


def _endpoint(origin: str) -> tuple[str, int]:
    url = parse_url(origin)
    return url.host.strip("[]"), url.port


def _tls_context(ca_bundle: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_bundle)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _fields(url: URL, headers: Mapping[str, str], content: bytes | None) -> list[tuple[bytes, bytes]]:
    """Accept-Encoding: PACS compress pixels at ten times the cost of sending them."""
    fields = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "rayhook"}
    if request_id.get():
        fields["x-request-id"] = request_id.get()
    fields |= {name.lower(): value for name, value in headers.items()}
    fields["host"] = url.origin.partition("://")[2]
    if content is not None:
        fields["content-length"] = str(len(content))
    return encode_headers(fields)


def _pause_s(exchange: _Exchange, attempt: int, answer: httpcore.Response | None = None) -> float | None:
    """Return how long to wait before the next try, None where this try's outcome is the one to tell."""
    if exchange.method not in _RETRIED_METHODS or attempt >= _MAX_ATTEMPTS:
        return None
    if answer is not None and answer.status not in _RETRIED_STATUSES:
        return None
    asked_s = None if answer is None else retry_after_s(Headers(answer.headers))
    pause_s = _FIRST_PAUSE_S * 2 ** (attempt - 1) if asked_s is None else asked_s
    return pause_s if pause_s < exchange.deadline.remaining() else None


def _body(
    exchange: _Exchange, answer: httpcore.Response, headers: Headers, max_bytes: int
) -> Iterator[bytes]:
    with _told(exchange):
        yield from decoded(answer.iter_stream(), headers, max_bytes=max_bytes)


@contextmanager
def _told(exchange: _Exchange) -> Iterator[None]:
    """Tell httpcore's errors as ours.

    Protocol errors are not chained: h11 quotes the offending header line, and it may hold a token or an id.
    """
    origin = exchange.url.origin
    try:
        yield
    except EgressDenied:
        log.warning("egress_denied", reason="address", origin=origin)
        raise
    except httpcore.TimeoutException as error:
        raise UpstreamTimeout(f"{origin} did not answer within the deadline") from error
    except httpcore.NetworkError as error:
        if _is_certificate_error(error):
            raise UpstreamError(f"{origin} has no valid certificate", code="tls_refused") from error
        raise UpstreamUnavailable(f"{origin} cannot be reached") from error
    except httpcore.RemoteProtocolError:
        raise UpstreamUnavailable(f"{origin} broke off, or does not speak HTTP/1.1") from None
    except httpcore.LocalProtocolError:
        raise InvalidRequest("the request is not well-formed HTTP") from None


def _is_certificate_error(error: httpcore.NetworkError) -> bool:
    """The pool drops the cause of an error, not its arguments."""
    return bool(error.args) and isinstance(error.args[0], ssl.SSLCertVerificationError)
