import json
import shutil

import pytest

from rayhook.auth.encryption import key_of
from rayhook.auth.key_rotation import (
    add_encryption_key,
    destroy_encryption_key,
    disable_encryption_key,
    enable_encryption_key,
    encryption_key_statuses,
    promote_encryption_key,
    rotate_audit_key,
)
from rayhook.auth.keyring_file import KeyringFile
from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import Conflict, NotFound, RayhookError

PLACE = {"table": "t", "column": "c", "row": "1"}


@pytest.fixture
def source(keyring_to_copy, tmp_path):
    shutil.copy(keyring_to_copy, tmp_path / "keyring.json")
    return KeyringFile(tmp_path / "keyring.json")


@pytest.fixture
def keyring(source):
    return Keyring.load_or_create(source.path)


def states(source):
    return [one.state.value for one in encryption_key_statuses(source)]


def promoted(source):
    """Add a key and promote it; return the ids of the old and the new one."""
    [old] = encryption_key_statuses(source)
    new = add_encryption_key(source, distribution_s=0.0, clock=lambda: 100.0)
    promote_encryption_key(source, clock=lambda: 100.0)
    return old.key_id, new.key_id


def test_an_added_key_does_not_seal_yet(source, keyring):
    before = keyring.sealing_key
    add_encryption_key(source, distribution_s=60.0)
    assert keyring.sealing_key == before
    assert states(source) == ["primary", "added"]


def test_a_second_key_is_not_added_while_one_waits(source):
    add_encryption_key(source)
    with pytest.raises(Conflict) as refusal:
        add_encryption_key(source)
    assert refusal.value.code == "key_waits"


def test_a_key_is_not_promoted_before_every_process_has_it(source):
    add_encryption_key(source, distribution_s=60.0, clock=lambda: 1000.0)
    with pytest.raises(Conflict) as refusal:
        promote_encryption_key(source, clock=lambda: 1059.0)
    assert refusal.value.code == "key_not_distributed"


def test_it_is_promoted_then(source, keyring):
    added = add_encryption_key(source, distribution_s=60.0, clock=lambda: 1000.0)
    promote_encryption_key(source, clock=lambda: 1060.0)
    assert keyring.sealing_key == added.key_id
    assert states(source) == ["retiring", "primary"]


def test_nothing_is_promoted_that_was_not_added(source):
    with pytest.raises(NotFound):
        promote_encryption_key(source)


def test_what_the_old_key_sealed_stays_readable(source, keyring):
    sealed = keyring.seal(b"value", **PLACE)
    promoted(source)
    assert keyring.open(sealed, **PLACE) == b"value"


def test_a_process_with_the_old_file_reads_what_the_new_key_seals(source, keyring):
    promoted(source)
    sealed = Keyring.load_or_create(source.path).seal(b"value", **PLACE)
    keyring._look_at = float("inf")  # it has looked just now
    assert keyring.open(sealed, **PLACE) == b"value"


def test_a_process_that_only_knows_the_added_key_reads_what_the_promoted_one_seals(source, tmp_path):
    """A machine with a copy of the file from between add and promote."""
    add_encryption_key(source, distribution_s=0.0)
    copy = shutil.copy(source.path, tmp_path / "copy.json")
    promote_encryption_key(source)
    sealed = Keyring.load_or_create(source.path).seal(b"value", **PLACE)
    assert Keyring.load_or_create(copy).open(sealed, **PLACE) == b"value"


def test_the_new_key_marks_what_it_seals(source, keyring):
    _, new = promoted(source)
    assert keyring.sealing_key == new
    assert key_of(keyring.seal(b"value", **PLACE)) == new


def test_the_sealing_key_is_not_disabled(source):
    _, new = promoted(source)
    with pytest.raises(Conflict):
        disable_encryption_key(source, new)


def test_a_disabled_key_opens_nothing(source, keyring):
    sealed = keyring.seal(b"value", **PLACE)
    old, _ = promoted(source)
    disable_encryption_key(source, old)
    with pytest.raises(RayhookError) as failure:
        Keyring.load_or_create(source.path).open(sealed, **PLACE)
    assert failure.value.code == "decryption_failed"


def test_a_key_that_is_enabled_again_opens(source, keyring):
    sealed = keyring.seal(b"value", **PLACE)
    old, _ = promoted(source)
    disable_encryption_key(source, old)
    enable_encryption_key(source, old)
    assert Keyring.load_or_create(source.path).open(sealed, **PLACE) == b"value"


def test_only_a_disabled_key_is_destroyed(source):
    old, _ = promoted(source)
    with pytest.raises(Conflict):
        destroy_encryption_key(source, old)


def test_a_destroyed_key_is_in_the_file_no_more(source):
    old, _ = promoted(source)
    disable_encryption_key(source, old)
    destroy_encryption_key(source, old)
    assert str(old) not in source.path.read_text()


def test_an_unknown_key_is_said_to_be_none(source):
    with pytest.raises(NotFound):
        disable_encryption_key(source, 1)


def test_the_next_rotation_is_told_from_the_last(source):
    promoted(source)
    add_encryption_key(source, distribution_s=0.0, clock=lambda: 200.0)
    assert states(source) == ["retiring", "primary", "added"]


def test_a_file_without_rotation_is_as_an_older_release_reads_it(source):
    assert "encryption_dates" not in json.loads(source.path.read_text())


def test_a_file_of_another_installation_is_not_taken_up(source, keyring, tmp_path):
    sealed = keyring.seal(b"value", **PLACE)
    Keyring.load_or_create(tmp_path / "other.json")
    shutil.copy(tmp_path / "other.json", source.path)
    assert keyring.open(sealed, **PLACE) == b"value"
    assert len(keyring.opening_keys) == 1


def test_the_keyring_counts_what_each_key_seals(source, keyring):
    old, new = promoted(source)
    Keyring.load_or_create(source.path)
    keyring.sealing_key  # noqa: B018 - it looks at the file
    for _ in range(3):
        keyring.seal(b"value", **PLACE)
    assert dict(keyring.take_uses()) == {new: 3}
    assert dict(keyring.take_uses()) == {}
    assert old != new


def test_a_running_process_takes_up_the_audits_new_key(source, keyring):
    before = keyring.audit_signing_key
    rotate_audit_key(source, lambda _key: None)
    assert keyring.next_audit_signing_key().public_key() != before.public_key()


def test_the_audits_next_key_is_had_before_it_is_promoted(source, keyring):
    seen = []
    rotate_audit_key(
        source, lambda key: seen.append((key.public_key(), keyring.next_audit_signing_key().public_key()))
    )
    [(handed, found)] = seen
    assert found == handed


def test_the_keyring_says_since_when_its_key_seals(source, keyring):
    assert keyring.sealing_since is None
    promoted(source)
    assert keyring.sealing_since == 100.0
