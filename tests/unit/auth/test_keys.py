import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rayhook.auth.encryption import new_encryption_keyset
from rayhook.auth.key_rotation import rotate_client_keys
from rayhook.auth.keyring_file import KeyringFile
from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import RayhookError, ServiceUnavailable

PLACE = {"table": "analysis_result", "column": "report", "row": "7"}
START = """
import sys
from pathlib import Path
from rayhook.auth.keys import Keyring
sys.stdin.readline()
print(Keyring.load_or_create(Path(sys.argv[1])).blind_index("a", purpose="b"))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "keyring.json"


def test_the_file_is_the_owners_alone(path: Path) -> None:
    Keyring.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_else_is_left_in_the_folder(path: Path) -> None:
    Keyring.load_or_create(path)
    assert [found.name for found in path.parent.iterdir()] == ["keyring.json"]


def test_the_second_start_finds_the_first_ones_keys(path: Path) -> None:
    sealed = Keyring.load_or_create(path).seal(b"value", **PLACE)
    assert Keyring.load_or_create(path).open(sealed, **PLACE) == b"value"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o610])
def test_a_file_that_others_may_touch_is_refused(path: Path, mode: int) -> None:
    Keyring.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(ServiceUnavailable, match=f"{mode:04o}"):
        Keyring.load_or_create(path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{}", id="no keys"),
        pytest.param(b"not json", id="not JSON"),
        pytest.param(b'{"version": 2}', id="other version"),
    ],
)
def test_a_damaged_file_is_refused_and_kept(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(ServiceUnavailable):
        Keyring.load_or_create(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("member", ["encryption", "index"])
def test_a_damaged_keyset_is_refused_at_the_start(path: Path, member: str) -> None:
    Keyring.load_or_create(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {member: "{}"}))
    with pytest.raises(ServiceUnavailable) as refusal:
        Keyring.load_or_create(path)
    assert refusal.value.code == "keyring_refused"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServiceUnavailable):
        Keyring.load_or_create(tmp_path)


def test_threads_that_start_at_once_get_one_keyring(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keyrings = list(pool.map(lambda _: Keyring.load_or_create(path), range(8)))
    assert len({keyring.blind_index("a", purpose="b") for keyring in keyrings}) == 1


def test_processes_that_start_at_once_get_one_keyring(path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    digests = {process.communicate(timeout=60)[0].splitlines()[-1] for process in processes}
    assert len(digests) == 1


def test_the_secrets_are_not_in_its_representation(keyring: Keyring) -> None:
    assert "PRIVATE" not in repr(keyring)
    assert "PRIVATE" not in str(vars(keyring))


def test_two_installations_have_different_indexes(keyring: Keyring, path: Path) -> None:
    other = Keyring.load_or_create(path)
    assert keyring.blind_index("p1", purpose="patient") != other.blind_index("p1", purpose="patient")


def test_the_index_is_the_same_every_time(keyring: Keyring) -> None:
    assert keyring.blind_index("p1", purpose="patient") == keyring.blind_index("p1", purpose="patient")


def test_another_installation_cannot_open(keyring: Keyring, path: Path) -> None:
    with pytest.raises(RayhookError) as failure:
        Keyring.load_or_create(path).open(keyring.seal(b"value", **PLACE), **PLACE)
    assert failure.value.code == "decryption_failed"


def test_an_audit_signature_verifies(keyring: Keyring) -> None:
    keyring.audit_public_key.verify(keyring.audit_signing_key.sign(b"head"), b"head")


def test_a_failure_does_not_tell_the_row(keyring: Keyring) -> None:
    with pytest.raises(RayhookError) as failure:
        keyring.open(b"no ciphertext", table="t", column="c", row="patient-17")
    assert "patient-17" not in failure.value.message


def test_a_rotated_keyset_still_opens_what_the_old_key_sealed(path: Path) -> None:
    keyring = Keyring.load_or_create(path)
    sealed = keyring.seal(b"value", **PLACE)
    content = json.loads(path.read_text())
    newer = json.loads(new_encryption_keyset())
    keyset = json.loads(content["encryption"])
    keyset["key"] += newer["key"]
    keyset["primaryKeyId"] = newer["primaryKeyId"]
    path.write_text(json.dumps(content | {"encryption": json.dumps(keyset)}))
    rotated = Keyring.load_or_create(path)
    assert rotated.open(sealed, **PLACE) == b"value"
    assert rotated.seal(b"value", **PLACE)[:5] != sealed[:5]


def published(keyring: Keyring, now: float = 0.0) -> list[str]:
    return [str(key.kid) for key in keyring.published_keys(now=now)]


def as_version_1(path: Path) -> dict[str, str]:
    """Write the file back as the first version had it: one client key of each kind."""
    content = json.loads(path.read_text())
    for member in ("smart_es384", "smart_rs384"):
        content[member] = content[member][0]["pem"]
    content["version"] = 1
    path.write_text(json.dumps(content))
    return content


def test_two_keys_of_each_kind_are_published(keyring: Keyring) -> None:
    assert len(set(published(keyring))) == 4


def test_the_current_key_signs(keyring: Keyring) -> None:
    assert keyring.assertion_key("ES384").kid == published(keyring)[0]


def test_rotation_lets_the_next_key_sign(path: Path) -> None:
    before = published(Keyring.load_or_create(path))
    rotate_client_keys(KeyringFile(path))
    keyring = Keyring.load_or_create(path)
    assert keyring.assertion_key("ES384").kid == before[1]
    assert keyring.assertion_key("RS384").kid == before[3]


def test_rotation_keeps_the_old_keys_published_for_the_grace_time(path: Path) -> None:
    old = published(Keyring.load_or_create(path))[0]
    rotate_client_keys(KeyringFile(path), grace_s=60, clock=lambda: 1000.0)
    keyring = Keyring.load_or_create(path)
    assert old in published(keyring, 1059.0)
    assert old not in published(keyring, 1060.0)


def test_a_second_rotation_drops_what_was_retired_too_long(path: Path) -> None:
    Keyring.load_or_create(path)
    rotate_client_keys(KeyringFile(path), grace_s=60, clock=lambda: 1000.0)
    statuses = rotate_client_keys(KeyringFile(path), grace_s=60, clock=lambda: 2000.0)
    assert [status.state for status in statuses] == ["retired", "current", "next"] * 2


def test_rotation_leaves_the_other_keys_alone(path: Path) -> None:
    keyring = Keyring.load_or_create(path)
    sealed = keyring.seal(b"value", **PLACE)
    rotate_client_keys(KeyringFile(path))
    assert Keyring.load_or_create(path).open(sealed, **PLACE) == b"value"


def test_the_rotated_file_is_the_owners_alone(path: Path) -> None:
    Keyring.load_or_create(path)
    rotate_client_keys(KeyringFile(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in path.parent.iterdir()] == ["keyring.json"]


def test_a_running_service_takes_up_rotated_keys(path: Path) -> None:
    keyring = Keyring.load_or_create(path)
    following = published(keyring)[1]
    rotate_client_keys(KeyringFile(path))
    assert keyring.assertion_key("ES384").kid == following


def test_a_file_damaged_while_running_changes_nothing(path: Path) -> None:
    keyring = Keyring.load_or_create(path)
    before = published(keyring)
    path.write_text("{}")
    assert published(keyring) == before


def test_a_keyring_of_version_1_gets_next_keys_and_keeps_its_own(path: Path) -> None:
    before = Keyring.load_or_create(path)
    as_version_1(path)
    after = Keyring.load_or_create(path)
    assert after.assertion_key("RS384").kid == before.assertion_key("RS384").kid
    assert len(set(published(after))) == 4
    assert json.loads(path.read_text())["version"] == 2


def test_a_keyring_of_version_1_that_cannot_be_written_still_serves(path: Path, monkeypatch) -> None:
    before = Keyring.load_or_create(path)
    content = as_version_1(path)

    def read_only(*_: object) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr(KeyringFile, "replace", read_only)
    after = Keyring.load_or_create(path)
    assert published(after) == [before.assertion_key("ES384").kid, before.assertion_key("RS384").kid]
    assert json.loads(path.read_text()) == content


def test_rotations_at_once_lose_no_key(path: Path) -> None:
    Keyring.load_or_create(path)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: rotate_client_keys(KeyringFile(path)), range(3)))
    assert len(set(published(Keyring.load_or_create(path), now=0.0))) == 10


def test_a_file_without_a_current_client_key_is_refused(path: Path) -> None:
    Keyring.load_or_create(path)
    content = json.loads(path.read_text())
    content["smart_es384"][0]["state"] = "next"
    path.write_text(json.dumps(content))
    with pytest.raises(ServiceUnavailable):
        Keyring.load_or_create(path)
