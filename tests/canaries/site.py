"""The whole product among taps: every address that is asked for, every word to Redis, every file while it is open."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socket import create_connection
from typing import Any

import httpx
import psutil

from rayhook.deploy.demo.catalogue import DemoStudy
from rayhook.deploy.demo.ehr import (
    SENDER_SECRET,
    SUBSCRIPTION_SECRET,
    DemoEHR,
    create_ehr,
    demo_registry_toml,
)
from rayhook.deploy.demo.pacs import DemoPACS, create_pacs
from rayhook.deploy.demo.run import serving
from tests.canaries.canaries import Found, Search, token
from tests.canaries.patient import catalogue_in, chart
from tests.faults.cluster import Process, wait_for
from tests.faults.servers import PostgreSQL, Redis
from tests.ports import free_port

_READY_S = 240.0
_LOOKS_S = 0.25


@dataclass
class Tap:
    """Before a server: notes what it is asked for, and answers in its stead where the test says so."""

    app: Any = None
    asked: list[str] = field(default_factory=list)
    answer: Callable[[str, str], tuple[int, bytes] | None] = lambda _method, _path: None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        query = scope["query_string"].decode("latin-1")
        self.asked.append(f"{scope['method']} {scope['raw_path'].decode('latin-1')}?{query}")
        instead = self.answer(scope["method"], scope["path"])
        if instead is None:
            await self.app(scope, receive, send)
            return
        status, body = instead
        headers = [(b"content-type", b"application/fhir+json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Monitor:
    """Everything that anybody says to a Redis, as its MONITOR tells it."""

    def __init__(self, url: str) -> None:
        port = int(url.rpartition(":")[2].partition("/")[0])
        self._socket = create_connection(("127.0.0.1", port))
        self._socket.sendall(b"MONITOR\r\n")
        self._said: list[bytes] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(OSError):
            while data := self._socket.recv(65536):
                self._said.append(data)

    @property
    def said(self) -> bytes:
        return b"".join(self._said)

    def close(self) -> None:
        self._socket.close()


class Watch:
    """Looks again and again at what the processes have open, at their arguments, and at the folders."""

    def __init__(self, search: Search, folders: tuple[Path, ...]) -> None:
        self._search, self._folders = search, folders
        self._pids: list[int] = []
        self._stopped = threading.Event()
        self.found: list[Found] = []
        self.looked_at: set[str] = set()
        self._thread = threading.Thread(target=self._look_until_stopped, daemon=True)

    def of(self, process: Process) -> None:
        self._pids.append(process.pid)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def look(self) -> None:
        for folder in self._folders:
            for path in folder.rglob("*"):
                with suppress(OSError):
                    self._read(path)
        for process in self._processes():
            with suppress(OSError, psutil.Error):
                self._note("arguments", " ".join(process.cmdline()).encode())
                for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
                    self._open_file(descriptor)

    def _processes(self) -> Iterator[psutil.Process]:
        for pid in self._pids:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                yield process
                yield from process.children(recursive=True)

    def _open_file(self, descriptor: Path) -> None:
        """Read what has a name no more too; shared memory is none of the disk's."""
        with suppress(OSError):
            target = str(descriptor.readlink())
            if target.endswith(" (deleted)") and not target.startswith(("/dev/", "/memfd:")):
                self._read(descriptor)

    def _read(self, path: Path) -> None:
        if path.is_file():
            self._note(str(path), path.read_bytes())

    def _note(self, where: str, data: bytes) -> None:
        self.looked_at.add(where)
        self.found += self._search.within(data, where)

    def _look_until_stopped(self) -> None:
        while not self._stopped.wait(_LOOKS_S):
            self.look()


@dataclass
class Site:
    folder: Path
    ehr: DemoEHR
    pacs: DemoPACS
    ehr_tap: Tap
    pacs_tap: Tap
    ehr_url: str
    pacs_url: str
    service_url: str
    environment: dict[str, str]
    processes: dict[str, Process]
    watch: Watch
    studies: tuple[DemoStudy, ...]
    redis: Redis | None = None
    monitor: Monitor | None = None
    postgresql: PostgreSQL | None = None
    visited: list[str] = field(default_factory=list)
    browsers: list[httpx.Client] = field(default_factory=list)
    answers: list[tuple[str, bytes]] = field(default_factory=list)

    def secret(self, name: str) -> str:
        return (self.folder / name).read_text().strip()

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def browser(self, user: str) -> httpx.Client:
        """Return a browser of an EHR's user whose visits to the service are noted."""

        def note(response: httpx.Response) -> None:
            if str(response.url).startswith(self.service_url):
                self.visited.append(str(response.url))

        client = httpx.Client(
            follow_redirects=True,
            headers={"Accept": "text/html", "Sec-Fetch-Site": "same-origin"},
            timeout=60,
            event_hooks={"response": [note]},
        )
        client.get(f"{self.ehr_url}/user", params={"user": user})
        self.browsers.append(client)
        return client

    def launch(self, browser: httpx.Client, patient: str) -> httpx.Response:
        query = {"url": f"{self.service_url}/smart/launch"}
        return browser.get(f"{self.ehr_url}/patients/{patient}/launch", params=query)

    def await_ready(self) -> None:
        wait_for(self._is_ready, _READY_S, f"the service\n{self.processes['api'].log()[-3000:]}")

    def _is_ready(self) -> bool:
        assert self.processes["api"].is_running, self.processes["api"].log()[-3000:]
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.service_url}/health/ready", timeout=2).is_success
        return False

    def logs(self) -> list[Path]:
        return sorted(self.folder.glob("*.log"))


