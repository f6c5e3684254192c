import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from rayhook.audit.review import recent
from rayhook.auth.keyring_file import KeyringFile, is_wrapped
from rayhook.auth.keys import Keyring
from rayhook.deploy.cli import app
from rayhook.deploy.keyring_custody import Custody
from rayhook.deploy.kms import keyring_file, open_keyring
from rayhook.deploy.maintenance import Installation
from rayhook.deploy.storage_settings import StorageSettings
from rayhook.fhir.errors import RayhookError, ServiceUnavailable
from tests.doubles.kms import kms_that_says, make_key
from tests.doubles.object_store import object_store

PLACE = {"table": "t", "column": "c", "row": "1"}
# The process ends as by SIGKILL, just before the new file takes the old one's place.
KILLED = """
import os, signal, sys
from pathlib import Path
from rayhook.deploy.cli import main
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main()
"""


@pytest.fixture(scope="module", autouse=True)
def kms():
    with object_store() as endpoint:
        yield endpoint


@pytest.fixture
def key():
    return make_key()


@pytest.fixture
def plain(keyring_to_copy, tmp_path, migrated_sqlite):
    shutil.copy(keyring_to_copy, tmp_path / "keyring.json")
    shutil.copy(migrated_sqlite, tmp_path / "rayhook.sqlite3")
    return StorageSettings(data_dir=tmp_path)


def under(plain, key):
    return StorageSettings(data_dir=plain.data_dir, kms_key=key.uri)


@pytest.fixture
def wrapped(plain, key):
    """The settings of an installation after its keyring was wrapped."""
    with Installation.opened(plain) as installation:
        Custody(installation, plain).wrap(key.uri)
    return under(plain, key)


def run(plain, *arguments, kms_key=None):
    environment = {"RAYHOOK_DATA_DIR": str(plain.data_dir)}
    environment |= {} if kms_key is None else {"RAYHOOK_KMS_KEY": kms_key}
    return CliRunner(env=environment).invoke(app, ["keys", *arguments])


def test_wrapping_keeps_every_key(plain, key):
    before = Keyring.load_or_create(plain.keyring_path)
    sealed = before.seal(b"value", **PLACE)
    assert run(plain, "wrap", "--kms-key", key.uri).exit_code == 0
    after = open_keyring(under(plain, key))
    assert after.open(sealed, **PLACE) == b"value"
    assert after.audit_public_key == before.audit_public_key


def test_the_wrapped_file_tells_nothing(plain, wrapped):
    assert is_wrapped(plain.keyring_path)
    assert "PRIVATE" not in plain.keyring_path.read_text()
    assert plain.keyring_path.stat().st_mode & 0o777 == 0o600


def test_nothing_of_the_plain_file_stays_in_the_folder(plain, wrapped):
    names = sorted(path.name for path in plain.data_dir.iterdir() if "sqlite" not in path.name)
    assert names == ["keyring.json"]


def test_wrapping_twice_is_refused(plain, wrapped, key):
    assert run(plain, "wrap", "--kms-key", key.uri, kms_key=key.uri).exception.code == "keyring_wrapped"


def test_an_alias_is_no_key(plain):
    result = run(plain, "wrap", "--kms-key", "aws-kms://arn:aws:kms:us-east-1:123456789012:alias/a")
    assert result.exception.code == "invalid_setting"


def test_a_key_that_may_wrap_and_not_unwrap_leaves_the_plain_file(plain, key, monkeypatch):
    from rayhook.auth.kms import KMSWrap

    def refuses(_self, _text):
        raise ServiceUnavailable("the KMS refuses its key", code="kms_refused")

    monkeypatch.setattr(KMSWrap, "unwrap", refuses)
    assert run(plain, "wrap", "--kms-key", key.uri).exception.code == "kms_refused"
    assert not is_wrapped(plain.keyring_path)


def test_a_kms_that_says_no_leaves_the_plain_file(plain, key, monkeypatch):
    with kms_that_says("AccessDeniedException") as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert run(plain, "wrap", "--kms-key", key.uri).exception.code == "kms_refused"
    assert not is_wrapped(plain.keyring_path)


def test_rewrapping_makes_a_new_data_key(plain, wrapped, key):
    before = json.loads(plain.keyring_path.read_text())["data_key"]
    assert run(plain, "rewrap", kms_key=key.uri).exit_code == 0
    assert json.loads(plain.keyring_path.read_text())["data_key"] != before
    assert open_keyring(wrapped)


def test_rewrapping_goes_over_to_another_kms_key(plain, wrapped, key):
    sealed = open_keyring(wrapped).seal(b"value", **PLACE)
    other = make_key()
    assert run(plain, "rewrap", "--kms-key", other.uri, kms_key=key.uri).exit_code == 0
    assert open_keyring(under(plain, other)).open(sealed, **PLACE) == b"value"
    with pytest.raises(RayhookError):
        open_keyring(wrapped)


def test_a_plain_keyring_is_not_rewrapped(plain):
    assert run(plain, "rewrap").exception.code == "keyring_not_wrapped"


def test_unwrapping_has_to_be_meant(plain, wrapped, key):
    assert run(plain, "unwrap", kms_key=key.uri).exception.code == "unwrap_not_meant"
    assert is_wrapped(plain.keyring_path)


def test_unwrapping_gives_the_plain_file_back(plain, wrapped, key):
    sealed = open_keyring(wrapped).seal(b"value", **PLACE)
    assert run(plain, "unwrap", "--into-a-plain-file", kms_key=key.uri).exit_code == 0
    assert Keyring.load_or_create(plain.keyring_path).open(sealed, **PLACE) == b"value"


def test_it_is_recorded_by_which_key(plain, wrapped, key):
    with Installation.opened(wrapped) as installation, installation.database.reading() as session:
        found = recent(session, installation.keyring, limit=2)
    assert {str(one.kind) for one in found} == {"auth:keyring:wrapped"}
    assert [one.detail["phase"] for one in found] == ["done", "begun"]
    assert found[0].detail["key"] == key.uri


def test_a_kill_in_the_middle_leaves_a_whole_file(plain, key):
    before = plain.keyring_path.read_bytes()
    command = [sys.executable, "-c", KILLED, "keys", "wrap", "--kms-key", key.uri]
    environment = os.environ | {"RAYHOOK_DATA_DIR": str(plain.data_dir)}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert plain.keyring_path.read_bytes() == before
    assert run(plain, "wrap", "--kms-key", key.uri).exit_code == 0


def test_keys_are_rotated_inside_the_envelope(plain, wrapped, key):
    assert run(plain, "rotate-client", kms_key=key.uri).exit_code == 0
    assert is_wrapped(plain.keyring_path)
    assert isinstance(keyring_file(wrapped), KeyringFile)
