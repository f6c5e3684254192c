"""How long until the first image is on the screen, in Chromium, on the demo.

    python -m tests.benchmarks.bench_viewer [--runs 20] [--warm]

Navigation start is when the browser asks for the result's page, launch and sign-in done; the end is the frame
after the first image was drawn (performance mark `rayhook-first-image`). Each run has a browser of its own with
nothing kept; with --warm the viewer's code is in the browser's cache, as it is from the second result on.
"""

import argparse
import os
import shutil
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console

from rayhook.deploy.demo.catalogue import build_catalogue
from rayhook.deploy.demo.run import DemoAddresses, demo_peers, rayhook_process, wait_until_ready
from tests.e2e.conftest import FLAGS
from tests.ports import free_port

CHROMIUM = os.environ.get("CHROMIUM", shutil.which("chromium") or "")
PATIENT = "phantom-lesion"
MARKS = ("rayhook-viewer-begun", "rayhook-viewer-code", "rayhook-series-told", "rayhook-first-image")


def result_address(page: Page, ehr: str) -> str:
    """Launch as the EHR does, and return where that leads."""
    page.goto(f"{ehr}/patients/{PATIENT}")
    page.locator('.cards[data-in-progress="false"]').first.wait_for(timeout=120_000)
    page.locator("#cards .card a.button").first.click()
    page.frame_locator("iframe").locator("rayhook-viewer").wait_for(timeout=30_000)
    return page.frames[-1].url


def run(browser: Browser, ehr: str, *, warm: bool) -> dict[str, float]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    try:
        page = context.new_page()
        address = result_address(page, ehr)
        if not warm:
            context.new_cdp_session(page).send("Network.clearBrowserCache")
        timed = context.new_page()
        timed.goto(address)
        timed.locator('rayhook-viewer[data-state="shown"]').wait_for(timeout=30_000)
        return timed.evaluate(
            "names => Object.fromEntries(names.map(n => [n, performance.getEntriesByName(n)[0]?.startTime ?? NaN]))",
            list(MARKS),
        )
    finally:
        context.close()


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--warm", action="store_true")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        addresses = DemoAddresses.from_port(free_port(3))
        catalogue = build_catalogue(data_dir / "pacs", None)
        stack.enter_context(demo_peers(catalogue, addresses, data_dir))
        process = stack.enter_context(rayhook_process(addresses, data_dir))
        wait_until_ready(addresses.rayhook, process)
        browser = stack.enter_context(sync_playwright()).chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        stack.callback(browser.close)
        runs = [run(browser, addresses.ehr, warm=chosen.warm) for _ in range(chosen.runs + 1)][1:]
    for name in MARKS:
        times = [one[name] for one in runs]
        Console().print(
            f"{name:24} p50 {statistics.median(times):6.0f} ms   p95 {percentile(times, 0.95):6.0f} ms   "
            f"max {max(times):6.0f} ms"
        )


if __name__ == "__main__":
    main()
