"""The whole product as `make run` starts it, and a browser in front of it."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from rayhook.deploy.demo.catalogue import Catalogue, build_catalogue
from rayhook.deploy.demo.run import DemoAddresses, DemoPeers, demo_peers, rayhook_process, wait_until_ready
from tests.conftest import absent
from tests.ports import free_port

CHROMIUM = os.environ.get("CHROMIUM", shutil.which("chromium") or "")
WAIT_MS = 60_000  # what comes at once on a quiet machine takes seconds on a busy one
expect.set_options(timeout=WAIT_MS)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--no-first-run",
]


@dataclass(frozen=True)
class Demo:
    addresses: DemoAddresses
    catalogue: Catalogue
    data_dir: Path
    peers: DemoPeers

    def patient(self, *, phantom: bool, containing: str = "") -> str:
        return next(
            study.patient_id
            for study in self.catalogue.studies
            if study.is_phantom == phantom and containing in study.description
        )


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, mri_lgg: Path) -> Iterator[Demo]:
    data_dir = tmp_path_factory.mktemp("demo")
    addresses = DemoAddresses.from_port(free_port(3))
    catalogue = build_catalogue(data_dir / "pacs", mri_lgg)
    with (
        demo_peers(catalogue, addresses, data_dir) as peers,
        rayhook_process(addresses, data_dir) as process,
    ):
        wait_until_ready(addresses.rayhook, process)
        yield Demo(addresses, catalogue, data_dir, peers)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        absent("Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    yield page
    context.close()
