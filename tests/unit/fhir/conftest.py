import contextlib
import ssl
from collections.abc import Callable, Iterator

import pytest

from rayhook.fhir.transport import Transport
from tests.doubles.raw_server import Handler, RawServer


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    with contextlib.ExitStack() as stack:

        def start(handle: Handler, *, tls: ssl.SSLContext | None = None) -> RawServer:
            server = RawServer(handle, tls)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def transport() -> Iterator[Transport]:
    transport = Transport(allow_loopback_http=True)
    yield transport
    transport.close()
