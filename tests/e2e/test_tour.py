"""The tour: from the EHR's chart to a signed report in it, and every page and state on the way."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, Frame, Locator, Page, expect

from tests.conftest import ROOT
from tests.e2e.conftest import Demo
from tests.e2e.tour import (
    CLINICIAN,
    EHR_FRAME,
    TABLETS,
    analyse,
    launch,
    launch_in_ehr,
    overflow,
    show,
    violations,
    watched,
)

pytestmark = pytest.mark.browser

LANGUAGES = ("en", "es", "fr")
LOOKED_AT, SIGNED, PLAIN = "phantom-follow-up", "phantom-lesion", "phantom-plain"
VIEWER = ROOT / "tests" / "data" / "viewer" / "tour.png"
READY = 'rayhook-viewer[data-tools="ready"]'
SHOWN = 'rayhook-viewer[data-state="shown"]'


def by_keyboard(demo: Demo) -> str:
    """Return the patient whose report is signed without a mouse: the data set's last, of whom no other test signs."""
    return [one.patient_id for one in demo.catalogue.studies if one.patient_id.startswith("dataset-")][-1]


@pytest.fixture(scope="module", autouse=True)
def analysed(demo: Demo) -> None:
    for patient_id in (LOOKED_AT, SIGNED, PLAIN, by_keyboard(demo)):
        analyse(demo, patient_id)


@pytest.fixture
def radiologist(browser: Browser, demo: Demo) -> Iterator[Page]:
    with watched(browser, demo) as page:
        yield page


def open_first(view: Page | Frame) -> None:
    view.locator(".study .do a").first.click()
    view.locator(READY).wait_for()


def difference(shown: bytes, expected: Path) -> float:
    """Return the mean difference of two pictures of the same size, 0..255 a channel."""
    now = cv2.imdecode(np.frombuffer(shown, np.uint8), cv2.IMREAD_COLOR).astype(int)
    then = cv2.imread(str(expected), cv2.IMREAD_COLOR).astype(int)
    assert now.shape == then.shape
    return float(np.abs(now - then).mean())


def test_the_report_signed_in_the_app_stands_in_the_chart(radiologist, demo):
    page = radiologist
    page.goto(f"{demo.addresses.ehr}/patients/{SIGNED}")
    expect(page.locator("#reports .report").first).to_contain_text("preliminary")
    show(page, "tour-ehr-before")
    app = launch_in_ehr(page, demo, SIGNED)
    expect(app.locator("h1")).to_have_text("Imaging studies")
    expect(app.locator(".study").first).to_contain_text("Neoplasm of brain")
    open_first(app)
    show(page, "tour-ehr-frame")
    app.locator("button[value=accepted]").first.click()
    expect(app.get_by_text("Accepted", exact=True).first).to_be_visible()
    app.get_by_role("button", name="Sign the report").click()
    expect(app.get_by_text("The EHR has this version.")).to_be_visible()
    page.goto(f"{demo.addresses.ehr}/patients/{SIGNED}")
    report = page.locator("#reports .report").first
    expect(report).to_contain_text("final")
    expect(report).to_contain_text("Demo Radiologist")
    show(page, "tour-ehr-signed")


def test_a_signed_study_goes_to_the_end_of_the_list(radiologist, demo):
    launch(radiologist, demo, SIGNED)
    expect(radiologist.locator(".group h2").last).to_contain_text("Signed")
    expect(radiologist.locator(".reviewed.done")).to_have_text("Signed by Demo Radiologist")


def test_the_viewer_looks_as_it_did(radiologist, demo, tmp_path):
    launch(radiologist, demo, LOOKED_AT)
    open_first(radiologist)
    pane = radiologist.locator(".rv-pane").first
    expect(pane).to_have_attribute("data-drawn", "yes")
    expect(pane).to_have_attribute("data-heat", "shown")
    expect(pane.locator(".rv-bottom-left")).not_to_contain_text("loaded")
    shown = radiologist.locator("rayhook-viewer").screenshot(animations="disabled")
    (tmp_path / "shown.png").write_bytes(shown)
    assert difference(shown, VIEWER) < 4, f"compare {tmp_path / 'shown.png'} with {VIEWER}"


def test_the_earlier_study_stands_beside_the_new_one(radiologist, demo):
    launch(radiologist, demo, LOOKED_AT)
    expect(radiologist.locator(".study").first).to_contain_text("Before, Jan 13, 2025")
    open_first(radiologist)
    radiologist.get_by_role("button", name="Compare").click()
    expect(radiologist.locator(".rv-pane")).to_have_count(2)
    expect(radiologist.locator(".rv-pane").nth(1)).to_have_attribute("data-index", "5")
    show(radiologist, "tour-compare")


