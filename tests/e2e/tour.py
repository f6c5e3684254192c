"""A browser that is watched while it goes through the product, and what is asked of every page it sees."""

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Frame, Page, Request

from tests.conftest import ROOT, absent
from tests.e2e.conftest import WAIT_MS, Demo

AXE = ROOT / "smart_app" / "web" / "node_modules" / "axe-core" / "axe.min.js"
SCREENSHOTS = os.environ.get("RAYHOOK_SCREENSHOTS")
RADIOLOGIST, CLINICIAN = "demo-radiologist", "demo-clinician"
EHR_FRAME = (1280, 800)
TABLETS = ((1024, 768), (768, 1024))
ANALYSIS_S = 120.0
_SHOWN_WIDTH = 1280
_COLOURS = (256, 128, 64)
_MAX_BYTES = 200_000
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
_TELL_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`CSP ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
"""


@dataclass
class Watch:
    """Where a browser's requests went, and what its pages complained of."""

    origins: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in {"about", "blob", "data"}:
            self.origins.add(f"{parts.scheme}://{parts.netloc}")

    def console(self, message: ConsoleMessage) -> None:
        # A page of an error is answered with the error's status, which Chromium tells of as well.
        if message.type in {"error", "warning"} and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)


@contextmanager
def watched(
    browser: Browser,
    demo: Demo,
    *,
    user: str = RADIOLOGIST,
    language: str = "en",
    size: tuple[int, int] = EHR_FRAME,
    scripts: bool = True,
) -> Iterator[Page]:
    """Open a page whose every request has to stay in the demo, and that may not break its own policy."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        locale=language,
        reduced_motion="reduce",
        java_script_enabled=scripts,
    )
    watch = Watch()
    context.on("request", watch.request)
    context.on("console", watch.console)
    context.on("weberror", lambda error: watch.complaints.append(str(error.error)))
    context.add_init_script(_TELL_VIOLATIONS)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    sign_in(context, demo, user)
    yield page
    context.close()
    addresses = demo.addresses
    assert watch.origins <= {addresses.rayhook, addresses.ehr}
    assert watch.complaints == []


def sign_in(context: BrowserContext, demo: Demo, user: str) -> None:
    context.request.get(f"{demo.addresses.ehr}/user?user={user}")


def launch(page: Page, demo: Demo, patient_id: str) -> None:
    """Open the app of its own, without the EHR around it."""
    page.goto(f"{demo.addresses.ehr}/patients/{patient_id}/launch?url={demo.addresses.rayhook}/smart/launch")


def launch_in_ehr(page: Page, demo: Demo, patient_id: str) -> Frame:
    """Open the app in the EHR's frame, and return the frame."""
    page.goto(f"{demo.addresses.ehr}/patients/{patient_id}/app?url={demo.addresses.rayhook}/smart/launch")
    frame = page.frame_locator("iframe")
    frame.locator("h1").wait_for()
    return next(one for one in page.frames if one.url.startswith(demo.addresses.rayhook))


def analyse(demo: Demo, patient_id: str) -> None:
    """Have the EHR ask about the patient until all of their studies are analysed."""
    url = f"{demo.addresses.ehr}/patients/{patient_id}/cards"
    until = time.monotonic() + ANALYSIS_S
    while time.monotonic() < until:
        if 'data-in-progress="false"' in httpx.get(url, timeout=30).text:
            return
    raise AssertionError(f"the analysis of {patient_id} does not end")


def violations(page: Page | Frame) -> list[str]:
    """Return what axe-core finds on the page as it is shown."""
    if not AXE.exists():
        absent("axe-core")
    page.evaluate(AXE.read_text())
    found = page.evaluate("rules => axe.run(document, { runOnly: rules })", _RULES)
    return [
        f"{one['id']}: {one['help']}: {node['target']} {node.get('failureSummary', '')}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def overflow(page: Page | Frame) -> int:
    """Return by how many pixels the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def show(page: Page, name: str, *, full: bool = False) -> None:
    """Write the page as the tour shows it, where a folder is named for that."""
    if SCREENSHOTS is None:
        return
    picture = Image.open(io.BytesIO(page.screenshot(full_page=full, animations="disabled"))).convert("RGB")
    if picture.width > _SHOWN_WIDTH:
        picture = picture.resize((_SHOWN_WIDTH, round(picture.height * _SHOWN_WIDTH / picture.width)))
    file = Path(SCREENSHOTS) / f"{name}.png"
    picture.save(file, optimize=True)
    for colours in _COLOURS:
        if file.stat().st_size <= _MAX_BYTES:
            return
        palette = picture.quantize(colours)
        picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(file, optimize=True)
