"""A whole installation on loopback, each piece a process of its own: databases, EHR and PACS, the API, and workers."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

from rayhook.deploy.demo.ledger import Entry, entry_of
from tests.conftest import ROOT
from tests.faults.line import Line
from tests.faults.peers import LEDGER, REGISTRY
from tests.faults.servers import PostgreSQL, Redis
from tests.ports import free_port

_READY_S = 90.0
_STOP_S = 20.0
_JOBS = "SELECT state, error_code, max(attempts), max(retries), count(*) FROM analysis_job GROUP BY 1, 2"


class Process:
    """One child, which may be killed and started again; its log goes on in one file."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self._arguments, self._environment = arguments, environment
        self._log = folder / f"{name}.log"
        self._child: subprocess.Popen[bytes] | None = None
        self._begins_at = 0
        self._left: list[psutil.Process] = []

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def has_crashed(self) -> bool:
        """Return whether a signal that nobody sent ended it, as a segmentation fault does."""
        return self._child is not None and (self._child.poll() or 0) < 0

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._begins_at = log.tell()
            self._child = subprocess.Popen(
                [sys.executable, "-m", *self._arguments],
                env=self._environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def has_said(self, event: str) -> bool:
        """Return whether the process of now has logged it."""
        with self._log.open(errors="replace") as log:
            log.seek(self._begins_at)
            return f'"event": "{event}"' in log.read()

    def kill(self) -> float:
        """End it with SIGKILL, the one process alone; return when."""
        assert self._child is not None
        with suppress(psutil.NoSuchProcess):
            self._left += psutil.Process(self._child.pid).children(recursive=True)
        at = time.time()
        self._child.kill()
        self._child.wait(timeout=_STOP_S)
        return at

    def stop(self) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
        for one in self.orphans():
            with suppress(psutil.NoSuchProcess):
                one.kill()

    def orphans(self) -> list[psutil.Process]:
        """Return the children of killed ones that still live."""
        return [one for one in self._left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def cpu_s(self) -> float:
        total = 0.0
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.pid)
            for one in (own, *own.children(recursive=True)):
                times = one.cpu_times()
                total += times.user + times.system
        return total

    def log(self) -> str:
        return self._log.read_text(errors="replace")


@dataclass
class Cluster:
    """The running installation. `events` are the faults that were done, with the time of each."""

    folder: Path
    peers: Process
    api: Process
    ehr_line: Line
    pacs_line: Line
    service_url: str
    door: httpx.Client
    environment: dict[str, str]
    workers: list[Process] = field(default_factory=list)
    postgresql: PostgreSQL | None = None
    redis: Redis | None = None
    events: list[tuple[float, str]] = field(default_factory=list)
    _entries: list[Entry] = field(default_factory=list)
    _read: int = 0

    def note(self, what: str) -> float:
        at = time.time()
        self.events.append((at, what))
        return at

    def entries(self) -> list[Entry]:
        """Return the ledger as far as it is written; what was read before is not read again."""
        path = self.folder / LEDGER
        if path.exists():
            with path.open("rb") as ledger:
                ledger.seek(self._read)
                for line in ledger:
                    if line.endswith(b"\n"):
                        self._read += len(line)
                        self._entries.append(entry_of(line))
        return self._entries

    def switch(self, **switches: dict[str, Any]) -> None:
        self.door.post("/test/faults", json=switches).raise_for_status()

    def view(self, patient: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.door.post(f"/test/view/{patient}").raise_for_status().json()
        return answer

    def held(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = self.door.get("/test/held").raise_for_status().json()
        return found

    def cpu_s(self) -> float:
        """Return the processor time of the service, EHR and PACS: of what lives, and of what was killed before."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (
            ended.ru_utime
            + ended.ru_stime
            + sum(one.cpu_s() for one in (self.peers, self.api, *self.workers))
        )

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.postgresql.url) as connection:
            return connection.execute(sql).fetchall()  # type: ignore[arg-type]  # a literal of the tests

    def await_api(self) -> None:
        wait_for(self._is_ready, _READY_S, "the API to be ready")

    def _is_ready(self) -> bool:
        assert self.api.is_running, self.api.log()[-2000:]
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.service_url}/health/ready", timeout=2).is_success
        return False


def wait_for(is_so: Callable[[], bool], timeout_s: float, what: str | Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:.0f} s for {what if isinstance(what, str) else what()}")
        time.sleep(0.1)


@contextmanager
def running_cluster(folder: Path, *, studies: int, workers: int = 2) -> Iterator[Cluster]:
    """Start an API and workers over PostgreSQL and Redis, and stop all of it."""
    with ExitStack() as stack:
        postgresql = PostgreSQL()
        stack.callback(postgresql.close)
        redis = Redis(folder / "redis", free_port())
        stack.callback(redis.close)
        settings = {
            "DATABASE_URL": postgresql.url,
            "RAYHOOK_REDIS_URL": redis.url,
            "RAYHOOK_WORKER": "separate",
        }
        cluster = stack.enter_context(_serving(folder, studies, settings))
        cluster.postgresql, cluster.redis = postgresql, redis
        for number in range(workers):
            worker = Process(
                f"worker-{number}", ["rayhook.deploy.cli", "worker"], cluster.environment, folder
            )
            stack.callback(worker.stop)
            worker.start()
            cluster.workers.append(worker)
        yield cluster


@contextmanager
def running_alone(folder: Path, *, studies: int, **settings: str) -> Iterator[Cluster]:
    """Start the service as one process over SQLite, without Redis."""
    with _serving(folder, studies, settings) as cluster:
        yield cluster


@contextmanager
def _serving(folder: Path, studies: int, settings: dict[str, str]) -> Iterator[Cluster]:
    folder.mkdir(parents=True, exist_ok=True)
    ports = {name: free_port() for name in ("ehr", "ehr_line", "pacs", "pacs_line", "api")}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    environment = {
        **os.environ,
        "RAYHOOK_DATA_DIR": str(folder / "data"),
        "RAYHOOK_EHR_REGISTRY": str(folder / REGISTRY),
        "RAYHOOK_ENVIRONMENT": "development",
        "RAYHOOK_HOOK_WAIT_S": "0.05",
        "RAYHOOK_MODELS": "mri-flair-tumour",
        "RAYHOOK_PIPELINE_THREADS": "1",
        "RAYHOOK_PORT": str(ports["api"]),
        "RAYHOOK_PUBLIC_BASE_URL": urls["api"],
        "RAYHOOK_VIEWER_DECODER_PROCESSES": "1",
        **settings,
    }
    where = [urls["ehr_line"], urls["pacs_line"], str(ports["ehr"]), str(ports["pacs"]), urls["api"]]
    with ExitStack() as stack:
        lines = [Line(ports[f"{one}_line"], ports[one]) for one in ("ehr", "pacs")]
        for line in lines:
            stack.callback(line.close)
        peers = Process(
            "peers", ["tests.faults.peers", str(folder), str(studies), *where], {**os.environ}, folder
        )
        api = Process("api", ["rayhook.deploy.cli", "serve"], environment, folder)
        for process in (peers, api):
            stack.callback(process.stop)
        cluster = Cluster(
            folder,
            peers,
            api,
            *lines,
            service_url=urls["api"],
            door=stack.enter_context(httpx.Client(base_url=urls["ehr"], timeout=60)),
            environment=environment,
        )
        peers.start()
        wait_for(lambda: _answers(cluster.door), _READY_S, "the EHR and the PACS")
        api.start()
        cluster.await_api()
        yield cluster


def _answers(door: httpx.Client) -> bool:
    with suppress(httpx.TransportError):
        return door.get("/test/ready").is_success
    return False


def describe(cluster: Cluster) -> str:
    """Return what a failure has to tell: what was done when, how the jobs stand, and how each log ends."""
    begun = cluster.events[0][0] if cluster.events else 0.0
    done = [f"{at - begun:7.1f} s  {what}" for at, what in cluster.events]
    jobs = []
    if cluster.postgresql is not None:
        with suppress(psycopg.Error):
            jobs = [str(row) for row in cluster.query(_JOBS)]
    logs = [f"--- {one.name}\n{one.log()[-1500:]}" for one in (cluster.api, *cluster.workers)]
    return "\n".join([*done, *jobs, *logs])


def shuffled(things: list[str], seed: int) -> list[str]:
    random.Random(seed).shuffle(things)
    return things


def as_json(figures: dict[str, object], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
