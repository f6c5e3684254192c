import pytest
from typer.testing import CliRunner

from rayhook.audit.review import recent
from rayhook.auth.keys import Keyring
from rayhook.deploy.cli import app
from rayhook.deploy.database import create_database, migrate
from rayhook.deploy.storage_settings import StorageSettings


@pytest.fixture
def settings(tmp_path):
    settings = StorageSettings(data_dir=tmp_path)
    Keyring.load_or_create(settings.keyring_path)
    migrate(settings.resolved_database_url)
    return settings


def run(settings, *arguments):
    result = CliRunner().invoke(app, ["keys", *arguments, "--data-dir", str(settings.data_dir)])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_list_names_the_keys_and_no_secret(settings):
    output = run(settings, "list")
    assert (output.count("current"), output.count("next"), "PRIVATE" in output) == (2, 2, False)


def test_rotation_lets_the_next_keys_sign(settings):
    keyring = Keyring.load_or_create(settings.keyring_path)
    following = [key.kid for key in keyring.client_key_statuses() if key.state == "next"]
    run(settings, "rotate-client", "--grace-hours", "2")
    assert [keyring.assertion_key("ES384").kid, keyring.assertion_key("RS384").kid] == following


def test_rotation_is_audited(settings):
    keyring = Keyring.load_or_create(settings.keyring_path)
    run(settings, "rotate-client")
    database = create_database(settings.resolved_database_url)
    with database.reading() as session:
        event = recent(session, keyring, limit=1)[0]
    database.close()
    assert str(event.kind) == "auth:client_keys:rotated"
    assert keyring.assertion_key("ES384").kid in event.detail["kid"]
