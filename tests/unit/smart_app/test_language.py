import pytest

from rayhook.smart_app.language import page_before

OURS = "https://rayhook.example"


@pytest.mark.parametrize(
    ("referrer", "page"),
    [
        (f"{OURS}/results/ab", "/results/ab"),
        (f"{OURS}/patient?state=failed", "/patient?state=failed"),
        (f"{OURS}/smart/logout", None),
        (f"{OURS}//evil.example/", None),
        (f"{OURS}.evil.example/results/ab", None),
        ("https://evil.example/results/ab", None),
        ("", None),
        (None, None),
    ],
)
def test_form_leads_back_to_a_page_of_ours_only(referrer, page):
    assert page_before(referrer, OURS) == page


@pytest.fixture
def browser(world):
    with world.browser() as browser:
        world.launch(browser, "phantom-a")
        yield browser


def choose(world, browser, language, **headers):
    own = {"Origin": world.base_url, "Referer": f"{world.base_url}/patient"}
    return browser.post(
        f"{world.base_url}/smart/language", data={"language": language}, headers={**own, **headers}
    )


def test_page_is_written_in_the_language_chosen(world, browser):
    assert '<html lang="fr">' in choose(world, browser, "fr").text


def test_choice_lasts(world, browser):
    choose(world, browser, "es")
    page = browser.get(f"{world.base_url}/patient", headers={"Accept-Language": "fr"})
    assert '<html lang="es">' in page.text


def test_browsers_wish_is_met_without_a_choice(world, browser):
    page = browser.get(f"{world.base_url}/patient", headers={"Accept-Language": "fr"})
    assert '<html lang="fr">' in page.text


def test_language_that_is_not_served_is_refused(world, browser):
    assert choose(world, browser, "xx").status_code == 400


def test_form_of_another_site_is_refused(world, browser):
    assert choose(world, browser, "es", Origin="https://evil.example").status_code == 403


def test_page_of_an_error_is_in_the_browsers_language(world):
    with world.browser() as stranger:
        page = stranger.get(f"{world.base_url}/patient", headers={"Accept-Language": "es"})
    assert '<html lang="es">' in page.text
