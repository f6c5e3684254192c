from dataclasses import replace

import pytest

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditLog
from rayhook.audit.review import recent
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, CDSClient, EHRRegistry
from rayhook.deploy.configuration import Configuration, record_changes
from rayhook.deploy.database import create_database, migrate
from rayhook.deploy.settings import Environment, Settings
from rayhook.inference.registry import load_models

NORTH = EHR("north", "North", ("https://north.example/fhir",), CDSClient("https://north.example", None))
MODELS = load_models()[:1]


@pytest.fixture
def parts(tmp_path):
    keyring = Keyring.load_or_create(tmp_path / "keyring.json")
    url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    migrate(url)
    database = create_database(url)
    yield database, keyring
    database.close()


def settings(**values):
    return Settings(environment=Environment.DEVELOPMENT, **values)


def start(parts, settings, registry=EHRRegistry((NORTH,)), models=MODELS):  # noqa: B008 - frozen
    database, keyring = parts
    configuration = Configuration.of(keyring, settings, registry, models)
    with database.sessions() as session:
        changed = record_changes(session, keyring, AuditLog(keyring), configuration)
        session.commit()
    return changed


def told(parts):
    database, keyring = parts
    with database.reading() as session:
        found = recent(session, keyring, limit=9, kind=AuditKind.DEPLOY_CONFIGURATION_CHANGED)
    return [event.detail["changed"] for event in found]


def test_same_configuration_is_told_once(parts):
    start(parts, settings())
    assert start(parts, settings()) == []
    assert told(parts) == ["first start"]


def test_what_changed_is_told_by_name(parts):
    start(parts, settings())
    elsewhere = replace(NORTH, fhir_base_urls=("https://other.example/fhir",))
    assert start(parts, settings(port=9), EHRRegistry((elsewhere,)), ()) == [
        "EHR north",
        "RAYHOOK_PORT",
        f"model {MODELS[0].manifest.id}",
    ]


def test_value_of_a_setting_is_not_told(parts, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://rayhook:canary@db/rayhook")
    start(parts, settings())
    database, keyring = parts
    with database.reading() as session:
        [event] = recent(session, keyring, limit=1)
    assert "canary" not in str(event)
