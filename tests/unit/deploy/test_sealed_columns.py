import importlib
import pkgutil
import shutil

import pytest
from sqlmodel import SQLModel

import rayhook.audit
import rayhook.auth
import rayhook.cds_hooks
import rayhook.inference
import rayhook.smart_app
from rayhook.audit.alarm import DecryptionAlarm
from rayhook.audit.record import AuditLog
from rayhook.audit.review import recent
from rayhook.auth.data_key import DataKey
from rayhook.auth.encryption import key_of
from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database
from rayhook.deploy.sealed_columns import SEALED_COLUMNS, UNSEALED_COLUMNS, Under, forgotten_columns
from rayhook.fhir.errors import RayhookError

PACKAGES = (rayhook.audit, rayhook.auth, rayhook.cds_hooks, rayhook.inference, rayhook.smart_app)


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keys") / "keyring.json")


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    """Another installation's keyring: another tenant's EHRs."""
    return Keyring.load_or_create(tmp_path_factory.mktemp("other") / "keyring.json")


def place(column, row="0123456789abcdef"):
    return {"table": column.table.name, "column": column.name, "row": row}


def test_no_column_of_bytes_is_forgotten():
    for package in PACKAGES:
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not module.ispkg:
                importlib.import_module(module.name)
    assert forgotten_columns(SQLModel.metadata) == []


def test_none_is_listed_twice_or_as_both():
    named = [str(column) for column in SEALED_COLUMNS]
    assert len(set(named)) == len(named)
    assert not set(named) & UNSEALED_COLUMNS.keys()


@pytest.mark.parametrize("column", SEALED_COLUMNS, ids=str)
def test_its_row_is_named_by_one_column(column):
    assert column.row.primary_key


@pytest.mark.parametrize("column", SEALED_COLUMNS, ids=str)
def test_a_value_opens_in_its_place(column, keyring):
    assert keyring.open(keyring.seal(b"value", **place(column)), **place(column)) == b"value"


@pytest.mark.parametrize("column", SEALED_COLUMNS, ids=str)
def test_a_value_is_refused_and_told_of_everywhere_else(column, keyring):
    sealed = keyring.seal(b"value", **place(column))
    elsewhere = [place(other) for other in SEALED_COLUMNS if other != column]
    elsewhere.append(place(column, row="fedcba9876543210"))
    told = []
    keyring.told_of_refusals = lambda *where: told.append(where)
    for where in elsewhere:
        with pytest.raises(RayhookError):
            keyring.open(sealed, **where)
    keyring.told_of_refusals = None
    assert told == [tuple(where.values()) for where in elsewhere]


@pytest.mark.parametrize("column", SEALED_COLUMNS, ids=str)
def test_a_value_of_another_installation_is_refused(column, keyring, installation):
    with pytest.raises(RayhookError):
        keyring.open(installation.seal(b"value", **place(column)), **place(column))


def test_equal_values_differ_once_sealed(keyring):
    sealed = {keyring.seal(b"value", **place(SEALED_COLUMNS[0])) for _ in range(1000)}
    assert len(sealed) == 1000
    assert {key_of(one) for one in sealed} == {keyring.sealing_key}


@pytest.mark.parametrize("column", [one for one in SEALED_COLUMNS if one.under is Under.DATA_KEY], ids=str)
def test_a_value_under_a_data_key_opens_in_its_place_alone(column):
    key, _ = DataKey.new()
    sealed = key.seal(b"value", **place(column))
    elsewhere = [place(other) for other in SEALED_COLUMNS if other != column]
    elsewhere.append(place(column, row="fedcba9876543210"))
    for where in elsewhere:
        with pytest.raises(RayhookError):
            key.open(sealed, **where)
    assert key.open(sealed, **place(column)) == b"value"


def test_every_value_that_was_moved_is_in_the_audit(keyring, tmp_path, migrated_sqlite):
    database = create_database(f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'rayhook.sqlite3')}")
    audit = AuditLog(keyring)
    with DecryptionAlarm(keyring, database.sessions, audit).listening():
        for column in SEALED_COLUMNS:
            sealed = keyring.seal(b"value", **place(column))
            with pytest.raises(RayhookError):
                keyring.open(sealed, **place(column, row="fedcba9876543210"))
    with database.reading() as session:
        events = recent(session, keyring, limit=100)
    database.close()
    told = [event.detail["column"] for event in events if str(event.kind) == "auth:decryption:failed"]
    assert sorted(told) == sorted(map(str, SEALED_COLUMNS))