def tab_to(page: Page, target: Locator, *, most: int = 120) -> None:
    """Press Tab until the target has the focus: what cannot be reached so cannot be used without a mouse."""
    wanted = target.element_handle()
    for _ in range(most):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"{target} is not reached in {most} steps")


def test_keyboard_alone_leads_from_the_list_to_a_signed_report(radiologist, demo):
    page = radiologist
    launch(page, demo, by_keyboard(demo))
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    tab_to(page, page.locator(".study .do a").first)
    page.keyboard.press("Enter")
    page.locator(READY).wait_for()
    canvas = page.locator(".rv-pane").first
    before = canvas.get_attribute("data-index")
    tab_to(page, page.locator("rayhook-viewer [role=application]").first)
    page.keyboard.press("ArrowUp")
    expect(canvas).not_to_have_attribute("data-index", before or "")
    tab_to(page, page.locator("button[value=accepted]").first)
    page.keyboard.press("Enter")
    expect(page.get_by_text("Accepted", exact=True).first).to_be_visible()
    tab_to(page, page.get_by_role("button", name="Sign the report"))
    page.keyboard.press("Enter")
    expect(page.get_by_text("The EHR has this version.")).to_be_visible()


def test_language_is_chosen_by_keyboard_and_stays(radiologist, demo):
    page = radiologist
    launch(page, demo, PLAIN)
    tab_to(page, page.locator(".menu summary"))
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_role("button", name="Español"))
    page.keyboard.press("Enter")
    expect(page.locator("html")).to_have_attribute("lang", "es")
    page.reload()
    expect(page.locator("h1")).to_have_text("Estudios de imagen")


def test_a_clinician_who_is_no_radiologist_may_not_sign(browser, demo):
    with watched(browser, demo, user=CLINICIAN) as page:
        launch(page, demo, LOOKED_AT)
        open_first(page)
        expect(page.get_by_role("button", name="Sign the report")).to_have_count(0)


def test_list_result_and_language_work_without_scripts(browser, demo):
    with watched(browser, demo, user=CLINICIAN, scripts=False) as page:
        launch(page, demo, LOOKED_AT)
        page.locator("#stage").select_option("review")
        page.locator(".filters button").click()
        expect(page.locator(".study")).to_have_count(1)
        page.locator(".study .do a").click()
        expect(page.locator("#image")).to_be_visible()
        page.locator(".menu summary").click()
        page.locator("button[value=fr]").click()
        expect(page.locator("html")).to_have_attribute("lang", "fr")
        expect(page.locator("#verdict-title")).to_be_visible()


def test_paper_shows_the_result_without_what_is_clicked(radiologist, demo):
    launch(radiologist, demo, PLAIN)
    open_first(radiologist)
    radiologist.emulate_media(media="print")
    expect(radiologist.locator("#verdict-title")).to_be_visible()
    expect(radiologist.locator(".investigational")).to_be_visible()
    expect(radiologist.locator(".patient")).to_be_visible()
    expect(radiologist.locator(".close button")).to_be_hidden()


State = Callable[[Page, Demo], None]


def worklist(page: Page, demo: Demo) -> None:
    launch(page, demo, LOOKED_AT)
    page.locator(".study").first.wait_for()


def worklist_explained(page: Page, demo: Demo) -> None:
    worklist(page, demo)
    page.locator(".explained summary").click()


def worklist_without_a_match(page: Page, demo: Demo) -> None:
    worklist(page, demo)
    page.goto(f"{demo.addresses.rayhook}/patient?modality=XA")


def worklist_without_studies(page: Page, demo: Demo) -> None:
    nobody = {**demo.peers.ehr.store.read("Patient", PLAIN), "id": "phantom-nobody"}
    demo.peers.ehr.store.seed([nobody])
    launch(page, demo, "phantom-nobody")


def worklist_not_permitted(page: Page, demo: Demo) -> None:
    demo.peers.ehr.authorization.withheld = frozenset({"patient/ImagingStudy.rs", "patient/Patient.r"})
    launch(page, demo, LOOKED_AT)


def worklist_while_the_ehr_is_down(page: Page, demo: Demo) -> None:
    worklist(page, demo)
    demo.peers.ehr.faults.fhir_status = 503
    page.reload()


def analysis_in_progress(page: Page, demo: Demo) -> None:
    """The archive is slow: the page has to say how far it is, and to go on by itself."""
    demo.peers.pacs.faults.slow_s = 3.0
    waiting = next(
        study.patient_id
        for study in demo.catalogue.studies
        if study.patient_id.startswith("test-file") and study.patient_id not in _STARTED
    )
    _STARTED.add(waiting)
    launch(page, demo, waiting)
    page.locator(".do button").first.click()
    page.locator("[role=progressbar]").wait_for()


_STARTED: set[str] = set()


def result_with_a_finding(page: Page, demo: Demo) -> None:
    worklist(page, demo)
    open_first(page)


