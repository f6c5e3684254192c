import json

import pytest

from rayhook.auth.launch_context import LaunchContext
from rayhook.fhir.errors import UpstreamError
from rayhook.smart_app.style import style_sheet


def css_of(**members):
    return style_sheet(json.dumps(members).encode())


def test_members_become_variables():
    assert css_of(color_background="#edeae3", dim_border_radius="6px") == (
        ":root{--smart-color-background:#edeae3;--smart-dim-border-radius:6px;}\n"
    )


@pytest.mark.parametrize(
    "members",
    [
        {"color_background": "red;}body{display:none"},
        {"color_background": "url(https://evil.example)"},
        {"color_background": "#12345"},
        {"color_text": 7},
        {"dim_font_size": "16"},
        {"dim_font_size": "9999px"},
        {"font_family_body": "x;}@import 'https://evil.example'"},
        {"font_family_body": "x\\22"},
        {"unknown": "#ffffff"},
    ],
)
def test_what_has_another_form_is_left_out(members):
    assert css_of(**members) == ""


@pytest.mark.parametrize("document", [b"", b"[]", b"not json", b'"#fff"'])
def test_what_is_no_style_is_refused(document):
    with pytest.raises(UpstreamError):
        style_sheet(document)


def style_of(world, browser, page):
    address = page.text.partition('href="/smart/style.css')[2].partition('"')[0]
    return browser.get(f"{world.base_url}/smart/style.css{address}")


def test_the_ehrs_style_is_served_as_our_own_file(world):
    with world.browser() as browser:
        answer = style_of(world, browser, world.launch(browser, "phantom-a"))
    assert answer.headers["content-type"].startswith("text/css")
    assert "--smart-color-highlight:#0f6d8c;" in answer.text


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/style.json", "https://evil.example/style.json"])
def test_a_style_elsewhere_is_not_fetched(world, monkeypatch, address):
    context = type(world.ehr.authorization)._context
    monkeypatch.setattr(
        type(world.ehr.authorization),
        "_context",
        lambda self, launch: context(self, launch) | {"smart_style_url": address},
    )
    with world.browser() as browser:
        answer = style_of(world, browser, world.launch(browser, "phantom-a"))
    assert (answer.status_code, answer.text) == (200, "")


def test_without_a_session_there_is_no_style(world):
    with world.browser() as browser:
        assert browser.get(f"{world.base_url}/smart/style.css").status_code == 401


def test_a_context_does_not_show_itself():
    assert repr(LaunchContext(encounter_id="encounter-canary")) == "LaunchContext(...)"
