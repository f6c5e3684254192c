"""The installation's own key material: one file, readable by its owner only.

Spec: 45 CFR 164.312(a)(2)(iv); OWASP ASVS 5.0.0 V11.1, V13.3.
"""

import fcntl
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from joserfc.jwk import ECKey, RSAKey

from rayhook.auth.client_keys import (
    ALGORITHMS,
    GRACE_S,
    ClientKeys,
    ClientKeyStatus,
    SigningAlgorithm,
    StoredClientKey,
    new_client_keys,
    private_pem,
    rotated,
    with_next,
)
from rayhook.auth.encryption import BlindIndex, ColumnCipher, new_encryption_keyset, new_index_keyset
from rayhook.fhir.errors import RayhookError, ServiceUnavailable

__all__ = ["Keyring", "SigningAlgorithm", "rotate_audit_key", "rotate_client_keys"]

_VERSION: Final = 2
_READABLE: Final = frozenset({1, 2})

log = structlog.get_logger(__name__)


class _KeyFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The file's JSON: Tink keysets as Tink writes them, private keys as PKCS #8 PEM.

    Version 1 had one client key of each kind, as text.
    """

    version: int
    encryption: str
    index: str
    audit_ed25519: str
    smart_es384: str | list[StoredClientKey]
    smart_rs384: str | list[StoredClientKey]
    audit_ed25519_next: str | None = None

    def client_keys(self, algorithm: SigningAlgorithm) -> list[StoredClientKey]:
        stored = self.smart_es384 if algorithm == "ES384" else self.smart_rs384
        return [StoredClientKey(stored, "current")] if isinstance(stored, str) else stored

    def __repr__(self) -> str:
        """Tracebacks that show local variables must not show keys."""
        return "_KeyFile(...)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


class Keyring:
    """Seals columns, makes blind indexes, signs audit checkpoints and SMART client assertions.

    Thread-safe; signing keys are read from their text at first use. Client keys that another process rotated
    are taken up from the file without a restart.
    """

    def __init__(self, text: bytes) -> None:
        self._file = _decode(text)
        self._cipher = ColumnCipher(self._file.encryption)
        self._index = BlindIndex(self._file.index)
        self._clients = _client_keys(self._file)
        self._path: Path | None = None
        self._seen: tuple[int, int] | None = None
        self._lock = threading.Lock()
        # Told the table, column and row of what did not open; it must neither wait nor raise.
        self.told_of_refusals: Callable[[str, str, str], None] | None = None

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """Read the keyring, or make one; of several processes that start at once all get the same.

        One of version 1 is written anew with a next key of each kind, where its folder lets us.
        Raises ServiceUnavailable if the file may be read by others than its owner, or is damaged.
        """
        if not path.exists():
            _create(path)
        text = _read(path)
        if _decode(text).version == 1:
            text = _brought_up_to_date(path, text)
        keyring = cls(text)
        keyring._path = path
        return keyring

    def seal(self, plaintext: bytes, *, table: str, column: str, row: str) -> bytes:
        """Encrypt for exactly one place; opening it anywhere else fails."""
        return self._cipher.seal(plaintext, table=table, column=column, row=row)

    def open(self, ciphertext: bytes, *, table: str, column: str, row: str) -> bytes:
        """Raise RayhookError with code `decryption_failed` for another place, another key or any change."""
        try:
            return self._cipher.open(ciphertext, table=table, column=column, row=row)
        except RayhookError:
            if self.told_of_refusals is not None:
                self.told_of_refusals(table, column, row)
            raise

    def open_untrusted(self, ciphertext: bytes, *, table: str, column: str, row: str) -> bytes:
        """Open what came back from outside: that it does not open says nothing of our own store."""
        return self._cipher.open(ciphertext, table=table, column=column, row=row)

    def blind_index(self, value: str, *, purpose: str) -> str:
        """Return 64 hexadecimal digits. Name the EHR in `purpose`, or equal values of two EHRs will show."""
        return self._index.digest(value, purpose=purpose)

    @property
    def audit_public_key(self) -> Ed25519PublicKey:
        return self.audit_signing_key.public_key()

    @cached_property
    def audit_signing_key(self) -> Ed25519PrivateKey:
        key = _private_key(self._file.audit_ed25519)
        if not isinstance(key, Ed25519PrivateKey):
            raise _refusal("holds an audit key that is not Ed25519")
        return key

    def assertion_key(self, algorithm: SigningAlgorithm) -> ECKey | RSAKey:
        """The private key of SMART client assertions; its public half is in `smart.public_jwks`."""
        return self._client_keys()[algorithm].current

    def published_keys(self, *, now: float) -> tuple[ECKey | RSAKey, ...]:
        """Return the client keys whose public halves EHRs are to know: current, next, and retired of late."""
        clients = self._client_keys()
        return tuple(key for algorithm in ALGORITHMS for key in clients[algorithm].published(now))

    def client_key_statuses(self) -> tuple[ClientKeyStatus, ...]:
        clients = self._client_keys()
        return tuple(status for algorithm in ALGORITHMS for status in clients[algorithm].statuses())

    def _client_keys(self) -> dict[SigningAlgorithm, ClientKeys]:
        """A file that cannot be read any more changes nothing: the keys in hand are as good as before."""
        if self._path is None or (found := _fingerprint(self._path)) in {None, self._seen}:
            return self._clients
        with self._lock:
            if found != self._seen:
                self._seen = found
                try:
                    self._clients = _client_keys(_decode(_read(self._path)))
                    log.info("client_keys_reloaded")
                except ServiceUnavailable as error:
                    log.warning("client_keys_not_reloaded", reason=error.message)
            return self._clients


def rotate_client_keys(
    path: Path, *, grace_s: float = GRACE_S, clock: Callable[[], float] = time.time
) -> tuple[ClientKeyStatus, ...]:
    """Let the next client keys sign, make new next ones, and keep the old ones published for `grace_s`."""
    with _locked(path):
        file = _decode(_read(path))
        now = clock()
        changed = msgspec.structs.replace(
            file,
            version=_VERSION,
            smart_es384=rotated("ES384", file.client_keys("ES384"), now=now, grace_s=grace_s),
            smart_rs384=rotated("RS384", file.client_keys("RS384"), now=now, grace_s=grace_s),
        )
        _replace(path, msgspec.json.encode(changed))
    keys = _client_keys(changed)
    return tuple(status for algorithm in ALGORITHMS for status in keys[algorithm].statuses())


def rotate_audit_key(path: Path, hand_over: Callable[[Ed25519PrivateKey], None]) -> None:
    """Make a new key sign the audit's checkpoints, after `hand_over` has put the old key's word for it on record.

    The new key is in the file before that: a rotation that was interrupted is finished by the next one.
    """
    with _locked(path):
        file = _decode(_read(path))
        if file.audit_ed25519_next is None:
            pem = private_pem(Ed25519PrivateKey.generate())
            file = msgspec.structs.replace(file, audit_ed25519_next=pem)
            _replace(path, msgspec.json.encode(file))
        assert file.audit_ed25519_next is not None
        key = _private_key(file.audit_ed25519_next)
        if not isinstance(key, Ed25519PrivateKey):
            raise _refusal("holds an audit key that is not Ed25519")
        hand_over(key)
        promoted = msgspec.structs.replace(
            file, audit_ed25519=file.audit_ed25519_next, audit_ed25519_next=None
        )
        _replace(path, msgspec.json.encode(promoted))


def _decode(text: bytes) -> _KeyFile:
    try:
        file = msgspec.json.decode(text, type=_KeyFile)
    except msgspec.DecodeError as error:
        raise _refusal("is not a keyring of this version") from error
    if file.version not in _READABLE:
        raise _refusal("is not a keyring of this version")
    return file


def _client_keys(file: _KeyFile) -> dict[SigningAlgorithm, ClientKeys]:
    try:
        return {algorithm: ClientKeys(algorithm, file.client_keys(algorithm)) for algorithm in ALGORITHMS}
    except ValueError as error:
        raise _refusal("has not one current client key of each kind") from error


def _new_keyring() -> bytes:
    return msgspec.json.encode(
        _KeyFile(
            version=_VERSION,
            encryption=new_encryption_keyset(),
            index=new_index_keyset(),
            audit_ed25519=private_pem(Ed25519PrivateKey.generate()),
            smart_es384=new_client_keys("ES384"),
            smart_rs384=new_client_keys("RS384"),
        )
    )


def _brought_up_to_date(path: Path, text: bytes) -> bytes:
    """Return the text of a keyring of this version; where the file cannot be written, the text as it is."""
    try:
        with _locked(path):
            file = _decode(_read(path))
            if file.version == 1:
                _replace(path, msgspec.json.encode(_with_next_keys(file)))
                log.info("keyring_upgraded", version=_VERSION)
            return _read(path)
    except OSError:
        log.warning("keyring_not_upgraded", version=1)
        return text


def _with_next_keys(file: _KeyFile) -> _KeyFile:
    es384, rs384 = file.client_keys("ES384")[0].pem, file.client_keys("RS384")[0].pem
    return msgspec.structs.replace(
        file,
        version=_VERSION,
        smart_es384=with_next("ES384", es384),
        smart_rs384=with_next("RS384", rs384),
    )


def _create(path: Path) -> None:
    """Write a whole file under another name, then link it: the name appears once, and complete."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_private(draft, _new_keyring())
        os.link(draft, path)
        _synchronise(path.parent)
        log.info("keyring_created")
    except FileExistsError:
        log.info("keyring_found")
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock: the file itself is replaced, and a lock on it would go with it."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_private(draft, content)
        draft.replace(path)
        _synchronise(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _fingerprint(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _synchronise(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            _check_mode(os.fstat(file.fileno()).st_mode)
            return file.read()
    except OSError as error:
        raise _refusal("cannot be read") from error


def _check_mode(mode: int) -> None:
    if not stat.S_ISREG(mode) or stat.S_IMODE(mode) & 0o077:
        raise _refusal(f"has mode {stat.S_IMODE(mode):04o}; it must be a file of mode 0600")


def _private_key(pem: str) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem.encode("ascii"), password=None)
    except ValueError as error:
        raise _refusal("holds a key that cannot be read") from error


def _refusal(rule: str) -> ServiceUnavailable:
    return ServiceUnavailable(f"the keyring file {rule}", code="keyring_refused")
