"""Launches as a real browser makes them, against oidc-provider and against an EHR that takes POST only."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.integration.test_oidc_provider import Peer, running_peer

pytestmark = [
    pytest.mark.browser,
    pytest.mark.oidc_provider,
]


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with running_peer(tmp_path_factory.mktemp("browser-oidc"), authorizePost=True) as peer:
        yield peer


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context
    context.close()


def launch(peer: Peer, page: Page, patient: str) -> None:
    page.goto(f"{peer.base_url}/smart/launch?iss={peer.fhir}&launch=launch-{patient}")


def test_a_launch_by_post_ends_at_the_patients_page(peer: Peer, context: BrowserContext) -> None:
    page = context.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text) if message.type == "error" else None)
    launch(peer, page, "phantom-a")
    expect(page.get_by_text("PEER phantom-a").first).to_be_visible()
    assert page.url.startswith(f"{peer.base_url}/patient?w=")
    assert [text for text in refused if "Content Security Policy" in text] == []


def test_the_session_cookie_is_out_of_a_scripts_reach(peer: Peer, context: BrowserContext) -> None:
    page = context.new_page()
    launch(peer, page, "phantom-a")
    expect(page.get_by_text("PEER phantom-a").first).to_be_visible()
    assert "session" not in page.evaluate("document.cookie")


def test_a_window_left_open_leaves_when_another_patient_is_opened(
    peer: Peer, context: BrowserContext
) -> None:
    first, second = context.new_page(), context.new_page()
    launch(peer, first, "phantom-a")
    expect(first.get_by_text("PEER phantom-a").first).to_be_visible()
    launch(peer, second, "phantom-b")
    expect(second.get_by_text("PEER phantom-b").first).to_be_visible()
    # Headless windows all have the focus: the event stands for the return to the first one.
    first.evaluate("dispatchEvent(new Event('focus'))")
    expect(first.get_by_role("heading", level=1)).to_have_text("Another patient was opened since")
    assert "phantom-b" not in first.content()


def test_going_back_to_a_stale_page_shows_nobody(peer: Peer, context: BrowserContext) -> None:
    page = context.new_page()
    launch(peer, page, "phantom-a")
    expect(page.get_by_text("PEER phantom-a").first).to_be_visible()
    launch(peer, page, "phantom-b")
    expect(page.get_by_text("PEER phantom-b").first).to_be_visible()
    for _ in range(6):
        page.go_back()
        if "phantom-b" not in page.content():
            break
    assert "PEER phantom-a" not in page.content()


def test_closing_the_session_leaves_nothing(peer: Peer, context: BrowserContext) -> None:
    page = context.new_page()
    launch(peer, page, "phantom-a")
    page.get_by_role("button", name="Close session").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Session closed")
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Your session has ended")
