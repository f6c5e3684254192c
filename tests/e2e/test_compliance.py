"""The compliance officer's path: sign in, find, read, verify, report, export, hold, review; an intact and a tampered log."""

import sqlite3
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from rayhook.auth.one_time_codes import STEP_S, current_code
from rayhook.deploy.demo.staff import FILE, DemoAccount, demo_staff, read_demo_staff
from tests.e2e.conftest import WAIT_MS, Demo
from tests.e2e.tour import analyse, launch, overflow, show, violations, watched

pytestmark = pytest.mark.browser

PATIENT = "phantom-lesion"
EHR = "demo-ehr"


@pytest.fixture(scope="module")
def account(demo: Demo) -> DemoAccount:
    """The demo's officer; the log has a patient who was analysed and looked at."""
    analyse(demo, PATIENT)
    demo_staff(demo.data_dir)
    return read_demo_staff(demo.data_dir / FILE)[0]


_used: set[str] = set()


def fresh_code(account: DemoAccount) -> str:
    """Return a code that was not shown yet: each counts once."""
    while (code := current_code(account.secret, time.time())) in _used:
        time.sleep(STEP_S / 10)
    _used.add(code)
    return code


def sign_in(page: Page, demo: Demo, account: DemoAccount) -> None:
    page.goto(f"{demo.addresses.rayhook}/sign-in")
    page.get_by_label("Account name").fill(account.name)
    page.get_by_label("Password").fill(account.password)
    page.get_by_label("Code of your authenticator app").fill(fresh_code(account))
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("h1")).to_have_text("Staff pages")


@pytest.fixture
def officer(browser: Browser, demo: Demo, account: DemoAccount) -> Iterator[Page]:
    with watched(browser, demo) as page:
        sign_in(page, demo, account)
        yield page


def looked_at(page: Page) -> None:
    """What is asked of every page of the officer's, in the light and in the dark."""
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert violations(page) == []
    assert overflow(page) <= 0


def search(page: Page, **typed: str) -> None:
    page.get_by_role("link", name="Audit", exact=True).first.click()
    page.get_by_label("EHR", exact=True).select_option(EHR)
    for label, value in typed.items():
        page.get_by_label(label.replace("_", " ")).fill(value)
    page.get_by_role("button", name="Search").click()


@contextmanager
def changed_past_the_service(demo: Demo, seq: int) -> Iterator[None]:
    """An event's outcome as somebody with the database's own tools changes it; put back in the end."""

    def put(outcome: int) -> None:
        with sqlite3.connect(demo.data_dir / "rayhook.sqlite3", timeout=30) as database:
            triggers = database.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'audit_event'"
            ).fetchall()
            for name, _ in triggers:
                database.execute(f"DROP TRIGGER {name}")
            database.execute("UPDATE audit_event SET outcome = ? WHERE seq = ?", (outcome, seq))
            for _, sql in triggers:
                database.execute(sql)
        database.close()

    put(4)
    try:
        yield
    finally:
        put(0)


def verify(page: Page, demo: Demo) -> None:
    page.goto(f"{demo.addresses.rayhook}/staff/audit/integrity")
    page.get_by_role("button", name="Verify now").click()
    expect(page.get_by_role("button", name="Verify now")).to_be_visible()


def test_officer_searches_and_reads_an_event(officer: Page, demo: Demo) -> None:
    page = officer
    launch(page, demo, PATIENT)
    page.locator(".study").first.wait_for()
    page.goto(f"{demo.addresses.rayhook}/staff/audit")
    looked_at(page)
    show(page, "audit-newest")

    search(page, **{"Patient's_id": PATIENT})
    expect(page.locator(".events tbody tr").first).to_contain_text(PATIENT)
    assert PATIENT not in page.url
    looked_at(page)
    show(page, "audit-search")

    # The newest fill a page by themselves once a patient is much looked at.
    page.get_by_label("What happened").select_option("inference:study:analysed")
    page.get_by_role("button", name="Search").click()
    page.locator(".events tr", has_text="A model analysed a study").first.locator("a").click()
    expect(page.locator(".story")).to_contain_text(f"It concerned patient {PATIENT}")
    assert page.locator(".events tbody tr").count() > 3
    page.get_by_text("As FHIR AuditEvent").click()
    looked_at(page)
    show(page, "audit-event", full=True)
    with page.expect_download() as proof:
        page.get_by_role("link", name="Download the inclusion proof").click()
    assert '"path"' in Path(proof.value.path()).read_text()

    page.get_by_role("link", name="The whole story of this study").click()
    expect(page.locator(".events tbody tr").first).to_be_visible()


