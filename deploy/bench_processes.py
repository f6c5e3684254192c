"""The processes of a bench: started, awaited, stopped, and what each kind of them uses of the machine."""

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import psutil
from sqlalchemy import text

from rayhook.deploy.database import Database
from rayhook.deploy.demo.peers import READY
from rayhook.fhir.errors import ServiceUnavailable

_START_S: Final = 600.0
_STOP_S: Final = 60.0
_DECODER = "rayhook.inference.decode_child"
_ENGINE = "multiprocessing"


@dataclass(frozen=True, slots=True)
class Use:
    """CPU seconds since the processes began, and resident bytes now, by kind of process."""

    cpu_s: Mapping[str, float]
    resident_bytes: Mapping[str, int]

    def since(self, before: "Use") -> dict[str, float]:
        """Return the CPU seconds used meanwhile."""
        return {kind: used - before.cpu_s.get(kind, 0.0) for kind, used in self.cpu_s.items()}


def use_of(processes: Mapping[str, Iterable[int]]) -> Use:
    """Return what the processes use, by kind, and those that they began: decoders and engines apart."""
    cpu: dict[str, float] = defaultdict(float)
    resident: dict[str, int] = defaultdict(int)
    for kind, numbers in processes.items():
        for number in numbers:
            for process, own in _family(number, kind):
                try:
                    times, memory = process.cpu_times(), process.memory_info()
                except psutil.NoSuchProcess:
                    continue
                cpu[own] += times.user + times.system
                resident[own] += memory.rss
    return Use(dict(cpu), dict(resident))


def _family(number: int, kind: str) -> Iterator[tuple[psutil.Process, str]]:
    try:
        parent = psutil.Process(number)
        children = parent.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    yield parent, kind
    for child in children:
        yield child, _kind_of(child, kind)


def _kind_of(child: psutil.Process, kind: str) -> str:
    try:
        command = " ".join(child.cmdline())
    except psutil.Error:
        return kind
    if _DECODER in command:
        return f"{kind}: decoders"
    return f"{kind}: engines" if _ENGINE in command else kind


def database_processes(database: Database) -> list[int]:
    """Return the PostgreSQL server that runs on this machine; none where it is elsewhere, or SQLite."""
    if database.engine.dialect.name != "postgresql":
        return []
    query = "SELECT pg_backend_pid(), inet_server_addr() IS NULL OR inet_server_addr() << '127.0.0.0/8'"
    with database.reading() as session:
        number, is_here = session.execute(text(query)).one()
    if not is_here or not psutil.pid_exists(number):
        return []
    postmaster = psutil.Process(number).parent()
    return [] if postmaster is None else [postmaster.pid]


@contextmanager
def process(
    arguments: list[str], log: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python with the arguments until the block ends; what it writes goes to `log`."""
    with log.open("ab") as output:
        started = subprocess.Popen(  # noqa: S603 - our own interpreter over our own modules
            [sys.executable, *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def await_health(started: subprocess.Popen[bytes], port: int, what: str) -> None:
    """Return when the process answers that it is ready. Raises ServiceUnavailable where it ends or is late."""

    def is_ready() -> bool:
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=2)
        except httpx.TransportError:
            return False
        return answer.status_code == httpx.codes.OK

    _await(started, what, is_ready)


def await_word(started: subprocess.Popen[bytes], log: Path, what: str) -> None:
    _await(started, what, lambda: READY.encode() in log.read_bytes())


def _await(started: subprocess.Popen[bytes], what: str, is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_S
    while not is_ready():
        if started.poll() is not None:
            raise ServiceUnavailable(f"{what} ended with status {started.returncode}", code="bench_ended")
        if time.monotonic() > deadline:
            raise ServiceUnavailable(f"{what} did not get ready in time", code="bench_not_ready")
        time.sleep(0.1)