def result_without_a_finding(page: Page, demo: Demo) -> None:
    launch(page, demo, PLAIN)
    open_first(page)


def result_signed(page: Page, demo: Demo) -> None:
    launch(page, demo, SIGNED)
    open_first(page)


def result_while_the_archive_is_slow(page: Page, demo: Demo) -> None:
    worklist(page, demo)
    demo.peers.pacs.faults.slow_s = 20.0
    page.locator(".study .do a").last.click()
    expect(page.locator("rayhook-viewer [role=status]").first).not_to_be_empty()


def model_card(page: Page, demo: Demo) -> None:
    result_with_a_finding(page, demo)
    page.locator("a[href*='/models/']").first.click()
    page.locator("h1").wait_for()


def not_permitted_by_the_ehr(page: Page, demo: Demo) -> None:
    demo.peers.ehr.authorization.withheld = frozenset({"patient/DiagnosticReport.rs"})
    launch(page, demo, LOOKED_AT)


def not_found(page: Page, demo: Demo) -> None:
    worklist(page, demo)
    page.goto(f"{demo.addresses.rayhook}/results/{'0' * 32}")


def session_ended(page: Page, demo: Demo) -> None:
    page.goto(f"{demo.addresses.rayhook}/patient")


def another_patient_opened(page: Page, demo: Demo) -> None:
    worklist(page, demo)
    before = page.url
    launch(page, demo, PLAIN)
    page.goto(before)


def session_closed(page: Page, demo: Demo) -> None:
    worklist(page, demo)
    page.locator(".close button").click()
    page.locator(".verdict.done").wait_for()


def choice_of_the_ehr(page: Page, demo: Demo) -> None:
    page.goto(f"{demo.addresses.rayhook}/smart/standalone")


def sign_in_of_the_staff(page: Page, demo: Demo) -> None:
    page.goto(f"{demo.addresses.rayhook}/sign-in")


STATES: dict[str, State] = {
    state.__name__.replace("_", "-"): state
    for state in (
        worklist,
        worklist_explained,
        worklist_without_a_match,
        worklist_without_studies,
        worklist_not_permitted,
        worklist_while_the_ehr_is_down,
        analysis_in_progress,
        result_with_a_finding,
        result_without_a_finding,
        result_signed,
        result_while_the_archive_is_slow,
        model_card,
        not_permitted_by_the_ehr,
        not_found,
        session_ended,
        another_patient_opened,
        session_closed,
        choice_of_the_ehr,
        sign_in_of_the_staff,
    )
}


@contextmanager
def no_faults_left(demo: Demo) -> Iterator[None]:
    try:
        yield
    finally:
        demo.peers.ehr.faults.fhir_status = None
        demo.peers.ehr.authorization.withheld = frozenset()
        demo.peers.pacs.faults.slow_s = 0.0


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", STATES)
def test_page_is_accessible_and_fits(browser, demo, name, language):
    with ExitStack() as stack:
        page = stack.enter_context(watched(browser, demo, language=language, size=EHR_FRAME))
        stack.enter_context(no_faults_left(demo))
        STATES[name](page, demo)
        expect(page.locator("html")).to_have_attribute("lang", language)
        if language == "en":
            show(page, f"tour-{name}")
        assert violations(page) == []
        assert overflow(page) == 0
        for width, height in TABLETS:
            page.set_viewport_size({"width": width, "height": height})
            assert overflow(page) == 0, (width, height)


DARK = ("worklist", "result-with-a-finding", "not-found")


@pytest.mark.parametrize("name", DARK)
def test_page_is_accessible_in_the_dark(browser, demo, name):
    with watched(browser, demo) as page:
        page.emulate_media(color_scheme="dark", reduced_motion="reduce")
        STATES[name](page, demo)
        show(page, f"tour-{name}-dark")
        assert violations(page) == []


def test_tablet_shows_the_picture_above_the_findings(browser, demo):
    with watched(browser, demo, size=TABLETS[1]) as page:
        result_with_a_finding(page, demo)
        show(page, "tour-result-tablet")
        viewer, panel = page.locator("rayhook-viewer").bounding_box(), page.locator(".facts").bounding_box()
    assert viewer is not None
    assert panel is not None
    assert viewer["y"] + viewer["height"] <= panel["y"]


def test_every_picture_of_the_tour_is_described_and_there():
    page = (ROOT / "deploy" / "docs" / "tour.md").read_text()
    described = set(re.findall(r"images/(tour-[a-z-]+)\.png", page))
    states = {f"tour-{name}" for name in STATES} | {f"tour-{name}-dark" for name in DARK}
    shown = set(re.findall(r'show\(\w+, "(tour-[a-z-]+)"\)', Path(__file__).read_text()))
    assert described == states | shown
    assert {path.stem for path in (ROOT / "deploy" / "docs" / "images").glob("tour-*.png")} == described