def test_officer_verifies_reports_exports_and_holds(officer: Page, demo: Demo) -> None:
    page = officer
    verify(page, demo)
    expect(page.locator("#verdict")).to_contain_text("Every event is as it was written.")
    looked_at(page)
    show(page, "audit-intact")

    page.get_by_role("link", name="Reports on a patient").click()
    looked_at(page)
    show(page, "audit-reports")
    form = page.locator("form", has_text="Make the access report")
    form.get_by_label("Patient's id").fill(PATIENT)
    form.get_by_role("button").click()
    expect(page.locator("h1")).to_have_text("Access report")
    expect(page.locator("table")).to_contain_text("analysed by a model of this service")
    looked_at(page)
    show(page, "audit-access-report")

    page.get_by_role("link", name="Export").click()
    looked_at(page)
    with page.expect_download() as export:
        page.get_by_role("button", name="Export").click()
    with zipfile.ZipFile(export.value.path()) as archive:
        assert any(name.endswith(".manifest.json") for name in archive.namelist())
    show(page, "audit-export")

    page.get_by_role("link", name="Retention and holds").click()
    page.get_by_label("Reason").fill("Case 17")
    page.get_by_label("EHR", exact=True).select_option(EHR)
    page.get_by_label("Patient's id").fill(PATIENT)
    page.get_by_role("button", name="Place the hold").click()
    expect(page.locator("table")).to_contain_text("Case 17")
    looked_at(page)
    show(page, "audit-holds")
    page.get_by_role("button", name="Release").click()
    expect(page.locator("table")).to_contain_text("Released")


def test_what_a_rule_found_is_reviewed(officer: Page, demo: Demo) -> None:
    page = officer
    for _ in range(6):
        page.request.get(f"{demo.addresses.rayhook}/staff/accounts")
    page.goto(f"{demo.addresses.rayhook}/staff/audit/reviews")
    item = page.locator(".review", has_text="Repeated denials").first
    expect(item).to_contain_text("demo.officer")
    looked_at(page)
    show(page, "audit-review-open")
    item.get_by_role("button", name="Close").click()
    expect(page.get_by_role("alert")).to_contain_text("Write what you found before you close it.")
    item.get_by_label("Note").fill("A wrong bookmark of our own; talked to.")
    item.get_by_role("button", name="Close").click()
    expect(page.locator(".review", has_text="A wrong bookmark").first).to_contain_text("Closed")
    looked_at(page)
    show(page, "audit-review-closed")


def test_a_tampered_log_raises_an_alarm_on_every_page(officer: Page, demo: Demo) -> None:
    page = officer
    search(page, **{"Patient's_id": PATIENT})
    seq = int(page.locator(".events tbody tr a").first.inner_text())
    with changed_past_the_service(demo, seq):
        verify(page, demo)
        expect(page.locator("#verdict")).to_contain_text("Events are not as they were written.")
        expect(page.locator("dd", has_text=str(seq)).first).to_be_visible()
        looked_at(page)
        show(page, "audit-tampered")
        page.goto(f"{demo.addresses.rayhook}/staff")
        expect(page.get_by_role("alert")).to_contain_text("The audit trail is not intact.")
    verify(page, demo)
    page.goto(f"{demo.addresses.rayhook}/staff")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_pages_are_whole_without_a_script(browser: Browser, demo: Demo, account: DemoAccount) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    sign_in(page, demo, account)
    search(page, **{"Patient's_id": PATIENT})
    expect(page.locator(".events tbody tr").first).to_contain_text(PATIENT)
    verify(page, demo)
    expect(page.locator("#verdict")).to_contain_text("Every event is as it was written.")
    context.close()
