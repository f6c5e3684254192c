"""A bounded closed-loop load over loopback: keep-alive connections, one thread a caller, raw sockets.

`http.client` is used on purpose: a heavier client would hide the server's own time.
"""

import http.client
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Latencies:
    """Milliseconds of every answered call."""

    ms: tuple[float, ...]
    failures: int

    @classmethod
    def joined(cls, rounds: Sequence["Latencies"]) -> "Latencies":
        return cls(tuple(ms for one in rounds for ms in one.ms), sum(one.failures for one in rounds))

    def quantile(self, share: float) -> float:
        ordered = sorted(self.ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def __str__(self) -> str:
        return (
            f"p50 {statistics.median(self.ms):6.2f} ms   p99 {self.quantile(0.99):6.2f} ms   "
            f"{len(self.ms)} calls, {self.failures} failed"
        )


def measure(
    base_url: str, calls: Sequence[Call], *, callers: int, expect: frozenset[int] = frozenset({200})
) -> Latencies:
    """Send each of `calls` once, spread over `callers` connections, and time each whole exchange.

    An answer of another status than is expected counts as failed, and not as quick.
    """
    parts = urlsplit(base_url)
    pending: Iterator[Call] = iter(calls)
    lock, times, failures = threading.Lock(), list[float](), list[int]()

    def caller() -> None:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
        while True:
            with lock:
                call = next(pending, None)
            if call is None:
                connection.close()
                return
            started = time.perf_counter()
            connection.request(call.method, call.path, call.body, call.headers)
            response = connection.getresponse()
            response.read()
            elapsed = (time.perf_counter() - started) * 1000
            with lock:
                (times if response.status in expect else failures).append(elapsed)  # type: ignore[arg-type]

    threads = [threading.Thread(target=caller) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return Latencies(tuple(times), len(failures))
