"""The administrator's pages on the service itself, in a browser: analyses without a result, and the settings."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database
from rayhook.deploy.demo.staff import FILE, DemoAccount, demo_staff, read_demo_staff
from rayhook.inference import jobs
from tests.e2e.conftest import Demo
from tests.e2e.test_compliance import looked_at, sign_in
from tests.e2e.tour import show, watched
from tests.unit.inference.samples import reference

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def account(demo: Demo) -> DemoAccount:
    demo_staff(demo.data_dir)
    return next(one for one in read_demo_staff(demo.data_dir / FILE) if one.role == "administrator")


@pytest.fixture
def administrator(browser: Browser, demo: Demo, account: DemoAccount) -> Iterator[Page]:
    with watched(browser, demo) as page:
        sign_in(page, demo, account)
        yield page


@pytest.fixture
def failed(demo: Demo) -> str:
    """An analysis that failed for a passing reason, of an EHR that is not there any more."""
    keyring = Keyring.load_or_create(demo.data_dir / "keyring.json")
    database = create_database(f"sqlite:///{demo.data_dir / 'rayhook.sqlite3'}")
    with database.sessions() as session:
        row, _ = jobs.enqueue(session, keyring, reference(), None, key="e2e", request_id="request-e2e")
        claimed = jobs.claim(session, keyring, row.id, lease_s=60)
        assert claimed is not None
        jobs.fail(session, claimed, code="upstream_timeout", message="too slow", retryable=True)
        session.commit()
    database.close()
    return row.id


def test_the_administrator_has_a_failed_analysis_tried_again(administrator: Page, failed: str) -> None:
    page = administrator
    page.get_by_role("link", name="Analyses", exact=True).first.click()
    row = page.locator("tr", has_text=failed)
    expect(row).to_contain_text("upstream_timeout")
    looked_at(page)
    show(page, "staff-jobs")
    row.get_by_role("button").click()
    expect(page.locator("h1")).to_have_text("Analyses")
    expect(page.locator("tr", has_text=failed).filter(has_text="upstream_timeout")).to_have_count(0)


def test_the_administrator_reads_what_the_service_runs_with(administrator: Page) -> None:
    page = administrator
    page.get_by_role("link", name="Settings", exact=True).first.click()
    expect(page.locator("h1")).to_have_text("Settings")
    expect(page.locator("main")).to_contain_text("RAYHOOK_PUBLIC_BASE_URL")
    looked_at(page)
    show(page, "staff-settings")
