from datetime import UTC, datetime

import pytest
from fastapi import Request

from rayhook.fhir.text import Sentence
from rayhook.smart_app.i18n import (
    Language,
    accepted,
    day_text,
    decimal_text,
    gettext,
    language,
    language_of,
    moment_text,
    ngettext,
    percent_text,
    prefer,
    speaking,
    tell,
)


def request(**headers: str) -> Request:
    pairs = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": pairs})


@pytest.mark.parametrize(
    ("header", "tag"),
    [
        ("es", "es"),
        ("es-MX,es;q=0.9", "es"),
        ("de-DE, fr;q=0.5, es;q=0.8", "es"),
        ("fr_CA", "fr"),
        ("FR", "fr"),
        ("es;q=0, fr;q=0.1", "fr"),
        ("de", None),
        ("", None),
        ("*", None),
        ("es;q=lots", None),
    ],
)
def test_browser_is_served_the_language_it_wants_most(header, tag):
    assert accepted(header) == tag


@pytest.mark.parametrize(
    ("spoken", "tag"),
    [
        (Language(chosen="es", registered="fr", accepted="en"), "es"),
        (Language(registered="fr", accepted="en"), "fr"),
        (Language(accepted="es"), "es"),
        (Language(), "en"),
    ],
)
def test_choice_outranks_the_ehrs_language_and_that_the_browsers(spoken, tag):
    assert spoken.tag == tag


@pytest.mark.parametrize("cookie", ["__Host-rayhook-language=fr", "rayhook-development-language=fr"])
def test_choice_is_read_from_the_cookie(cookie):
    assert language_of(request(cookie=cookie, accept_language="es")).tag == "fr"


def test_cookie_of_a_language_that_is_not_served_is_no_choice():
    assert language_of(request(cookie="rayhook-development-language=../en", accept_language="es")).tag == "es"


def test_ehrs_language_is_noted_for_the_request_only():
    with speaking(Language()):
        prefer("fr-CA")
        assert language().tag == "fr"
    assert language().tag == "en"


def test_ehrs_language_outside_of_a_request_changes_nothing():
    prefer("fr")
    assert language().tag == "en"


def test_text_without_a_translation_stays_english():
    with speaking(Language(chosen="es")):
        assert gettext("a text that no page has") == "a text that no page has"


def test_header_of_the_catalogue_is_never_a_text():
    with speaking(Language(chosen="es")):
        assert gettext("") == ""


def test_sentence_of_another_package_is_filled_after_its_translation():
    assert tell(Sentence("%(count)s of 100%%", {"count": 3})) == "3 of 100%"


@pytest.mark.parametrize(
    ("tag", "percent", "decimal", "day"),
    [
        ("en", "87.3%", "0.943", "May 1, 2026"),
        ("es", "87,3\N{NO-BREAK SPACE}%", "0,943", "1 may 2026"),
        ("fr", "87,3\N{NO-BREAK SPACE}%", "0,943", "1 mai 2026"),
    ],
)
def test_numbers_and_days_are_written_as_in_the_language(tag, percent, decimal, day):
    with speaking(Language(chosen=tag)):
        assert (percent_text(0.873), decimal_text(0.943, 3)) == (percent, decimal)
        assert day_text("2026-05-01T10:00:00Z") == day


@pytest.mark.parametrize(
    ("instant", "shown"), [("2026", "2026"), ("2026-05", "May 2026"), ("soon", ""), (None, ""), ("", "")]
)
def test_part_of_a_date_stays_a_part(instant, shown):
    assert day_text(instant) == shown


def test_moment_says_its_time_zone():
    shown = moment_text(datetime(2026, 5, 1, 10, 5, tzinfo=UTC))
    assert shown.endswith("UTC")
    assert "10:05" in shown


@pytest.mark.parametrize(("count", "shown"), [(0, "0 images"), (1, "1 image"), (2, "2 images")])
def test_plural_takes_a_value_named_count(count, shown):
    assert ngettext("%(count)s image", "%(count)s images", count, count=count) == shown
