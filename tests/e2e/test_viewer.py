"""The viewer in a browser: a phantom of known pixels, launched from the demo EHR, with a PACS that may fail."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.doubles.dicom_files import dataset, encode
from tests.unit.smart_app.imaging import COUNT, KEY, PATIENT, ROOT, Imaging, open_imaging, pixels

pytestmark = pytest.mark.browser

WEB = Path(__file__).resolve().parents[2] / "smart_app" / "web"
REFERENCE = Path(__file__).parents[1] / "data" / "viewer" / "phantom.png"
SHOWN = 'rayhook-viewer[data-state="shown"]'
READY = 'rayhook-viewer[data-tools="ready"]'
expect.set_options()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Imaging, str]]:
    with open_imaging(tmp_path_factory.mktemp("viewer")) as imaging:
        yield imaging, imaging.store_result()


@pytest.fixture
def imaging(running: tuple[Imaging, str]) -> Iterator[Imaging]:
    yield running[0]
    running[0].faults.status = None
    running[0].faults.slow_s = 0.0


def launch(page: Page, running: tuple[Imaging, str]) -> None:
    """Go to the result's page as the EHR's launch does."""
    imaging, result = running
    context = json.dumps({"result": result})
    page.goto(
        f"{imaging.world.ehr_url}/patients/{PATIENT}/launch"
        f"?url={imaging.world.base_url}/smart/launch&app_context={context}"
    )


@pytest.fixture
def viewer(page: Page, imaging: Imaging, running: tuple[Imaging, str]) -> Locator:
    launch(page, running)
    page.locator(READY).wait_for()
    return page.locator("rayhook-viewer")


def drawn(viewer: Locator, pane: int = 0) -> Locator:
    """Return the pane, once what was asked of it is on its canvas."""
    found = viewer.locator(".rv-pane").nth(pane)
    expect(found).to_have_attribute("data-drawn", "yes")
    return found


def canvas_of(viewer: Locator, name: str = "canvas.cornerstone-canvas", pane: int = 0) -> np.ndarray:
    drawn(viewer, pane)
    data = viewer.locator(name).nth(pane).evaluate("canvas => canvas.toDataURL('image/png')")
    encoded = np.frombuffer(base64.b64decode(data.partition(",")[2]), np.uint8)
    return cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)


def heat_in(viewer: Locator, state: str = "shown") -> int:
    """Return how many pixels of the overlay are warm and filled, away from the marks' rings."""
    expect(drawn(viewer)).to_have_attribute("data-heat", state)
    overlay = canvas_of(viewer, "canvas.rv-overlay").astype(int)
    return int(((overlay[..., 3] > 120) & (overlay[..., 2] > 200)).sum())


def at(viewer: Locator, index: int) -> None:
    expect(viewer.locator(".rv-pane").first).to_have_attribute("data-index", str(index))


def test_the_key_image_is_shown_first(viewer):
    at(viewer, KEY)
    expect(viewer.locator(".rv-bottom-left").first).to_contain_text(f"Image {KEY + 1} of {COUNT}")
    assert canvas_of(viewer)[..., 0].std() > 20


def test_it_says_investigational_at_every_width(viewer, page):
    for width in (1280, 1024, 768, 420):
        page.set_viewport_size({"width": width, "height": 800})
        expect(viewer.get_by_text("Investigational. Not for diagnosis.").first).to_be_visible()


def test_it_draws_without_webgl_where_there_is_none(viewer):
    expect(viewer.locator(".rv-pane").first).to_have_attribute("data-rendering", "cpu")


def test_the_picture_is_that_of_the_phantom(viewer):
    viewer.get_by_role("button", name="Heatmap").click()
    shown = canvas_of(viewer)[..., :3]
    expected = cv2.imread(str(REFERENCE), cv2.IMREAD_COLOR)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected.astype(int)).mean() < 2


def test_the_wheel_goes_through_the_stack(viewer, page):
    before = canvas_of(viewer)
    viewer.locator(".rv-frame").hover()
    page.mouse.wheel(0, 100)
    at(viewer, KEY + 1)
    assert not np.array_equal(canvas_of(viewer), before)


def test_dragging_goes_through_the_stack(viewer, page):
    box = viewer.locator(".rv-surface").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 200, steps=8)
    page.mouse.up()
    at(viewer, 0)


@pytest.mark.parametrize(
    ("key", "index"),
    [("ArrowDown", KEY + 1), ("ArrowUp", KEY - 1), ("Home", 0), ("End", COUNT - 1), ("PageUp", 0)],
)
def test_keys_go_through_the_stack(viewer, page, key, index):
    viewer.locator(".rv-frame").focus()
    page.keyboard.press(key)
    at(viewer, index)


def test_a_preset_changes_the_grey_levels(viewer):
    before = canvas_of(viewer)
    viewer.get_by_label("Window preset").select_option(label="2 LUNG")
    expect(viewer.locator(".rv-bottom-right").first).to_contain_text("W 1500  C -600")
    assert not np.array_equal(canvas_of(viewer), before)


