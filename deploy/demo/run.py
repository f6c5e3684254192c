"""`rayhook demo`: the service as a child process, a demo EHR and a demo PACS beside it, all on loopback."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rayhook.deploy.demo.catalogue import Catalogue, build_catalogue
from rayhook.deploy.demo.ehr import (
    EHR_ID,
    SENDER_SECRET,
    SUBSCRIPTION_SECRET,
    DemoEHR,
    create_ehr,
    demo_registry_toml,
)
from rayhook.deploy.demo.ehr_page import Pages
from rayhook.deploy.demo.new_study import NewStudies
from rayhook.deploy.demo.pacs import DemoPACS, create_pacs
from rayhook.deploy.demo.staff import FILE as STAFF_FILE
from rayhook.deploy.demo.staff import DemoAccount, authenticator, demo_staff
from rayhook.fhir.errors import ServiceUnavailable
from rayhook.inference.statement import INVESTIGATIONAL_SHORT

_READY_S = 120.0
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class DemoAddresses:
    """Base URLs of the three servers, without a trailing slash."""

    rayhook: str
    ehr: str
    pacs: str

    @classmethod
    def from_port(cls, port: int) -> "DemoAddresses":
        return cls(*(f"http://{_LOOPBACK}:{port + offset}" for offset in range(3)))


@dataclass(frozen=True, slots=True)
class DemoPeers:
    """The running demo EHR and PACS, with their fault switches."""

    ehr: DemoEHR
    pacs: DemoPACS


def run_demo(*, dataset: Path | None, data_dir: Path, port: int, console: Console) -> None:
    """Run until interrupted. Raises ServiceUnavailable if a port is taken or the service does not get ready."""
    addresses = DemoAddresses.from_port(port)
    for offset in range(3):
        _require_free(port + offset)
    data_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with _step(console, "preparing studies for the demo PACS"):
            catalogue = build_catalogue(data_dir / "pacs", dataset)
        with _step(console, "starting the demo EHR and PACS"):
            stack.enter_context(demo_peers(catalogue, addresses, data_dir))
        with _step(console, "starting Rayhook (the first start prepares the model)"):
            process = stack.enter_context(rayhook_process(addresses, data_dir))
            wait_until_ready(addresses.rayhook, process)
        with _step(console, "subscribing to new studies at the demo EHR"):
            subscribe(addresses, data_dir)
        _announce(console, addresses, catalogue, demo_staff(data_dir))
        _wait_for_end(process)


@contextmanager
def demo_peers(catalogue: Catalogue, addresses: DemoAddresses, data_dir: Path) -> Iterator[DemoPeers]:
    """Serve the demo EHR and PACS in threads of this process; write the registry file that names them."""
    ehr = create_ehr(
        catalogue,
        base_url=addresses.ehr,
        cds_base_url=addresses.rayhook,
        pacs_base_url=addresses.pacs,
        keys_dir=data_dir / "ehr-keys",
        offers_new_study=True,
    )
    ehr.include_router(
        authenticator(
            Pages(addresses.rayhook), data_dir / STAFF_FILE, sign_in_url=f"{addresses.rayhook}/sign-in"
        )
    )
    pacs = create_pacs(catalogue, introspect=ehr.state.accepts_token)
    arriving = NewStudies(
        catalogue, pacs.state.demo.archive, ehr.state.demo.store, data_dir / "pacs" / "arrived"
    )
    ehr.include_router(arriving.router())
    for name in (SUBSCRIPTION_SECRET, SENDER_SECRET):
        _keep_secret(data_dir / name)
    (data_dir / "ehrs.toml").write_text(
        demo_registry_toml(ehr_base_url=addresses.ehr, pacs_base_url=addresses.pacs, secrets_dir=data_dir)
    )
    with serving(ehr, addresses.ehr), serving(pacs, addresses.pacs):
        yield DemoPeers(ehr.state.demo, pacs.state.demo)


@contextmanager
def serving(app: FastAPI, base_url: str) -> Iterator[None]:
    """Serve `app` at `base_url` in a thread until the block ends."""
    port = httpx.URL(base_url).port
    assert port is not None
    server = uvicorn.Server(uvicorn.Config(app, host=_LOOPBACK, port=port, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, name=f"demo-{port}", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise ServiceUnavailable(f"port {port} could not be opened", code="port_unavailable")
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=10)


@contextmanager
def rayhook_process(addresses: DemoAddresses, data_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `rayhook serve` in development mode over `data_dir`; its log goes to `rayhook.log` there."""
    with (data_dir / "rayhook.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "rayhook.deploy.cli", "serve"],
            env=_environment(addresses, data_dir),
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def subscribe(addresses: DemoAddresses, data_dir: Path) -> None:
    """Have the demo EHR tell the running service of new studies."""
    with (data_dir / "rayhook.log").open("ab") as log:
        ended = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "rayhook.deploy.cli", "subscription", "create", "--ehr", EHR_ID],
            env=_environment(addresses, data_dir),
            stdout=log,
            stderr=log,
            check=False,
        )
    if ended.returncode != 0:
        raise ServiceUnavailable(
            "the demo EHR could not be subscribed to; see rayhook.log in the data folder",
            code="not_subscribed",
        )


