"""Sockets for the transport: the address checked is the address connected to, and a deadline binds every call."""

import ipaddress
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import httpcore

from rayhook.fhir.errors import EgressDenied

Resolver = Callable[..., Iterable[tuple[Any, ...]]]
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_MAX_LOOKUPS = 8
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_PRIVATE = tuple(
    ipaddress.ip_network(block)
    for block in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fec0::/10")
)
# Cloud metadata services outside link-local space: Alibaba, and AWS and Google over IPv6.
_METADATA = frozenset(
    ipaddress.ip_address(text) for text in ("100.100.100.200", "fd00:ec2::254", "fd20:ce::254")
)


class Deadline(float):
    """A moment on the monotonic clock.

    It rides through httpcore in the place of a timeout, so that every connect, read and write is given what is
    left of the whole; an ordinary timeout begins anew with every byte that drips in.
    """

    __slots__ = ()

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    def within(self, seconds: float) -> "Deadline":
        return min(self, Deadline.after(seconds))

    def remaining(self) -> float:
        return self - time.monotonic()


class AddressKind(Enum):
    FORBIDDEN = auto()
    LOOPBACK = auto()
    PRIVATE = auto()
    PUBLIC = auto()


def address_kind(address: _Address) -> AddressKind:
    """Say what kind of network an address is in, looking through IPv6 forms that embed an IPv4 address.

    Spec: IANA IPv4 and IPv6 Special-Purpose Address Registries; RFC 6052, RFC 3056, RFC 4380
    """
    inner = _embedded(address)
    if inner is not None:
        return address_kind(inner)
    if address.is_loopback:
        return AddressKind.LOOPBACK
    if address in _METADATA or address.is_multicast or address.is_reserved:
        return AddressKind.FORBIDDEN
    if any(address in block for block in _PRIVATE):
        return AddressKind.PRIVATE
    return AddressKind.PUBLIC if address.is_global else AddressKind.FORBIDDEN


def _embedded(address: _Address) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _IPV4_COMPATIBLE and int(address) > 1:
        return ipaddress.IPv4Address(int(address))
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Which addresses a name may stand for.

    `private_endpoints` are the (host, port) pairs registered as being on the hospital's own network or host.
    Link-local, multicast, unspecified, reserved and metadata addresses are refused to every name.
    """

    allow_loopback: bool = False
    private_endpoints: frozenset[tuple[str, int]] = frozenset()

    def permits(self, host: str, port: int, address: _Address) -> bool:
        kind = address_kind(address)
        private = (host, port) in self.private_endpoints
        if host == "localhost" and kind is not AddressKind.LOOPBACK:
            return False
        return (
            kind is AddressKind.PUBLIC
            or (kind is AddressKind.PRIVATE and private)
            or (kind is AddressKind.LOOPBACK and (private or self.allow_loopback))
        )


@dataclass(frozen=True, slots=True)
class _Endpoint:
    family: int
    socket_address: tuple[Any, ...]


class CheckedBackend(httpcore.NetworkBackend):
    """Connects to the very address that passed the policy, so that a second look-up cannot change it.

    TLS still verifies the name: httpcore hands the host of the URL to `start_tls`.
    """

    def __init__(self, policy: AddressPolicy, resolver: Resolver) -> None:
        self._policy = policy
        self._resolver = resolver
        # getaddrinfo takes no timeout: it is waited for from outside.
        self._lookups = ThreadPoolExecutor(_MAX_LOOKUPS, thread_name_prefix="lookup")

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002 - httpcore's interface
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - httpcore's interface
    ) -> httpcore.NetworkStream:
        endpoints = self._checked(host, port, timeout)
        with _told_as(httpcore.ConnectTimeout, httpcore.ConnectError):
            return DeadlineStream(_connect(endpoints, timeout))

    def close(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)

    def _checked(self, host: str, port: int, timeout: float | None) -> list[_Endpoint]:
        """One refused address refuses the name: an honest name does not mix public and private answers."""
        endpoints = self._resolve(host, port, timeout)
        for endpoint in endpoints:
            address = ipaddress.ip_address(str(endpoint.socket_address[0]).partition("%")[0])
            if not self._policy.permits(host, port, address):
                raise EgressDenied(
                    "the host's address is in a network that its registration does not allow",
                    code="address_refused",
                )
        return endpoints

    def _resolve(self, host: str, port: int, timeout: float | None) -> list[_Endpoint]:
        with _told_as(httpcore.ConnectTimeout, httpcore.ConnectError):
            lookup = self._lookups.submit(self._resolver, host, port, type=socket.SOCK_STREAM)
            answers = lookup.result(timeout=_left(timeout))
            endpoints = [_Endpoint(answer[0], answer[4]) for answer in answers]
            if not endpoints:
                raise OSError("the name has no address")
            return endpoints


class DeadlineStream(httpcore.NetworkStream):
    """A connected socket whose every call ends at the deadline it is given."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _told_as(httpcore.ReadTimeout, httpcore.ReadError):
            self._socket.settimeout(_left(timeout))
            return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        unsent = memoryview(buffer)
        with _told_as(httpcore.WriteTimeout, httpcore.WriteError):
            while unsent:
                self._socket.settimeout(_left(timeout))
                unsent = unsent[self._socket.send(unsent) :]

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        try:
            with _told_as(httpcore.ConnectTimeout, httpcore.ConnectError):
                self._socket.settimeout(_left(timeout))
                return DeadlineStream(ssl_context.wrap_socket(self._socket, server_hostname=server_hostname))
        except (httpcore.ConnectTimeout, httpcore.ConnectError):
            self.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        """Answer what the pool asks before it uses a kept connection again: is it still open."""
        if info == "is_readable":
            return _is_readable(self._socket)
        return self._socket if info == "socket" else None


def _connect(endpoints: list[_Endpoint], timeout: float | None) -> socket.socket:
    """Connect to the first endpoint that answers; the last one's error is the one told."""
    for endpoint in endpoints[:-1]:
        try:
            return _connect_one(endpoint, timeout)
        except TimeoutError:
            raise
        except OSError:
            continue
    return _connect_one(endpoints[-1], timeout)


def _connect_one(endpoint: _Endpoint, timeout: float | None) -> socket.socket:
    connection = socket.socket(endpoint.family, socket.SOCK_STREAM)
    try:
        connection.settimeout(_left(timeout))
        connection.connect(endpoint.socket_address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        connection.close()
        raise
    return connection


def _left(timeout: float | None) -> float:
    assert isinstance(timeout, Deadline)
    left = timeout.remaining()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


def _is_readable(connection: socket.socket) -> bool:
    if connection.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


@contextmanager
def _told_as(timeout: type[Exception], failure: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise timeout(error) from error
    except (OSError, UnicodeError) as error:
        raise failure(error) from error