def test_inverting_turns_the_grey_levels_round(viewer):
    before = canvas_of(viewer)[..., 0].astype(int)
    viewer.get_by_role("button", name="Invert").click()
    expect(viewer.get_by_role("button", name="Invert")).to_have_attribute("aria-pressed", "true")
    middle = np.s_[before.shape[0] // 3 : -before.shape[0] // 3, before.shape[1] // 3 : -before.shape[1] // 3]
    assert np.abs(before[middle] + canvas_of(viewer)[..., 0].astype(int)[middle] - 255).mean() < 3


def test_flipping_changes_the_letters_at_the_edges(viewer):
    expect(viewer.locator(".rv-left").first).to_have_text("R")
    viewer.get_by_role("button", name="Flip").click()
    expect(viewer.locator(".rv-left").first).to_have_text("L")
    viewer.get_by_role("button", name="Reset").click()
    expect(viewer.locator(".rv-left").first).to_have_text("R")


def test_the_heatmap_can_be_put_out_and_faded(viewer, page):
    whole = heat_in(viewer)
    assert whole > 500
    viewer.get_by_label("Heatmap opacity").fill("20")
    assert heat_in(viewer) < whole / 2
    viewer.get_by_role("button", name="Heatmap").click()
    expect(viewer.get_by_role("button", name="Heatmap")).to_have_attribute("aria-pressed", "false")
    assert heat_in(viewer, "none") < whole / 10


def test_the_heatmap_is_on_its_own_image_only(viewer, page):
    viewer.get_by_role("button", name="Marks").click()
    viewer.locator(".rv-frame").focus()
    page.keyboard.press("Home")
    at(viewer, 0)
    assert canvas_of(viewer, "canvas.rv-overlay")[..., 3].max() == 0
    page.keyboard.press("k")
    at(viewer, KEY)
    assert heat_in(viewer) > 500


def test_a_length_measured_by_keys_is_that_of_the_phantom(viewer, page):
    """Twenty columns of 0.75 mm."""
    viewer.locator(".rv-frame").focus()
    for key in ("l", "Enter", "Enter", "Shift+ArrowRight", "Shift+ArrowRight", "Enter"):
        page.keyboard.press(key)
    expect(viewer.locator("svg.svg-layer text")).to_contain_text("15.0 mm")
    expect(viewer.locator('.rv-hidden[role="status"]').first).to_contain_text("15.0 mm")


def test_a_probe_by_keys_tells_hounsfield_units(viewer, page):
    viewer.locator(".rv-frame").focus()
    for key in ("b", "Enter", "Enter"):
        page.keyboard.press(key)
    value = int(pixels(COUNT - KEY)[24, 32]) - 24
    expect(viewer.locator("svg.svg-layer text")).to_contain_text(f"{value:,} HU")
    page.keyboard.press("Delete")
    expect(viewer.locator("svg.svg-layer text")).to_have_count(0)


def test_a_length_drawn_with_the_mouse_is_told(viewer, page):
    viewer.get_by_role("button", name="Length").click()
    box = viewer.locator(".rv-surface").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=6)
    page.mouse.up()
    expect(viewer.locator("svg.svg-layer text")).to_contain_text(" mm")


def test_the_bar_is_one_stop_and_arrows_go_within(viewer, page):
    viewer.get_by_role("combobox", name="Series").focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.tool") == "heat"


def test_the_map_of_keys_opens_and_gives_the_focus_back(viewer, page):
    viewer.locator(".rv-frame").focus()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys and gestures")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert page.evaluate("document.activeElement.className") == "rv-frame"


def test_another_study_is_laid_beside_and_scrolls_along(viewer, page):
    viewer.get_by_role("button", name="Compare").click()
    panes = viewer.locator(".rv-pane")
    expect(panes).to_have_count(2)
    expect(panes.nth(1)).to_have_attribute("data-index", str(KEY))
    expect(panes.nth(1).locator(".rv-top-left")).to_contain_text("2024-02-01")
    panes.nth(0).locator(".rv-frame").focus()
    page.keyboard.press("ArrowDown")
    expect(panes.nth(1)).to_have_attribute("data-index", str(KEY + 1))
    viewer.get_by_role("button", name="Linked").click()
    panes.nth(0).locator(".rv-frame").focus()
    page.keyboard.press("Home")
    at(viewer, 0)
    expect(panes.nth(1)).to_have_attribute("data-index", str(KEY + 1))
    viewer.get_by_role("button", name="Compare").click()
    expect(panes).to_have_count(1)


def test_a_slow_pacs_is_told_with_how_far_it_has_come(page, tmp_path):
    with open_imaging(tmp_path) as imaging:  # nothing of it was fetched before
        running = imaging, imaging.store_result()
        imaging.faults.slow_s = 0.8
        launch(page, running)
        viewer = page.locator("rayhook-viewer")
        expect(viewer.locator(".rv-status")).to_contain_text("Asking the image archive")
        expect(viewer.locator(".rv-status")).to_contain_text(
            f"Loading image {KEY + 1} of {COUNT}", timeout=10_000
        )
        page.locator(SHOWN).wait_for()
        expect(viewer.locator(".rv-bottom-left")).to_contain_text(f"of {COUNT} images loaded")
        expect(viewer.locator(".rv-bottom-left")).not_to_contain_text("images loaded")


