"""Ports to serve on: below those that the system gives to clients, and no two processes of the suite share any."""

import os
import random
import socket
from contextlib import ExitStack, suppress
from itertools import count

_FIRST, _LAST, _PROCESSES = 20_000, 32_000, 8
_EACH = (_LAST - _FIRST) // _PROCESSES
_number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PROCESSES
_tried = count(random.randrange(_EACH))


def free_port(in_a_row: int = 1) -> int:
    """Return the first of some ports in a row that nobody listens on; the same ones come again only much later."""
    for _ in range(_EACH):
        own = [next(_tried) % _EACH for _ in range(in_a_row)]
        ports = [_FIRST + _number * _EACH + place for place in own]
        with ExitStack() as probes, suppress(OSError):
            for port in ports:
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            if ports[-1] - ports[0] == in_a_row - 1:
                return ports[0]
    raise AssertionError("no port is free")


def free_url() -> str:
    return f"http://127.0.0.1:{free_port()}"
