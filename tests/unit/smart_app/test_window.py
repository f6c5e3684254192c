"""A window opened for one patient never acts on, or turns into, another's."""

import re
from urllib.parse import parse_qs, urlsplit

import pytest

from rayhook.smart_app.window import marked

LINK = re.compile(r'(?:href|action|src)="(/[^"]*)"')
QUERY_FORM = re.compile(r'<form[^>]* method="get" action="(/[^"]*)"[^>]*>\s*<input type="hidden" name="w"')
UNMARKED = ("/smart/static/", "/smart/standalone")


def links_of(page):
    """Return every address of the page that leads on.

    A query form has its mark in a hidden field, and the viewer sends it as a header.
    """
    forms = QUERY_FORM.findall(page.text)
    found = [link.replace("&amp;", "&") for link in LINK.findall(page.text)]
    return [link for link in found if link not in forms and not link.startswith(UNMARKED)]


def mark_of(page):
    return re.search(r'name="rayhook-window" content="([0-9a-f]{32})"', page.text)[1]


@pytest.fixture
def two_windows(world):
    """One browser: a page of phantom-a left open, then a launch for phantom-b."""
    with world.browser() as browser:
        first = world.launch(browser, "phantom-a")
        second = world.launch(browser, "phantom-b")
        yield browser, first, second


def test_the_second_launch_ends_the_first_session(world, two_windows):
    closed = next(record for record in world.audited() if str(record.kind) == "smart_app:session:closed")
    assert (closed.patient_id, closed.detail["reason"]) == ("phantom-a", "replaced")


def test_the_first_window_does_not_turn_into_the_second_patients(two_windows):
    browser, first, _ = two_windows
    page = browser.get(str(first.url))
    assert page.status_code == 409
    assert "PHANTOM B" not in page.text


def test_the_second_window_goes_on(two_windows):
    browser, _, second = two_windows
    page = browser.get(str(second.url))
    assert page.status_code == 200
    assert "PHANTOM B" in page.text


def test_no_link_of_the_first_window_leads_to_the_second_patient(world, two_windows):
    browser, first, _ = two_windows
    answers = [browser.get(f"{world.base_url}{link}") for link in links_of(first)]
    assert answers
    assert not any("PHANTOM B" in answer.text for answer in answers)


def test_the_refusals_own_links_stay_refused(world, two_windows):
    browser, first, _ = two_windows
    refused = browser.get(str(first.url))
    answers = [browser.get(f"{world.base_url}{link}") for link in links_of(refused)]
    assert not any("PHANTOM B" in answer.text for answer in answers)


def test_a_refused_window_is_audited(world, two_windows):
    browser, first, _ = two_windows
    browser.get(str(first.url))
    denied = world.audited()[0]
    assert (str(denied.kind), denied.detail["code"]) == ("smart_app:access:denied", "window_stale")


def test_a_script_of_the_first_window_is_refused_by_its_header(world, two_windows):
    browser, first, _ = two_windows
    answer = browser.get(f"{world.base_url}/patient", headers={"X-Rayhook-Window": mark_of(first)})
    assert answer.status_code == 409


@pytest.mark.parametrize(("which", "status"), [(1, 409), (2, 204)])
def test_a_window_can_ask_whether_it_is_still_the_one(world, two_windows, which, status):
    browser = two_windows[0]
    answer = browser.get(f"{world.base_url}/smart/window", params={"w": mark_of(two_windows[which])})
    assert answer.status_code == status


def test_a_window_without_a_session_is_told_so(world):
    with world.browser() as browser:
        assert browser.get(f"{world.base_url}/smart/window?w=x").status_code == 401


def test_asking_is_no_use_of_the_session(world, one_time):
    with world.browser() as browser:
        page = world.launch(browser, "phantom-a")
        address = f"{world.base_url}/smart/window?w={mark_of(page)}"
        world.clock.ahead_s = 10 * 60
        assert browser.get(address).status_code == 204
        world.clock.ahead_s = 16 * 60
        assert browser.get(address).status_code == 401


@pytest.mark.parametrize("path", ["/patient", "/results/{result}", "/jobs/{job}"])
def test_every_link_of_a_page_says_whose_it_is(world, path):
    result = world.store("phantom-a")
    job = world.enqueue("phantom-a", study="1.2.3.10")
    with world.browser() as browser:
        world.launch(browser, "phantom-a")
        page = browser.get(world.base_url + path.format(result=result, job=job))
    assert page.status_code == 200
    assert [link for link in links_of(page) if f"w={mark_of(page)}" not in link] == []


def test_the_mark_opens_nothing(world):
    with world.browser() as browser, world.browser() as thief:
        page = world.launch(browser, "phantom-a")
        assert thief.get(str(page.url)).status_code == 401


def test_the_landing_page_is_marked(world):
    with world.browser() as browser:
        page = world.launch(browser, "phantom-a")
    assert parse_qs(urlsplit(str(page.url)).query)["w"] == [mark_of(page)]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/patient", "/patient?w=m"),
        ("/results/1?lang=es", "/results/1?lang=es&w=m"),
        ("/results/1#answer", "/results/1?w=m#answer"),
    ],
)
def test_the_mark_goes_into_the_query(path, expected):
    assert marked(path, "m") == expected


def test_a_page_without_a_session_has_no_mark():
    assert marked("/patient", "") == "/patient"