def test_a_broken_pacs_is_told_and_can_be_asked_again(page, imaging, running):
    imaging.faults.status = 500
    launch(page, running)
    status = page.locator("rayhook-viewer .rv-status")
    expect(status).to_contain_text("cannot be reached, or reports an error of its own")
    imaging.faults.status = None
    status.get_by_role("button", name="Try again").click()
    page.locator(SHOWN).wait_for()
    expect(status).to_be_empty()


def test_a_pacs_that_refuses_is_told_as_that(page, imaging, running):
    imaging.faults.status = 403
    launch(page, running)
    expect(page.locator("rayhook-viewer .rv-status")).to_contain_text("refused access")


def opened(page: Page, imaging: Imaging) -> Locator:
    launch(page, (imaging, imaging.store_result()))
    page.locator(READY).wait_for()
    viewer = page.locator("rayhook-viewer")
    viewer.get_by_role("button", name="Heatmap").click()
    return viewer


def middle_of(viewer: Locator) -> list[int]:
    shown = canvas_of(viewer)
    return [int(value) for value in shown[shown.shape[0] // 2, shown.shape[1] // 2, :3]]


def test_colour_is_shown_as_colour(page, tmp_path):
    colours = np.zeros((48, 64, 3), np.uint8)
    colours[...] = (200, 100, 30)
    made = dataset(
        colours[..., 0],
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
        StudyInstanceUID=f"{ROOT}.1",
        SeriesInstanceUID=f"{ROOT}.1.1",
        SOPInstanceUID=f"{ROOT}.1.1.1",
        LossyImageCompression="01",
    )
    made.PixelData = colours.tobytes()
    with open_imaging(tmp_path, [encode(made)]) as imaging:
        viewer = opened(page, imaging)
        assert np.abs(np.subtract(middle_of(viewer), (30, 100, 200))).max() <= 2  # OpenCV's blue comes first
        expect(viewer.locator(".rv-top-right")).to_contain_text("Lossy compressed")
        expect(viewer.get_by_label("Window preset")).to_be_disabled()


@pytest.mark.parametrize(("photometric", "grey"), [("MONOCHROME2", 64), ("MONOCHROME1", 191)])
def test_a_film_is_bright_where_it_has_to_be(page, tmp_path, photometric, grey):
    made = dataset(
        np.full((48, 64), 1024, np.uint16),
        PhotometricInterpretation=photometric,
        WindowCenter=2048,
        WindowWidth=4096,
        PixelSpacing=None,
        StudyInstanceUID=f"{ROOT}.1",
        SeriesInstanceUID=f"{ROOT}.1.1",
        SOPInstanceUID=f"{ROOT}.1.1.1",
    )
    with open_imaging(tmp_path, [encode(made)]) as imaging:
        viewer = opened(page, imaging)
        assert abs(middle_of(viewer)[0] - grey) <= 2
        viewer.locator(".rv-frame").focus()
        for key in ("l", "Enter", "Enter", "Shift+ArrowRight", "Enter"):
            page.keyboard.press(key)
        expect(viewer.locator("svg.svg-layer text")).to_contain_text("10 px")


def test_an_ended_session_is_told(viewer, page, imaging):
    page.context.clear_cookies()
    viewer.get_by_role("button", name="Compare").click()
    expect(viewer.locator('.rv-hidden[role="status"]').first).to_contain_text("could not be loaded")


def test_without_script_the_still_picture_stays(browser: Browser, imaging, running):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    launch(page, running)
    expect(page.locator("#overlay")).to_be_visible()
    context.close()


def test_axe_finds_nothing_in_the_viewer(viewer, page):
    viewer.get_by_role("button", name="Compare").click()
    expect(viewer.locator(".rv-pane")).to_have_count(2)
    page.evaluate((WEB / "node_modules" / "axe-core" / "axe.min.js").read_text())
    for opened in (False, True):
        if opened:
            viewer.get_by_role("button", name="Keys").click()
        found = page.evaluate(
            "axe.run('rayhook-viewer', {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})"
        )
        assert [(v["id"], [n["html"][:120] for n in v["nodes"]]) for v in found["violations"]] == []


def test_it_asks_nobody_else_and_breaks_no_rule(page, imaging, running):
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    launch(page, running)
    page.locator(READY).wait_for()
    viewer = page.locator("rayhook-viewer")
    viewer.locator(".rv-frame").focus()
    for key in ("e", "Enter", "Enter", "ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    expect(viewer.locator("svg.svg-layer text")).to_contain_text("Mean")
    assert errors == []
    known = (imaging.world.base_url, imaging.world.ehr_url)
    assert [url for url in asked if not url.startswith(known)] == []


def test_two_fingers_are_not_needed_and_targets_are_large(viewer, page):
    """Spec: WCAG 2.2, 2.5.8 Target Size (Minimum)."""
    sizes = viewer.locator("button:visible, select:visible, input:visible").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect()).map(box => [box.width, box.height])"
    )
    assert all(min(size) >= 24 for size in sizes)
