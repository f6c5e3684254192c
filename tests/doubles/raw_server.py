"""Loopback servers that answer in raw bytes, as no HTTP library would let them."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

Handler = Callable[[socket.socket, bytes], None]


@dataclass
class RawServer:
    """Reads one request head and its body at a time and hands both to `handle`, which writes to the socket."""

    handle: Handler
    tls: ssl.SSLContext | None = None
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._stopped = threading.Event()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def origin(self):
        return f"http://127.0.0.1:{self.port}"

    def stop(self):
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def _accept(self):
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            thread = threading.Thread(target=self._converse, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _converse(self, connection):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
                stack.callback(connection.close)
            while not self._stopped.is_set():
                request = self._read(connection)
                if request is None:
                    return
                self.requests.append(request)
                self.handle(connection, request)

    def _read(self, connection):
        data = b""
        while b"\r\n\r\n" not in data or not _complete(data):
            chunk = connection.recv(65536)
            if not chunk:
                return None
            data += chunk
        return data


def _complete(data):
    head, _, body = data.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return True


def answer(body: bytes = b"ok", *, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def always(data: bytes) -> Handler:
    return lambda connection, _: connection.sendall(data)


def in_turn(*answers: bytes) -> Handler:
    """Give each answer once; an empty one closes the connection without a word."""
    left = list(answers)

    def handle(connection, _):
        data = left.pop(0)
        if data:
            connection.sendall(data)
        else:
            connection.shutdown(socket.SHUT_RDWR)

    return handle


def dripping(head: bytes, drop: bytes, *, pause_s: float = 0.05) -> Handler:
    def handle(connection, _):
        connection.sendall(head)
        while True:
            connection.sendall(drop)
            time.sleep(pause_s)

    return handle
