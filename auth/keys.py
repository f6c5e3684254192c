"""The installation's own key material, in use.

Spec: 45 CFR 164.312(a)(2)(iv); OWASP ASVS 5.0.0 V11.1, V13.3.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from joserfc.jwk import ECKey, RSAKey

from rayhook.auth.client_keys import ALGORITHMS, ClientKeys, ClientKeyStatus, SigningAlgorithm
from rayhook.auth.data_key import OpenedKeys
from rayhook.auth.encryption import BlindIndex, ColumnCipher, key_of
from rayhook.auth.keyring_file import KeyFile, KeyringFile, ed25519_key, refusal
from rayhook.fhir.errors import RayhookError, ServiceUnavailable

if TYPE_CHECKING:
    from rayhook.auth.kms import KMSWrap

__all__ = ["Keyring", "SigningAlgorithm"]

_LOOK_EVERY_S: Final = 1.0
_TRY_AGAIN_S: Final = 30.0

log = structlog.get_logger(__name__)


class Keyring:
    """Seals columns, makes blind indexes, signs audit checkpoints and SMART client assertions.

    Thread-safe; signing keys are read from their text at first use. What another process rotated is taken up from
    the file without a restart: within a second, and at once where a value was sealed by a key not known yet.
    """

    def __init__(
        self, file: KeyFile, source: KeyringFile | None = None, seen: tuple[int, int] | None = None
    ) -> None:
        self._keys = _Keys(file)
        self._source = source
        self._seen = seen
        self._look_at = self._try_again_at = 0.0
        self._lock = threading.Lock()
        self._uses: Counter[int] = Counter()
        self._uses_lock = threading.Lock()
        self.opened_keys = OpenedKeys()
        # Told the table, column and row of what did not open; it must neither wait nor raise.
        self.told_of_refusals: Callable[[str, str, str], None] | None = None

    @classmethod
    def load_or_create(cls, path: Path, wrap: "KMSWrap | None" = None) -> Self:
        """Read the keyring, or make one; of several processes that start at once all get the same.

        With `wrap` the file is an envelope of that KMS key. Raises ServiceUnavailable if the file may be read by
        others than its owner, is damaged, or is not of the kind that is asked for, and where KMS does not open it.
        """
        source = KeyringFile(path, wrap)
        source.ensure()
        seen = source.fingerprint()
        return cls(source.read_upgraded(), source, seen)

    def follow(self, source: KeyringFile) -> None:
        """Take up further changes from `source`, which has the same keys."""
        with self._lock:
            self._source, self._seen = source, source.fingerprint()

    def seal(self, plaintext: bytes, *, table: str, column: str, row: str) -> bytes:
        """Encrypt for exactly one place; opening it anywhere else fails."""
        cipher = self._looked().cipher
        with self._uses_lock:
            self._uses[cipher.primary] += 1
        return cipher.seal(plaintext, table=table, column=column, row=row)

    def open(self, ciphertext: bytes, *, table: str, column: str, row: str) -> bytes:
        """Raise RayhookError with code `decryption_failed` for another place, another key or any change."""
        try:
            return self.open_untrusted(ciphertext, table=table, column=column, row=row)
        except RayhookError:
            if self.told_of_refusals is not None:
                self.told_of_refusals(table, column, row)
            raise

    def open_untrusted(self, ciphertext: bytes, *, table: str, column: str, row: str) -> bytes:
        """Open what came back from outside: that it does not open says nothing of our own store."""
        cipher = self._looked().cipher
        if key_of(ciphertext) not in cipher.keys:
            cipher = self._looked(at_once=True).cipher
        return cipher.open(ciphertext, table=table, column=column, row=row)

    def blind_index(self, value: str, *, purpose: str) -> str:
        """Return 64 hexadecimal digits. Name the EHR in `purpose`, or equal values of two EHRs will show."""
        return self._keys.index.digest(value, purpose=purpose)

    @property
    def sealing_key(self) -> int:
        """The id of the key that seals now."""
        return self._looked(at_once=True).cipher.primary

    @property
    def sealing_since(self) -> float | None:
        """When that key was promoted; None for an installation's first."""
        keys = self._looked(at_once=True)
        dates = {one.key_id: one.promoted_at for one in keys.file.encryption_dates}
        return dates.get(keys.cipher.primary)

    @property
    def opening_keys(self) -> frozenset[int]:
        """The ids of the keys that open what they sealed."""
        return self._looked(at_once=True).cipher.keys

    def take_uses(self) -> Mapping[int, int]:
        """Return how often each key sealed since the last call, by its id."""
        with self._uses_lock:
            taken, self._uses = self._uses, Counter()
        return taken

    @property
    def audit_public_key(self) -> Ed25519PublicKey:
        return self.audit_signing_key.public_key()

    @property
    def audit_signing_key(self) -> Ed25519PrivateKey:
        return self._looked().audit_key

    def next_audit_signing_key(self) -> Ed25519PrivateKey:
        """Return the key that signs after a hand-over: the file's next one, or what has become of it."""
        keys = self._looked(at_once=True)
        return keys.audit_key if keys.audit_key_next is None else keys.audit_key_next

    def assertion_key(self, algorithm: SigningAlgorithm) -> ECKey | RSAKey:
        """The private key of SMART client assertions; its public half is in `smart.public_jwks`."""
        return self._looked(at_once=True).clients[algorithm].current

    def published_keys(self, *, now: float) -> tuple[ECKey | RSAKey, ...]:
        """Return the client keys whose public halves EHRs are to know: current, next, and retired of late."""
        clients = self._looked(at_once=True).clients
        return tuple(key for algorithm in ALGORITHMS for key in clients[algorithm].published(now))

    def client_key_statuses(self) -> tuple[ClientKeyStatus, ...]:
        return client_key_statuses(self._looked(at_once=True).clients)

    def _looked(self, *, at_once: bool = False) -> "_Keys":
        """A file that cannot be read any more changes nothing: the keys in hand are as good as before."""
        now = time.monotonic()
        if self._source is None or (now < self._look_at and not at_once):
            return self._keys
        found = self._source.fingerprint()
        self._look_at = now + _LOOK_EVERY_S
        if found in {None, self._seen} or now < self._try_again_at:
            return self._keys
        if self._source.wrap is None or at_once:
            self._take_up(self._source, found)
        else:
            # The KMS may take seconds to answer, and who seals by the keys in hand need not wait for that.
            threading.Thread(target=self._take_up, args=(self._source, found), daemon=True).start()
        return self._keys

    def _take_up(self, source: KeyringFile, found: tuple[int, int] | None) -> None:
        with self._lock:
            if found != self._seen and time.monotonic() >= self._try_again_at:
                self._read(source, found)

    def _read(self, source: KeyringFile, found: tuple[int, int] | None) -> None:
        try:
            file = source.read()
            if file.index != self._keys.file.index:
                raise refusal("holds the keys of another installation")
            self._keys = _Keys(file)
        except ServiceUnavailable as error:
            log.warning("keyring_not_reloaded", reason=error.message, code=error.code)
            if error.code != "keyring_refused":
                # The file may be good: it is the KMS that has to be asked again.
                self._try_again_at = time.monotonic() + _TRY_AGAIN_S
                return
        else:
            log.info("keyring_reloaded")
        self._seen = found


class _Keys:
    """What one reading of the file came to."""

    def __init__(self, file: KeyFile) -> None:
        self.file = file
        self.cipher = ColumnCipher(file.encryption)
        self.index = BlindIndex(file.index)
        self.clients = client_keys(file)

    @cached_property
    def audit_key(self) -> Ed25519PrivateKey:
        return ed25519_key(self.file.audit_ed25519)

    @cached_property
    def audit_key_next(self) -> Ed25519PrivateKey | None:
        pem = self.file.audit_ed25519_next
        return None if pem is None else ed25519_key(pem)


def client_keys(file: KeyFile) -> dict[SigningAlgorithm, ClientKeys]:
    try:
        return {algorithm: ClientKeys(algorithm, file.client_keys(algorithm)) for algorithm in ALGORITHMS}
    except ValueError as error:
        raise refusal("has not one current client key of each kind") from error


def client_key_statuses(clients: Mapping[SigningAlgorithm, ClientKeys]) -> tuple[ClientKeyStatus, ...]:
    return tuple(status for algorithm in ALGORITHMS for status in clients[algorithm].statuses())
