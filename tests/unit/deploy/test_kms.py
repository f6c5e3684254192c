import base64
import json
import threading
import time

import boto3
import pytest
from moto.core import set_initial_no_auth_action_count

from rayhook.auth.encryption import key_of
from rayhook.auth.key_rotation import add_encryption_key, promote_encryption_key, rotate_client_keys
from rayhook.auth.keyring_file import KeyringFile
from rayhook.deploy.health import Health, Phase
from rayhook.deploy.kms import await_kms, keyring_file, kms_wrap, open_keyring
from rayhook.deploy.storage_settings import StorageSettings
from rayhook.fhir.errors import InvalidRequest, ServiceUnavailable
from tests.doubles.kms import kms_that_says, make_key
from tests.doubles.object_store import object_store
from tests.ports import free_port

PLACE = {"table": "t", "column": "c", "row": "1"}


@pytest.fixture(scope="module", autouse=True)
def kms():
    with object_store() as endpoint:
        yield endpoint


@pytest.fixture
def key():
    return make_key()


@pytest.fixture
def unmade(tmp_path, key):
    return StorageSettings(data_dir=tmp_path, kms_key=key.uri, installation="ward-7")


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Keys to be wrapped: making RSA keys takes a second."""
    source = KeyringFile(tmp_path_factory.mktemp("plain") / "keyring.json")
    source.ensure()
    return source.read()


@pytest.fixture
def settings(unmade, content):
    keyring_file(unmade).replace(content)
    return unmade


def code_of(settings):
    with pytest.raises(ServiceUnavailable) as refusal:
        open_keyring(settings)
    return refusal.value.code


def altered(settings, member, change):
    path = settings.keyring_path
    content = json.loads(path.read_text())
    content[member] = change(content[member])
    path.write_text(json.dumps(content, separators=(",", ":")))


def flipped(text):
    content = bytearray(base64.b64decode(text))
    content[-1] ^= 1
    return base64.b64encode(content).decode()


def test_a_wrapped_keyring_opens_again(unmade):
    sealed = open_keyring(unmade).seal(b"value", **PLACE)
    assert open_keyring(unmade).open(sealed, **PLACE) == b"value"


def test_the_file_holds_no_key(settings):
    text = settings.keyring_path.read_text()
    assert not {"PRIVATE", "AesGcmKey", "smart_es384"} & set(text.replace('"', " ").split())
    assert "BEGIN" not in text


def test_the_file_is_the_owners_alone(unmade):
    open_keyring(unmade)
    assert unmade.keyring_path.stat().st_mode & 0o777 == 0o600


def test_a_wrapped_file_that_others_may_read_is_refused_too(settings):
    settings.keyring_path.chmod(0o644)
    assert code_of(settings) == "keyring_refused"


def test_the_encryption_context_names_installation_and_purpose(settings, key):
    data_key = base64.b64decode(json.loads(settings.keyring_path.read_text())["data_key"])
    context = {"rayhook:installation": "ward-7", "rayhook:purpose": "keyring"}
    opened = key.client.decrypt(KeyId=key.arn, CiphertextBlob=data_key, EncryptionContext=context)
    assert len(opened["Plaintext"]) == 32


@pytest.mark.parametrize("member", ["data_key", "content"])
def test_an_altered_envelope_is_refused(settings, member):
    altered(settings, member, flipped)
    assert code_of(settings) in {"keyring_refused", "kms_refused"}


@pytest.mark.parametrize("member", ["data_key", "content"])
def test_an_envelope_that_is_no_base64_is_refused(settings, member):
    altered(settings, member, lambda _: "*")
    assert code_of(settings) == "keyring_refused"


def test_an_envelope_of_another_version_is_refused(settings):
    altered(settings, "version", lambda _: 2)
    assert code_of(settings) == "keyring_refused"


def test_a_key_of_somebody_elses_in_the_file_is_not_taken(settings):
    other = make_key()
    altered(settings, "kms_key", lambda _: other.uri)
    assert code_of(settings) == "keyring_refused"


def test_a_whole_envelope_of_another_key_is_refused(settings, tmp_path):
    other = StorageSettings(data_dir=tmp_path / "other", kms_key=make_key().uri, installation="ward-7")
    open_keyring(other)
    open_keyring(other)
    settings.keyring_path.write_bytes(other.keyring_path.read_bytes())
    assert code_of(settings) == "keyring_refused"


def test_a_data_key_that_another_kms_key_wrapped_is_refused(settings):
    other = make_key()
    context = {"rayhook:installation": "ward-7", "rayhook:purpose": "keyring"}
    made = other.client.generate_data_key(KeyId=other.arn, KeySpec="AES_256", EncryptionContext=context)
    altered(settings, "data_key", lambda _: base64.b64encode(made["CiphertextBlob"]).decode())
    assert code_of(settings) in {"keyring_refused", "kms_refused"}


def test_what_was_wrapped_for_another_installation_is_refused(settings, key):
    other = StorageSettings(data_dir=settings.data_dir, kms_key=key.uri, installation="ward-8")
    assert code_of(other) == "keyring_refused"


def test_kms_itself_refuses_another_installations_context(settings, key):
    altered(settings, "installation", lambda _: "ward-8")
    other = StorageSettings(data_dir=settings.data_dir, kms_key=key.uri, installation="ward-8")
    assert code_of(other) == "keyring_refused"


def test_a_plain_file_is_no_substitute(settings, content):
    KeyringFile(settings.keyring_path).replace(content)
    assert code_of(settings) == "keyring_refused"


def test_a_wrapped_file_does_not_open_without_its_key_being_named(settings, tmp_path):
    assert code_of(StorageSettings(data_dir=tmp_path)) == "keyring_refused"


def test_a_principal_that_kms_denies_is_refused(settings, monkeypatch):
    iam = boto3.client("iam")
    iam.create_user(UserName="eve")
    found = iam.create_access_key(UserName="eve")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", found["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", found["SecretAccessKey"])
    assert set_initial_no_auth_action_count(0)(code_of)(settings) == "kms_refused"


@pytest.mark.parametrize(
    ("answer", "status", "expected"),
    [
        ("DisabledException", 400, "kms_refused"),
        ("KMSInvalidStateException", 400, "kms_refused"),
        ("NotFoundException", 400, "kms_refused"),
        ("IncorrectKeyException", 400, "keyring_refused"),
        ("InvalidCiphertextException", 400, "keyring_refused"),
        ("KeyUnavailableException", 500, "kms_unavailable"),
        ("KMSInternalException", 500, "kms_unavailable"),
    ],
)
def test_what_kms_says_is_told_apart(settings, monkeypatch, answer, status, expected):
    with kms_that_says(answer, status=status) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert code_of(settings) == expected


def test_who_may_not_is_in_no_message(settings, monkeypatch):
    with kms_that_says("AccessDeniedException") as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(ServiceUnavailable) as refusal:
            open_keyring(settings)
    assert "eve" not in refusal.value.message


def test_a_kms_that_is_away_is_unavailable(settings, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert code_of(settings) == "kms_unavailable"


def test_no_keyring_is_made_while_kms_is_away(unmade, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert code_of(unmade) == "kms_unavailable"
    assert list(unmade.data_dir.iterdir()) == []


def test_keys_do_not_go_over_plain_http(key, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://kms.hospital.example")
    with pytest.raises(InvalidRequest, match="https"):
        kms_wrap(key.uri, "ward-7")


@pytest.mark.parametrize(
    "uri",
    [
        "arn:aws:kms:us-east-1:123456789012:key/1",
        "aws-kms://arn:aws:kms:us-east-1:123456789012:alias/rayhook",
        "gcp-kms://projects/p",
    ],
)
def test_only_a_keys_own_arn_names_it(tmp_path, uri):
    with pytest.raises(ValueError, match="kms_key"):
        StorageSettings(data_dir=tmp_path, kms_key=uri)


def test_every_writing_has_its_own_data_key(settings):
    before = json.loads(settings.keyring_path.read_text())["data_key"]
    rotate_client_keys(keyring_file(settings))
    assert json.loads(settings.keyring_path.read_text())["data_key"] != before


def test_a_running_process_takes_up_a_wrapped_file_that_changed(settings):
    keyring = open_keyring(settings)
    added = add_encryption_key(keyring_file(settings), distribution_s=60)
    assert added.key_id in keyring.opening_keys


def test_a_running_process_keeps_its_keys_while_kms_is_away(settings, monkeypatch):
    keyring = open_keyring(settings)
    sealed = keyring.seal(b"value", **PLACE)
    content = keyring_file(settings)
    add_encryption_key(content, distribution_s=60)
    keyring._source = KeyringFile(settings.keyring_path, away(settings, monkeypatch))
    assert keyring.open(sealed, **PLACE) == b"value"
    assert len(keyring.opening_keys) == 1


class Slow:
    """A KMS that takes its time."""

    def __init__(self):
        self.answers, self.was_waited_for = threading.Event(), False

    def unwrap(self, _text):
        self.was_waited_for = not self.answers.wait(30)
        raise ServiceUnavailable("the KMS does not answer", code="kms_unavailable")


def test_nobody_waits_for_a_slow_kms_who_has_the_keys_in_hand(settings):
    keyring = open_keyring(settings)
    add_encryption_key(keyring_file(settings), distribution_s=60)
    slow = Slow()
    keyring._source = KeyringFile(settings.keyring_path, slow)
    sealed = [keyring.seal(b"value", **PLACE) for _ in range(3)]
    assert [keyring.open(one, **PLACE) for one in sealed] == [b"value"] * 3
    assert not slow.was_waited_for
    slow.answers.set()


def test_what_changed_is_taken_up_beside_the_work(settings):
    keyring = open_keyring(settings)
    add_encryption_key(keyring_file(settings), distribution_s=0)
    new = promote_encryption_key(keyring_file(settings)).key_id
    deadline = time.monotonic() + 30
    while key_of(keyring.seal(b"value", **PLACE)) != new and time.monotonic() < deadline:
        time.sleep(0.05)
    assert key_of(keyring.seal(b"value", **PLACE)) == new


def test_it_asks_kms_again_later(settings, monkeypatch):
    keyring = open_keyring(settings)
    whole = keyring._source
    add_encryption_key(whole, distribution_s=60)
    keyring._source = KeyringFile(settings.keyring_path, away(settings, monkeypatch))
    assert len(keyring.opening_keys) == 1
    keyring._source, keyring._try_again_at = whole, 0.0
    assert len(keyring.opening_keys) == 2


def away(settings, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        return kms_wrap(settings.kms_key, settings.installation)


def test_a_start_waits_for_kms_and_says_so(settings, monkeypatch):
    endpoint = boto3.client("kms").meta.endpoint_url
    monkeypatch.setattr("rayhook.deploy.kms._ASK_AGAIN_S", 0.05)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    health, stopping = Health(), threading.Event()
    waiting = threading.Thread(target=await_kms, args=(settings, health, stopping))
    waiting.start()
    deadline = time.monotonic() + 30
    while health.waiting is None and time.monotonic() < deadline:
        time.sleep(0.01)
    report = health.ready()
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    waiting.join(60)
    health.close()
    assert (report.phase, dict(report.checks)) == (Phase.STARTING, {"kms": "unavailable"})
    assert not waiting.is_alive()
    assert health.waiting is None


def test_a_start_that_is_stopped_waits_no_longer(settings, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    health, stopping = Health(), threading.Event()
    stopping.set()
    with pytest.raises(ServiceUnavailable):
        await_kms(settings, health, stopping)
    health.close()


def test_a_start_does_not_wait_for_a_kms_that_says_no(settings, monkeypatch):
    health = Health()
    with kms_that_says("DisabledException") as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(ServiceUnavailable) as refusal:
            await_kms(settings, health, threading.Event())
    health.close()
    assert refusal.value.code == "kms_refused"
