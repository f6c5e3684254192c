"""The keyring as a file: its form, and how it is read, written and replaced so that no moment loses a key.

Spec: OWASP ASVS 5.0.0 V13.3; POSIX rename
"""

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from rayhook.auth.client_keys import (
    SigningAlgorithm,
    StoredClientKey,
    new_client_keys,
    private_pem,
    with_next,
)
from rayhook.auth.encryption import new_encryption_keyset, new_index_keyset
from rayhook.fhir.errors import ServiceUnavailable

if TYPE_CHECKING:
    from rayhook.auth.kms import KMSWrap

VERSION: Final = 2
ENVELOPE_FORM: Final = "rayhook-keyring-envelope"

_READABLE: Final = frozenset({1, 2})
_ENVELOPE: Final = f'{{"form":"{ENVELOPE_FORM}"'.encode("ascii")

log = structlog.get_logger(__name__)


class EncryptionKeyDates(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What Tink's keyset does not say of a key: when it came, from when on it may seal, and when it began to."""

    key_id: int
    added_at: float
    ready_at: float
    promoted_at: float | None = None


class KeyFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
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
    encryption_dates: tuple[EncryptionKeyDates, ...] = ()

    def client_keys(self, algorithm: SigningAlgorithm) -> list[StoredClientKey]:
        stored = self.smart_es384 if algorithm == "ES384" else self.smart_rs384
        return [StoredClientKey(stored, "current")] if isinstance(stored, str) else stored

    def __repr__(self) -> str:
        """Tracebacks that show local variables must not show keys."""
        return "KeyFile(...)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


@dataclass(frozen=True, slots=True)
class KeyringFile:
    """One keyring file. With `wrap` it is an envelope of that KMS key, and nothing else is read; without, it is plain.

    Every method that reads raises ServiceUnavailable: `keyring_refused` for a file that others than its owner may
    touch, or that is damaged or not of the kind that is configured; what KMSWrap raises otherwise.
    """

    path: Path
    wrap: "KMSWrap | None" = None

    def read(self) -> KeyFile:
        return decode(self.text())

    def text(self) -> bytes:
        stored = _read(self.path)
        if self.wrap is not None:
            if not stored.lstrip().startswith(_ENVELOPE):
                raise refusal("is not wrapped by the KMS key of RAYHOOK_KMS_KEY; `rayhook keys wrap` does it")
            return self.wrap.unwrap(stored)
        if stored.lstrip().startswith(_ENVELOPE):
            raise refusal("is wrapped by a KMS key, and RAYHOOK_KMS_KEY does not name it")
        return stored

    def replace(self, file: KeyFile) -> None:
        """Put `file` in the place of what is there: at every moment the one or the other is there, whole."""
        content = self._written(file)
        draft = _draft(self.path)
        try:
            _write_private(draft, content)
            draft.replace(self.path)
            _synchronise(self.path.parent)
        finally:
            draft.unlink(missing_ok=True)

    def ensure(self) -> None:
        """Make a keyring where there is none; of several processes that try at once one succeeds."""
        if self.path.exists():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = _draft(self.path)
        try:
            # A whole file under another name, then linked: the name appears once, and complete.
            _write_private(draft, self._written(_new_file()))
            os.link(draft, self.path)
            _synchronise(self.path.parent)
            log.info("keyring_created", is_wrapped=self.wrap is not None)
        except FileExistsError:
            log.info("keyring_found")
        finally:
            draft.unlink(missing_ok=True)

    def read_upgraded(self) -> KeyFile:
        """Return the keyring; one of version 1 gets a next client key of each kind, where its folder lets us."""
        file = self.read()
        if file.version != 1:
            return file
        try:
            with self.locked():
                file = self.read()
                if file.version != 1:
                    return file
                upgraded = _with_next_keys(file)
                self.replace(upgraded)
        except OSError:
            log.warning("keyring_not_upgraded", version=1)
            return file
        log.info("keyring_upgraded", version=VERSION)
        return upgraded

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock: the file itself is replaced, and a lock on it would go with it."""
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def fingerprint(self) -> tuple[int, int] | None:
        """Return what changes whenever the file is replaced; None where it cannot be seen."""
        try:
            found = os.stat(self.path)  # noqa: PTH116 - asked for at every use of a key: a third of the time
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _written(self, file: KeyFile) -> bytes:
        content = msgspec.json.encode(file)
        if self.wrap is None:
            return content
        envelope = self.wrap.wrap(content)
        # A policy may let us wrap and not unwrap: that has to show before the last readable file is gone.
        if self.wrap.unwrap(envelope) != content:
            raise refusal("could not be read back from its envelope")
        return envelope


def decode(text: bytes) -> KeyFile:
    try:
        file = msgspec.json.decode(text, type=KeyFile)
    except msgspec.DecodeError as error:
        raise refusal("is not a keyring of this version") from error
    if file.version not in _READABLE:
        raise refusal("is not a keyring of this version")
    return file


def ed25519_key(pem: str) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem.encode("ascii"), password=None)
    except ValueError as error:
        raise refusal("holds a key that cannot be read") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise refusal("holds an audit key that is not Ed25519")
    return key


def is_wrapped(path: Path) -> bool:
    return _read(path).lstrip().startswith(_ENVELOPE)


def refusal(rule: str) -> ServiceUnavailable:
    return ServiceUnavailable(f"the keyring file {rule}", code="keyring_refused")


def _new_file() -> KeyFile:
    return KeyFile(
        version=VERSION,
        encryption=new_encryption_keyset(),
        index=new_index_keyset(),
        audit_ed25519=private_pem(Ed25519PrivateKey.generate()),
        smart_es384=new_client_keys("ES384"),
        smart_rs384=new_client_keys("RS384"),
    )


def _with_next_keys(file: KeyFile) -> KeyFile:
    es384, rs384 = file.client_keys("ES384")[0].pem, file.client_keys("RS384")[0].pem
    return msgspec.structs.replace(
        file,
        version=VERSION,
        smart_es384=with_next("ES384", es384),
        smart_rs384=with_next("RS384", rs384),
    )


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


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
        raise refusal("cannot be read") from error


def _check_mode(mode: int) -> None:
    if not stat.S_ISREG(mode) or stat.S_IMODE(mode) & 0o077:
        raise refusal(f"has mode {stat.S_IMODE(mode):04o}; it must be a file of mode 0600")