def _environment(addresses: DemoAddresses, data_dir: Path) -> dict[str, str]:
    return {
        **os.environ,
        "RAYHOOK_ENVIRONMENT": "development",
        "RAYHOOK_DATA_DIR": str(data_dir),
        "RAYHOOK_EHR_REGISTRY": str(data_dir / "ehrs.toml"),
        "RAYHOOK_PUBLIC_BASE_URL": addresses.rayhook,
        "RAYHOOK_PORT": str(httpx.URL(addresses.rayhook).port),
    }


def _keep_secret(path: Path) -> None:
    """Make a secret where there is none, readable by its owner alone."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secrets.token_urlsafe(32)}\n")


def wait_until_ready(base_url: str, process: subprocess.Popen[bytes], *, timeout_s: float = _READY_S) -> None:
    """Return when `/health/ready` answers 200. Raises ServiceUnavailable if the process ends or time runs out."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServiceUnavailable(
                f"rayhook serve ended with status {process.returncode}; see rayhook.log in the data folder",
                code="service_ended",
            )
        try:
            if httpx.get(f"{base_url}/health/ready", timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise ServiceUnavailable("rayhook serve did not get ready in time", code="not_ready")


def _require_free(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, port))
        except OSError as error:
            raise ServiceUnavailable(
                f"port {port} is in use; choose another with --port", code="port_unavailable"
            ) from error


@contextmanager
def _step(console: Console, description: str) -> Iterator[None]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(description, total=None)
        yield
    console.print(f"[green]✓[/green] {description}")


def _announce(
    console: Console, addresses: DemoAddresses, catalogue: Catalogue, staff: list[DemoAccount]
) -> None:
    officer = staff[0]
    console.print(
        f"\n[bold]Demo EHR[/bold]        {addresses.ehr}/   [green]open this, then a patient[/green]\n"
        f"[bold]CDS Hooks[/bold]       {addresses.rayhook}/cds-services\n"
        f"[bold]FHIR read API[/bold]   {addresses.rayhook}/fhir/R4/metadata\n"
        f"[bold]Demo PACS[/bold]       {addresses.pacs}/dicom-web/studies   (needs the EHR's token)\n"
        f"[bold]Staff pages[/bold]     {addresses.rayhook}/staff   account {officer.name}, password {officer.password}\n"
        f"                codes and the other demo accounts: {addresses.ehr}/authenticator\n\n"
        f"{len(catalogue.studies)} studies. Phantoms and test files are no patients.\n"
        f"[yellow]{INVESTIGATIONAL_SHORT}[/yellow]\n"
        "Stop with Ctrl-C.",
        highlight=False,
        soft_wrap=True,
    )


def _wait_for_end(process: subprocess.Popen[bytes]) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        process.wait()
    except KeyboardInterrupt:
        return
    raise ServiceUnavailable(
        f"rayhook serve ended with status {process.returncode}; see rayhook.log in the data folder",
        code="service_ended",
    )
