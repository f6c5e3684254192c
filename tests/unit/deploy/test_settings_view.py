"""What an administrator sees of the settings."""

import pytest

from rayhook.deploy.settings import Environment, Settings
from rayhook.deploy.settings_view import settings_view


def shown(**given):
    settings = Settings(environment=Environment.DEVELOPMENT, **given)
    return {one.name: one for one in settings_view(settings)}


def test_every_setting_is_shown():
    assert len(shown()) == len(Settings.model_fields)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://someone:hush-hush@db.example/rayhook",
        "postgresql+psycopg://db.example/rayhook?user=someone&password=hush-hush",
    ],
)
def test_a_database_is_shown_without_who_goes_there(url):
    value = shown(DATABASE_URL=url)["DATABASE_URL"].value
    assert value == "postgresql+psycopg://db.example/rayhook"


def test_a_url_is_shown_without_its_credentials():
    value = shown(audit_fhir_feed="https://someone:hush-hush@arr.example/fhir?key=hush-hush")
    assert value["RAYHOOK_AUDIT_FHIR_FEED"].value == "https://arr.example/fhir?…"


def test_what_was_not_set_is_told_so():
    told = shown(port=8100)
    assert (told["RAYHOOK_PORT"].value, told["RAYHOOK_PORT"].is_default) == ("8100", False)
    assert told["RAYHOOK_HOST"].is_default
