"""A Redis of the test's own: Debian's, which has TLS."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis

from tests.doubles.certificates import Pair

PASSWORD = "s3cret-of-the-test"
_START_S = 20.0


def program() -> str | None:
    return shutil.which("redis-server")


@dataclass
class RedisServer:
    """With a certificate on TCP, without one on a socket; it keeps nothing on disk."""

    folder: Path
    port: int = 0
    pair: Pair | None = None
    protocols: str = "TLSv1.2 TLSv1.3"
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        if self.pair is None:
            return f"unix://:{PASSWORD}@{self.folder / 'redis.sock'}"
        return f"rediss://:{PASSWORD}@localhost:{self.port}/0"

    def start(self) -> None:
        command = [str(program()), "--dir", str(self.folder), "--save", "", "--requirepass", PASSWORD]
        command += ["--unixsocket", str(self.folder / "redis.sock"), "--port", "0", "--bind", "127.0.0.1"]
        if self.pair is not None:
            command += ["--tls-port", str(self.port), "--tls-auth-clients", "no"]
            command += ["--tls-cert-file", str(self.pair.certificate), "--tls-key-file", str(self.pair.key)]
            command += ["--tls-ca-cert-file", str(self.pair.certificate), "--tls-protocols", self.protocols]
            command += ["--tls-ciphers", "ALL:@SECLEVEL=0"]
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_S
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "redis.log").read_text()
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self, seconds: float) -> None:
        """Accept and say nothing, as one whose disk or machine hangs."""
        with self.client() as client:
            client.client_pause(int(seconds * 1000))

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.folder / "redis.sock"), password=PASSWORD)

    def content(self) -> bytes:
        """Return every key and value that it holds."""
        with self.client() as client:
            return b"\n".join(key + b" " + (client.dump(key) or b"") for key in client.keys("*"))

    def _answers(self) -> bool:
        with suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False


@contextmanager
def running(
    folder: Path, *, port: int = 0, pair: Pair | None = None, **options: str
) -> Iterator[RedisServer]:
    server = RedisServer(folder, port, pair, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
