"""Answering and signing in a browser, by mouse, by keyboard alone and without a script: the EHR shows it."""

import re

import httpx
import pytest
from playwright.sync_api import Browser, FrameLocator, Page, expect

from rayhook.deploy.demo.ehr_seed import PRACTITIONER_ID, RADIOLOGIST_ID
from tests.e2e.conftest import Demo

pytestmark = pytest.mark.browser

ANALYSIS_MS = 120_000


def open_result(page: Page, demo: Demo, patient: str, user: str = RADIOLOGIST_ID) -> FrameLocator:
    page.goto(f"{demo.addresses.ehr}/user?user={user}")
    page.goto(f"{demo.addresses.ehr}/patients/{patient}")
    expect(page.locator('.cards[data-in-progress="false"]').first).to_be_visible(timeout=ANALYSIS_MS)
    page.locator("#cards .card a.button").first.click()
    app = page.frame_locator("iframe")
    expect(app.locator("#verdict-title")).to_be_visible()
    return app


def report_in_chart(page: Page, demo: Demo, patient: str):
    page.goto(f"{demo.addresses.ehr}/patients/{patient}")
    return page.locator("#reports .report").first


@pytest.fixture(scope="module")
def tumours(demo: Demo) -> list[str]:
    """Patients of the data set, every one of whom has a tumour."""
    return [s.patient_id for s in demo.catalogue.studies if s.patient_id.startswith("dataset-")]


def test_the_report_is_preliminary_until_somebody_signs(page, demo, tumours):
    app = open_result(page, demo, tumours[0])
    app.get_by_role("button", name="Accept").first.click()
    expect(app.locator(".answered").first).to_contain_text("Accepted")
    expect(report_in_chart(page, demo, tumours[0])).to_contain_text("preliminary")


def test_signing_is_seen_in_the_ehr(page, demo, tumours):
    app = open_result(page, demo, tumours[0])
    if app.locator("#report button[value=sign]").count() == 0:
        app.get_by_role("button", name="Accept").first.click()
    app.get_by_role("button", name="Sign the report").click()
    expect(app.locator("#report")).to_contain_text("The EHR has this version.")
    report = report_in_chart(page, demo, tumours[0])
    expect(report).to_contain_text("final")
    expect(report).to_contain_text("interpreted by Demo Radiologist")


def test_the_card_tells_the_radiologists_word(page, demo, tumours):
    page.goto(f"{demo.addresses.ehr}/patients/{tumours[0]}")
    card = page.locator("#cards .card h3").first
    expect(card).to_contain_text(
        re.compile(r"Signed by a radiologist on \d{4}-\d\d-\d\d"), timeout=ANALYSIS_MS
    )


def test_the_models_version_stays_in_the_ehrs_history(demo, tumours):
    store = demo.peers.ehr.store
    (report,) = store.search("DiagnosticReport", [("patient", tumours[0])])
    versions = store.history("DiagnosticReport", report["id"])
    assert [version["status"] for version in versions][:2] == ["preliminary", "final"]


def test_the_second_person_is_told(browser: Browser, demo, tumours):
    contexts = [browser.new_context(), browser.new_context()]
    try:
        first, second = (open_result(c.new_page(), demo, tumours[1]) for c in contexts)
        first.get_by_role("button", name="Accept").first.click()
        expect(first.locator(".answered").first).to_contain_text("Accepted")
        second.get_by_role("button", name="Accept").first.click()
        expect(second.locator("#overtaken-title")).to_be_visible()
        second.get_by_role("button", name="Give my answer all the same").click()
        expect(second.locator(".answered").first).to_contain_text("1 earlier answer")
    finally:
        for context in contexts:
            context.close()


def test_a_finding_is_answered_by_keyboard_alone(page, demo, tumours):
    app = open_result(page, demo, tumours[2])
    app.locator(".act > summary").first.focus()
    page.keyboard.press("Enter")
    value = app.locator("section.finding select[name=value]").first
    value.focus()
    value.press("u")
    expect(value).to_have_value("uncertain")
    reason = app.locator("section.finding details[open] select[name=reason]").first
    reason.focus()
    reason.press("c")
    app.locator("section.finding button[value=edited]").first.focus()
    page.keyboard.press("Enter")
    expect(app.locator(".answered").first).to_contain_text("Uncertain")


def test_answering_and_signing_need_no_script(browser: Browser, demo, tumours):
    """The EHR's frame needs one; our page is opened by itself."""
    patient = tumours[3]
    scripted = browser.new_context()
    plain = browser.new_context(java_script_enabled=False)
    try:
        open_result(scripted.new_page(), demo, patient)
        page = plain.new_page()
        page.goto(f"{demo.addresses.ehr}/user?user={RADIOLOGIST_ID}")
        page.goto(f"{demo.addresses.ehr}/patients/{patient}/launch?url={demo.addresses.rayhook}/smart/launch")
        page.locator('a[href*="/results/"]').first.click()
        page.get_by_role("button", name="Accept").first.click()
        page.get_by_role("button", name="Sign the report").click()
        expect(page.locator("#report")).to_contain_text("The EHR has this version.")
    finally:
        scripted.close()
        plain.close()


def test_a_clinician_is_shown_no_way_to_sign(page, demo, tumours):
    app = open_result(page, demo, tumours[4], PRACTITIONER_ID)
    app.get_by_role("button", name="Accept").first.click()
    expect(app.locator("#report")).to_contain_text("Only a radiologist signs.")
    assert app.get_by_role("button", name="Sign the report").count() == 0


def test_the_model_card_is_two_clicks_from_the_worklist(page, demo, tumours):
    app = open_result(page, demo, tumours[0])
    app.get_by_role("link", name=re.compile("Model card")).click()
    expect(app.locator("[id^=attribute-]")).to_have_count(31)


def test_the_pages_of_review_raise_no_console_error(page, demo, tumours):
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    app = open_result(page, demo, tumours[5])
    app.get_by_role("button", name="Accept").first.click()
    expect(app.locator(".answered").first).to_be_visible()
    assert errors == []


def test_nobody_answers_without_a_session(demo):
    answer = httpx.post(f"{demo.addresses.rayhook}/results/unknown/answers", data={"action": "accepted"})
    assert answer.status_code in {400, 401, 403}
