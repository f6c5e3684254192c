"""A line between the service and a server, which a test can cut as networks are cut: in the middle of an answer."""

import contextlib
import socket
import threading
import time
from enum import Enum

_PIECE = 64 << 10


class Cut(Enum):
    """`answer_lost`: the server gets the whole request and does what it asks, and its answer never comes back.

    `half_closed`: a part of the answer comes, then the sending side is closed, and the connection stays open.
    `silent`: a part of the answer comes, then nothing more until the line is mended, and then the end.
    """

    ANSWER_LOST = "answer lost"
    HALF_CLOSED = "half closed"
    SILENT = "silent"


class Line:
    """Listens on a port and passes bytes on to another; `cut` is what happens to the answers from now on."""

    def __init__(self, port: int, target: int, *, after: int = 2000) -> None:
        self.cut: Cut | None = None
        self.cuts = 0
        self._target, self._after = target, after
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            ends = threading.Barrier(2, action=lambda near=near, far=far: self._end(near, far))
            for run, source, target in ((self._ask, near, far), (self._answer, far, near)):
                threading.Thread(target=self._run, args=(run, source, target, ends), daemon=True).start()

    def _run(self, run, source: socket.socket, target: socket.socket, ends: threading.Barrier) -> None:
        with contextlib.suppress(OSError):
            run(source, target)
        ends.wait()

    def _ask(self, near: socket.socket, far: socket.socket) -> None:
        while piece := near.recv(_PIECE):
            far.sendall(piece)
        far.shutdown(socket.SHUT_WR)

    def _answer(self, far: socket.socket, near: socket.socket) -> None:
        sent = 0
        while piece := far.recv(_PIECE):
            cut = self.cut
            if cut is None:
                near.sendall(piece)
                sent += len(piece)
                continue
            self.cuts += 1
            if cut is Cut.ANSWER_LOST:
                near.shutdown(socket.SHUT_RDWR)
                return
            near.sendall(piece[: max(0, self._after - sent)])
            while cut is Cut.SILENT and self.cut is cut:
                time.sleep(0.05)
            near.shutdown(socket.SHUT_WR)
            return
        near.shutdown(socket.SHUT_WR)

    def _end(self, near: socket.socket, far: socket.socket) -> None:
        with self._lock:
            self._open -= {near, far}
        near.close()
        far.close()
