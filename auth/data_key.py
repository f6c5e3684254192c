"""Data keys: Tink AES-256-GCM keysets, each of which seals values for exactly one table, column and row.

What it seals begins with a mark and the key's id, so that stored bytes say by which key they open. No keyset of the
keyring can have sealed what begins so: Tink's own prefixes begin with 0x00 and 0x01.

Spec: NIST SP 800-38D (AES-256-GCM); Tink wire format, "Tink output prefix"
"""

import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Final, Self
from weakref import WeakKeyDictionary

import tink
from tink import aead, secret_key_access

from rayhook.fhir.errors import Erased, RayhookError

# A process that was not told of an erasure reads on for so long at most.
TRUSTED_S: Final = 5.0
MARK: Final = b"\xd1"

_SIZE: Final = 4096
_ID_BYTES: Final = 16
_HEAD_BYTES: Final = len(MARK) + _ID_BYTES


class DataKey:
    """`id` is 32 hexadecimal digits, made at random and never used again."""

    def __init__(self, id_: str, keyset: bytes) -> None:
        _register()
        handle = tink.proto_keyset_format.parse(keyset, secret_key_access.TOKEN)
        self.id = id_
        self._head = MARK + bytes.fromhex(id_)
        self._aead: Any = handle.primitive(aead.Aead)

    @classmethod
    def new(cls) -> tuple[Self, bytes]:
        """Return a new key, and the keyset that it is read from again; whoever has that can open everything."""
        _register()
        handle = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM)
        keyset: bytes = tink.proto_keyset_format.serialize(handle, secret_key_access.TOKEN)
        return cls(secrets.token_hex(_ID_BYTES), keyset), keyset

    def seal(self, plaintext: bytes, *, table: str, column: str, row: str) -> bytes:
        sealed: bytes = self._aead.encrypt(plaintext, self._place(table, column, row))
        return self._head + sealed

    def open(self, sealed: bytes, *, table: str, column: str, row: str) -> bytes:
        """Raise RayhookError with code `decryption_failed` for another place, another key or any change."""
        try:
            plaintext: bytes = self._aead.decrypt(sealed[_HEAD_BYTES:], self._place(table, column, row))
        except tink.TinkError as error:
            raise refused(table, column) from error
        return plaintext

    def _place(self, table: str, column: str, row: str) -> bytes:
        return json.dumps(["rayhook.data_key.1", self.id, table, column, row]).encode("ascii")

    def __repr__(self) -> str:
        return f"DataKey({self.id})"


def data_key_of(sealed: bytes) -> str | None:
    """Return the id of the data key that sealed it; None for what no data key can have sealed."""
    if not sealed.startswith(MARK) or len(sealed) <= _HEAD_BYTES:
        return None
    return sealed[len(MARK) : _HEAD_BYTES].hex()


def refused(table: str, column: str) -> RayhookError:
    message = f"{table}.{column}: the sealed value does not belong to its row, or was altered"
    return RayhookError(message, code="decryption_failed")


class OpenedKeys:
    """Data keys in use in this process: the last few thousand, each trusted for TRUSTED_S after it was last seen."""

    def __init__(self, *, size: int = _SIZE, clock: Callable[[], float] = time.monotonic) -> None:
        self._size = size
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[DataKey, float]] = OrderedDict()
        self._destroyed: set[str] = set()
        self._of_installation: WeakKeyDictionary[object, tuple[str, DataKey]] = WeakKeyDictionary()

    def trusted(self, id_: str) -> DataKey | None:
        """Return the key if it was seen in the database a moment ago. Raises Erased for one that is destroyed."""
        with self._lock:
            if id_ in self._destroyed:
                raise Erased
            key, until = self._kept.get(id_, (None, 0.0))
            return key if until > self._clock() else None

    def untrusted(self, ids: Iterable[str]) -> list[str]:
        """Return those that would have to be looked up."""
        now = self._clock()
        with self._lock:
            return [
                one
                for one in dict.fromkeys(ids)
                if one not in self._destroyed and self._kept.get(one, (None, 0.0))[1] <= now
            ]

    def seen(self, id_: str, unwrap: Callable[[], bytes]) -> DataKey:
        """Return the key whose row was just read: opened once, it needs no opening again."""
        with self._lock:
            kept = self._kept.get(id_)
        key = DataKey(id_, unwrap()) if kept is None else kept[0]
        self.keep(key)
        return key

    def keep(self, key: DataKey) -> None:
        with self._lock:
            if key.id in self._destroyed:
                return
            self._kept[key.id] = (key, self._clock() + TRUSTED_S)
            self._kept.move_to_end(key.id)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)

    def forget(self, ids: Iterable[str]) -> None:
        """Never use these again: they are destroyed."""
        with self._lock:
            for id_ in ids:
                self._kept.pop(id_, None)
                self._destroyed.add(id_)

    def of_installation(self, database: object, index: str) -> DataKey | None:
        """Return the installation's key of a month, where it was made known for this database."""
        month, key = self._of_installation.get(database, (None, None))
        return key if month == index else None

    def keep_of_installation(self, database: object, index: str, key: DataKey) -> None:
        self._of_installation[database] = (index, key)


@cache
def _register() -> None:
    """Once: it takes milliseconds, and keys are made while somebody waits."""
    aead.register()
