"""The installation's own key material: one file, readable by its owner only.

Spec: 45 CFR 164.312(a)(2)(iv); OWASP ASVS 5.0.0 V11.1, V13.3.
"""

import os
import secrets
import stat
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Self

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from joserfc.jwk import ECKey, RSAKey

from rayhook.auth.encryption import BlindIndex, ColumnCipher, new_encryption_keyset, new_index_keyset
from rayhook.fhir.errors import ServiceUnavailable

SigningAlgorithm = Literal["ES384", "RS384"]

_RSA_BITS: Final = 3072
_VERSION: Final = 1

log = structlog.get_logger(__name__)


class _KeyFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The file's JSON: Tink keysets as Tink writes them, private keys as PKCS #8 PEM."""

    version: int
    encryption: str
    index: str
    audit_ed25519: str
    smart_es384: str
    smart_rs384: str

    def __repr__(self) -> str:
        """Tracebacks that show local variables must not show keys."""
        return "_KeyFile(...)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


class Keyring:
    """Seals columns, makes blind indexes, signs audit checkpoints and SMART client assertions.

    Thread-safe; signing keys are read from their text at first use.
    """

    def __init__(self, text: bytes) -> None:
        try:
            self._file = msgspec.json.decode(text, type=_KeyFile)
        except msgspec.DecodeError as error:
            raise _refusal("is not a keyring of this version") from error
        if self._file.version != _VERSION:
            raise _refusal("is not a keyring of this version")
        self._cipher = ColumnCipher(self._file.encryption)
        self._index = BlindIndex(self._file.index)

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """Read the keyring, or make one; of several processes that start at once all get the same.

        Raises ServiceUnavailable if the file may be read by others than its owner, or is damaged.
        """
        if not path.exists():
            _create(path)
        return cls(_read(path))

    def seal(self, plaintext: bytes, *, table: str, column: str, row: str) -> bytes:
        """Encrypt for exactly one place; opening it anywhere else fails."""
        return self._cipher.seal(plaintext, table=table, column=column, row=row)

    def open(self, ciphertext: bytes, *, table: str, column: str, row: str) -> bytes:
        """Raise RayhookError with code `decryption_failed` for another place, another key or any change."""
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
        return self._es384 if algorithm == "ES384" else self._rs384

    @cached_property
    def _es384(self) -> ECKey:
        key = ECKey.import_key(self._file.smart_es384, {"use": "sig", "alg": "ES384"})
        key.ensure_kid()
        return key

    @cached_property
    def _rs384(self) -> RSAKey:
        key = RSAKey.import_key(self._file.smart_rs384, {"use": "sig", "alg": "RS384"})
        key.ensure_kid()
        return key


def _new_keyring() -> bytes:
    return msgspec.json.encode(
        _KeyFile(
            version=_VERSION,
            encryption=new_encryption_keyset(),
            index=new_index_keyset(),
            audit_ed25519=_pem(Ed25519PrivateKey.generate()),
            smart_es384=_pem(ec.generate_private_key(ec.SECP384R1())),
            smart_rs384=_pem(rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS)),
        )
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


def _pem(key: PrivateKeyTypes) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def _private_key(pem: str) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem.encode("ascii"), password=None)
    except ValueError as error:
        raise _refusal("holds a key that cannot be read") from error


def _refusal(rule: str) -> ServiceUnavailable:
    return ServiceUnavailable(f"the keyring file {rule}", code="keyring_refused")
