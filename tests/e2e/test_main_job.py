"""`make run`, as a person sees it: open a patient, read the card, follow its link, find the audit whole."""

import json
import re
import sqlite3
import subprocess
import sys

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Demo

pytestmark = pytest.mark.browser

ANALYSIS_MS = 120_000


def open_patient(page: Page, demo: Demo, patient_id: str) -> None:
    page.goto(f"{demo.addresses.ehr}/")
    page.locator(f'a[href="/patients/{patient_id}"]').click()
    expect(page.locator('.cards[data-in-progress="false"]').first).to_be_visible(timeout=ANALYSIS_MS)


def open_result(page: Page, demo: Demo, patient_id: str) -> None:
    open_patient(page, demo, patient_id)
    page.locator("#cards .card a.button").first.click()


def rayhook(demo: Demo, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rayhook.deploy.cli", *arguments, "--data-dir", str(demo.data_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def tumour(demo: Demo) -> str:
    """A held-out patient of the data set, in which every patient has a tumour."""
    return next(s.patient_id for s in demo.catalogue.studies if s.patient_id.startswith("dataset-"))


def test_opening_a_patient_shows_a_card_with_the_finding(page, demo, tumour):
    open_patient(page, demo, tumour)
    expect(page.locator("#cards .card h3").first).to_contain_text(
        re.compile("neoplasm|tumou?r", re.IGNORECASE)
    )


def test_the_card_says_investigational(page, demo, tumour):
    open_patient(page, demo, tumour)
    expect(page.locator("#cards .card").first).to_contain_text(re.compile("investigational", re.IGNORECASE))


def test_an_experimental_model_never_raises_more_than_info(page, demo, tumour):
    open_patient(page, demo, tumour)
    expect(page.locator("#cards .card.warning, #cards .card.critical")).to_have_count(0)


def test_the_link_shows_the_result_page(page, demo, tumour):
    open_result(page, demo, tumour)
    app = page.frame_locator("iframe")
    expect(app.locator("#verdict-title")).to_be_visible()


def test_the_result_page_shows_the_images(page, demo, tumour):
    open_result(page, demo, tumour)
    app = page.frame_locator("iframe")
    app.locator('rayhook-viewer[data-state="shown"]').wait_for()
    canvas = app.locator('.rv-pane[data-drawn="yes"] canvas.cornerstone-canvas')
    assert (
        canvas.evaluate(
            "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
        )
        > 16
    )


def test_the_report_is_written_back_as_preliminary(page, demo, tumour):
    open_patient(page, demo, tumour)
    page.reload()
    report = page.locator("#reports .report").first
    expect(report).to_contain_text("preliminary", timeout=ANALYSIS_MS)


def test_a_ct_is_told_as_not_analysed(page, demo):
    patient = next(s.patient_id for s in demo.catalogue.studies if s.modality == "CT")
    open_patient(page, demo, patient)
    expect(page.locator("#cards .card").first).to_contain_text(re.compile("not analysed", re.IGNORECASE))


def test_pages_raise_no_console_error(page, demo, tumour):
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_result(page, demo, tumour)
    expect(page.frame_locator("iframe").locator("#verdict-title")).to_be_visible()
    assert errors == []


def test_signing_an_order_shows_a_card(page, demo, tumour):
    open_patient(page, demo, tumour)
    page.get_by_role("button", name="Sign imaging order").click()
    expect(page.locator("#order-cards .card").first).to_be_visible()


def test_the_audit_is_intact(demo, tumour, page):
    open_patient(page, demo, tumour)
    run = rayhook(demo, "audit", "verify", "--json")
    assert (run.returncode, json.loads(run.stdout)["intact"]) == (0, True)


def test_the_audit_tells_of_the_main_job(demo, tumour, page):
    open_result(page, demo, tumour)
    expect(page.frame_locator("iframe").locator("#verdict-title")).to_be_visible()
    with sqlite3.connect(demo.data_dir / "rayhook.sqlite3") as database:
        kinds = {kind for (kind,) in database.execute("SELECT DISTINCT kind FROM audit_event")}
    assert kinds >= {
        "cds_hooks:service:called",
        "cds_hooks:card:returned",
        "dicomweb:study:retrieved",
        "fhir:result:written",
        "inference:job:enqueued",
        "inference:study:analysed",
        "smart_app:result:viewed",
        "smart_app:session:created",
    }


@pytest.mark.parametrize("path", ["/results/unknown", "/patient", "/fhir/R4/DiagnosticReport?patient=1"])
def test_nothing_is_shown_without_a_session(demo, path):
    assert httpx.get(demo.addresses.rayhook + path).status_code in {401, 404}


def test_no_patient_is_named_in_the_log(demo, page, tumour):
    open_result(page, demo, tumour)
    log = (demo.data_dir / "rayhook.log").read_text()
    named = {s.patient_id for s in demo.catalogue.studies} | {
        s.dicom_patient_id for s in demo.catalogue.studies
    }
    named |= {s.study_instance_uid for s in demo.catalogue.studies}
    assert [value for value in named if value in log] == []