@contextmanager
def running_site(folder: Path, search: Search, *, distributed: bool) -> Iterator[Site]:
    """Run the product as one process over SQLite, or as API and worker over PostgreSQL and Redis."""
    for name in ("data", "tmp", "cwd"):
        (folder / name).mkdir(parents=True)
    catalogue = catalogue_in(folder / "images")
    urls = {name: f"http://127.0.0.1:{free_port()}" for name in ("api", "ehr", "pacs")}
    ehr = create_ehr(
        catalogue,
        base_url=urls["ehr"],
        cds_base_url=urls["api"],
        pacs_base_url=urls["pacs"],
        keys_dir=folder / "ehr-keys",
    )
    for study in catalogue.studies:
        ehr.state.demo.store.seed(chart(study))
    pacs = create_pacs(catalogue, introspect=ehr.state.accepts_token)
    for name in (SUBSCRIPTION_SECRET, SENDER_SECRET):
        (folder / name).write_text(f"{token()}\n")
        (folder / name).chmod(0o600)
    toml = demo_registry_toml(ehr_base_url=urls["ehr"], pacs_base_url=urls["pacs"], secrets_dir=folder)
    # A clinician is nobody here but in an emergency; who signs is the radiologist, by a role of their own.
    rules = "practitioner_roles = []\nbreak_glass = true\n"
    (folder / "ehrs.toml").write_text(toml.replace("dicom_results =", f"{rules}dicom_results =", 1))
    environment = {
        **os.environ,
        "RAYHOOK_DATA_DIR": str(folder / "data"),
        "RAYHOOK_EHR_REGISTRY": str(folder / "ehrs.toml"),
        "RAYHOOK_ENVIRONMENT": "development",
        "RAYHOOK_LOG_LEVEL": "DEBUG",
        "RAYHOOK_MODELS": "mri-flair-tumour",
        "RAYHOOK_PIPELINE_THREADS": "1",
        "RAYHOOK_PORT": urls["api"].rpartition(":")[2],
        "RAYHOOK_PUBLIC_BASE_URL": urls["api"],
        "TMPDIR": str(folder / "tmp"),
    }
    with ExitStack() as stack:
        taps = Tap(ehr), Tap(pacs)
        stack.enter_context(serving(taps[0], urls["ehr"]))  # type: ignore[arg-type]  # any ASGI app will do
        stack.enter_context(serving(taps[1], urls["pacs"]))  # type: ignore[arg-type]
        watch = Watch(search, (folder / "tmp", folder / "data", folder / "cwd"))
        site = Site(
            folder,
            ehr.state.demo,
            pacs.state.demo,
            *taps,
            urls["ehr"],
            urls["pacs"],
            urls["api"],
            environment,
            {},
            watch,
            catalogue.studies,
        )
        if distributed:
            _distribute(site, stack)
        names = {"api": "serve", "worker": "worker"} if distributed else {"api": "serve"}
        for name, command in names.items():
            process = Process(name, ["rayhook.deploy.cli", command], site.environment, folder)
            stack.callback(process.stop)
            process.start()
            watch.of(process)
            site.processes[name] = process
        stack.callback(_closed, site)
        watch.start()
        stack.callback(watch.stop)
        site.await_ready()
        yield site


def _distribute(site: Site, stack: ExitStack) -> None:
    site.postgresql = PostgreSQL()
    stack.callback(site.postgresql.close)
    site.redis = Redis(site.folder / "redis", free_port())
    stack.callback(site.redis.close)
    site.monitor = Monitor(site.redis.url)
    stack.callback(site.monitor.close)
    site.environment |= {
        "DATABASE_URL": site.postgresql.url,
        "RAYHOOK_REDIS_URL": site.redis.url,
        "RAYHOOK_WORKER": "separate",
    }


def _closed(site: Site) -> None:
    for browser in site.browsers:
        browser.close()


def hidden(page: httpx.Response, name: str) -> str:
    """Return the value of a page's hidden field or mark."""
    found = re.search(rf'name="{name}" (?:value|content)="([^"]*)"', page.text)
    assert found, f"{page.url} has no {name}: {page.status_code}"
    return found[1]


def in_time(what: Callable[[], bool], name: str, timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, f"waited for {name}"
        time.sleep(0.2)
