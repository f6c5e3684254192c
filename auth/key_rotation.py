"""Changes of the keyring file: client keys, the audit's key, and the keys that seal columns.

Tink's way for these: a key is added and opens; once every process has it, it is promoted and seals; what the old
one sealed is sealed anew; then the old one is disabled, and after that destroyed. Nothing is unreadable meanwhile.

Spec: https://developers.google.com/tink/key-management-overview (key rotation); NIST SP 800-57 part 1, 5.3
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rayhook.auth.client_keys import GRACE_S, ClientKeyStatus, private_pem, rotated
from rayhook.auth.encryption import (
    EncryptionKey,
    encryption_keys,
    primary_key,
    with_new_key,
    with_primary,
    with_status,
    without_key,
)
from rayhook.auth.keyring_file import VERSION, EncryptionKeyDates, KeyFile, KeyringFile, ed25519_key
from rayhook.auth.keys import client_key_statuses, client_keys
from rayhook.fhir.errors import Conflict, NotFound

Clock = Callable[[], float]

DISTRIBUTION_S: Final = 3600.0


class EncryptionKeyState(StrEnum):
    """`primary` seals; `added` will, once it has come everywhere; `retiring` still opens; `disabled` does nothing."""

    ADDED = "added"
    DISABLED = "disabled"
    PRIMARY = "primary"
    RETIRING = "retiring"


@dataclass(frozen=True, slots=True)
class EncryptionKeyStatus:
    """What may be told of a key. Times are seconds since the epoch; None for the first key of an installation."""

    key_id: int
    state: EncryptionKeyState
    added_at: float | None = None
    ready_at: float | None = None
    promoted_at: float | None = None


def rotate_client_keys(
    source: KeyringFile, *, grace_s: float = GRACE_S, clock: Clock = time.time
) -> tuple[ClientKeyStatus, ...]:
    """Let the next client keys sign, make new next ones, and keep the old ones published for `grace_s`."""
    with source.locked():
        file = source.read()
        now = clock()
        changed = msgspec.structs.replace(
            file,
            version=VERSION,
            smart_es384=rotated("ES384", file.client_keys("ES384"), now=now, grace_s=grace_s),
            smart_rs384=rotated("RS384", file.client_keys("RS384"), now=now, grace_s=grace_s),
        )
        source.replace(changed)
    return client_key_statuses(client_keys(changed))


def rotate_audit_key(source: KeyringFile, hand_over: Callable[[Ed25519PrivateKey], None]) -> None:
    """Make a new key sign the audit's checkpoints, after `hand_over` has put the old key's word for it on record.

    The new key is in the file before that: a rotation that was interrupted is finished by the next one.
    """
    with source.locked():
        file = source.read()
        if file.audit_ed25519_next is None:
            pem = private_pem(Ed25519PrivateKey.generate())
            file = msgspec.structs.replace(file, audit_ed25519_next=pem)
            source.replace(file)
        assert file.audit_ed25519_next is not None
        hand_over(ed25519_key(file.audit_ed25519_next))
        source.replace(
            msgspec.structs.replace(file, audit_ed25519=file.audit_ed25519_next, audit_ed25519_next=None)
        )


def encryption_key_statuses(source: KeyringFile) -> tuple[EncryptionKeyStatus, ...]:
    return _statuses(source.read())


def add_encryption_key(
    source: KeyringFile, *, distribution_s: float = DISTRIBUTION_S, clock: Clock = time.time
) -> EncryptionKeyStatus:
    """Add a key that opens at once, and may seal when `distribution_s` are over: every process has it by then.

    Raises Conflict where one was added and not promoted yet.
    """
    with source.locked():
        file = source.read()
        waiting = [one for one in _statuses(file) if one.state is EncryptionKeyState.ADDED]
        if waiting:
            raise Conflict(f"key {waiting[0].key_id} was added and waits to be promoted", code="key_waits")
        keyset, key_id = with_new_key(file.encryption)
        now = clock()
        dates = EncryptionKeyDates(key_id, added_at=now, ready_at=now + distribution_s)
        changed = msgspec.structs.replace(
            file, encryption=keyset, encryption_dates=(*file.encryption_dates, dates)
        )
        source.replace(changed)
    return _status(changed, key_id)


def promote_encryption_key(source: KeyringFile, *, clock: Clock = time.time) -> EncryptionKeyStatus:
    """Let the added key seal. Raises Conflict before its time, NotFound where none was added."""
    with source.locked():
        file = source.read()
        added = next((one for one in _statuses(file) if one.state is EncryptionKeyState.ADDED), None)
        if added is None:
            raise NotFound("no key waits to be promoted; add one first", code="no_key_waits")
        now = clock()
        if (added.ready_at or 0.0) > now:
            left = (added.ready_at or 0.0) - now
            raise Conflict(
                f"key {added.key_id} may seal in {left / 60:.0f} minutes: until then a process may be without it",
                code="key_not_distributed",
            )
        dates = tuple(
            msgspec.structs.replace(one, promoted_at=now) if one.key_id == added.key_id else one
            for one in file.encryption_dates
        )
        changed = msgspec.structs.replace(
            file, encryption=with_primary(file.encryption, added.key_id), encryption_dates=dates
        )
        source.replace(changed)
    return _status(changed, added.key_id)


def disable_encryption_key(source: KeyringFile, key_id: int) -> EncryptionKeyStatus:
    """Let a retiring key open nothing more; it can be enabled again. Raises Conflict for any other."""
    return _with_enabled(source, key_id, enabled=False, of=EncryptionKeyState.RETIRING)


def enable_encryption_key(source: KeyringFile, key_id: int) -> EncryptionKeyStatus:
    return _with_enabled(source, key_id, enabled=True, of=EncryptionKeyState.DISABLED)


def destroy_encryption_key(source: KeyringFile, key_id: int) -> None:
    """Take a disabled key out of the file, for ever. Raises Conflict for any other."""
    with source.locked():
        file = source.read()
        _expect(file, key_id, EncryptionKeyState.DISABLED)
        source.replace(
            msgspec.structs.replace(
                file,
                encryption=without_key(file.encryption, key_id),
                encryption_dates=tuple(one for one in file.encryption_dates if one.key_id != key_id),
            )
        )


def _with_enabled(
    source: KeyringFile, key_id: int, *, enabled: bool, of: EncryptionKeyState
) -> EncryptionKeyStatus:
    with source.locked():
        file = source.read()
        _expect(file, key_id, of)
        keyset = with_status(file.encryption, key_id, enabled=enabled)
        changed = msgspec.structs.replace(file, encryption=keyset)
        source.replace(changed)
    return _status(changed, key_id)


def _expect(file: KeyFile, key_id: int, state: EncryptionKeyState) -> None:
    found = _status(file, key_id).state
    if found is not state:
        raise Conflict(f"key {key_id} is {found}, not {state}", code="key_state")


def _status(file: KeyFile, key_id: int) -> EncryptionKeyStatus:
    for one in _statuses(file):
        if one.key_id == key_id:
            return one
    raise NotFound(f"the keyring has no key {key_id}", code="no_such_key")


def _statuses(file: KeyFile) -> tuple[EncryptionKeyStatus, ...]:
    dates = {one.key_id: one for one in file.encryption_dates}
    primary = dates.get(primary_key(file.encryption))
    return tuple(
        _told(key, dates.get(key.key_id), primary_since=0.0 if primary is None else primary.added_at)
        for key in encryption_keys(file.encryption)
    )


def _told(
    key: EncryptionKey, dates: EncryptionKeyDates | None, *, primary_since: float
) -> EncryptionKeyStatus:
    if key.primary:
        state = EncryptionKeyState.PRIMARY
    elif not key.enabled:
        state = EncryptionKeyState.DISABLED
    elif dates is not None and dates.promoted_at is None and dates.added_at >= primary_since:
        state = EncryptionKeyState.ADDED
    else:
        state = EncryptionKeyState.RETIRING
    if dates is None:
        return EncryptionKeyStatus(key.key_id, state)
    return EncryptionKeyStatus(key.key_id, state, dates.added_at, dates.ready_at, dates.promoted_at)
