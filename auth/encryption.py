"""Column encryption bound to its place, and the blind index by which sealed values are found.

Keys are Tink keysets in Tink's JSON form: rotation is a change of the keyset, not of the code.

Spec: NIST SP 800-38D (AES-256-GCM), RFC 2104 (HMAC-SHA-256).
"""

import json
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Any, Final

import tink
from tink import aead, prf, secret_key_access

from rayhook.fhir.errors import RayhookError, ServiceUnavailable

PREFIX_BYTES: Final = 5
# NIST SP 800-38D 8.3: with random nonces of 96 bits, no key may seal more often.
MAX_USES: Final = 2**32

_INDEX_BYTES = 32
_ENABLED = "ENABLED"
_DISABLED = "DISABLED"


def new_encryption_keyset() -> str:
    return _new_keyset(aead.aead_key_templates.AES256_GCM)


def new_index_keyset() -> str:
    return _new_keyset(prf.prf_key_templates.HMAC_SHA256)


@dataclass(frozen=True, slots=True)
class EncryptionKey:
    """One key of a keyset, without its secret. What it sealed stays readable while it is `enabled`."""

    key_id: int
    enabled: bool
    primary: bool


class ColumnCipher:
    """Seals values so that they open only in the table, column and row that they were written to."""

    def __init__(self, keyset: str) -> None:
        self._aead: Any = _read_keyset(keyset).primitive(aead.Aead)
        self.primary = primary_key(keyset)
        self.keys = frozenset(key.key_id for key in encryption_keys(keyset) if key.enabled)

    def seal(self, plaintext: bytes, *, table: str, column: str, row: str) -> bytes:
        sealed: bytes = self._aead.encrypt(plaintext, _place(table, column, row))
        return sealed

    def open(self, ciphertext: bytes, *, table: str, column: str, row: str) -> bytes:
        """Raise RayhookError with code `decryption_failed` for another place, another key or any change."""
        try:
            plaintext: bytes = self._aead.decrypt(ciphertext, _place(table, column, row))
        except tink.TinkError as error:
            message = f"{table}.{column}: the sealed value does not belong to its row, or was altered"
            raise RayhookError(message, code="decryption_failed") from error
        return plaintext


class BlindIndex:
    """A keyed digest: equal values are found, nothing else is told, and no two installations agree."""

    def __init__(self, keyset: str) -> None:
        self._prf: Any = _read_keyset(keyset).primitive(prf.PrfSet).primary()

    def digest(self, value: str, *, purpose: str) -> str:
        computed: bytes = self._prf.compute(_unambiguous(purpose, value), _INDEX_BYTES)
        return computed.hex()


def encryption_keys(keyset: str) -> tuple[EncryptionKey, ...]:
    content = _content(keyset)
    return tuple(
        EncryptionKey(key["keyId"], key["status"] == _ENABLED, key["keyId"] == content["primaryKeyId"])
        for key in content["key"]
    )


def primary_key(keyset: str) -> int:
    return int(_content(keyset)["primaryKeyId"])


def key_of(ciphertext: bytes) -> int | None:
    """Return the id of the key that sealed it; None for what no keyset of ours can have sealed.

    Spec: Tink wire format, "Tink output prefix": 0x01 and the key's id in four bytes
    """
    if len(ciphertext) < PREFIX_BYTES or ciphertext[0] != 1:
        return None
    return int.from_bytes(ciphertext[1:PREFIX_BYTES], "big")


def key_prefix(key_id: int) -> bytes:
    """Return the first bytes of everything that a key seals."""
    return b"\x01" + key_id.to_bytes(PREFIX_BYTES - 1, "big")


def with_new_key(keyset: str) -> tuple[str, int]:
    """Return the keyset with one more key, which opens and does not seal yet, and that key's id."""
    content = _content(keyset)
    taken = {key["keyId"] for key in content["key"]}
    added = _content(new_encryption_keyset())["key"][0]
    while added["keyId"] in taken:
        added = _content(new_encryption_keyset())["key"][0]
    return _checked({**content, "key": [*content["key"], added]}), int(added["keyId"])


def with_primary(keyset: str, key_id: int) -> str:
    return _checked({**_content(keyset), "primaryKeyId": key_id})


def with_status(keyset: str, key_id: int, *, enabled: bool) -> str:
    content = _content(keyset)
    status = _ENABLED if enabled else _DISABLED
    keys = [{**key, "status": status} if key["keyId"] == key_id else key for key in content["key"]]
    return _checked({**content, "key": keys})


def without_key(keyset: str, key_id: int) -> str:
    content = _content(keyset)
    return _checked({**content, "key": [key for key in content["key"] if key["keyId"] != key_id]})


def _content(keyset: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(keyset)
    except ValueError as error:
        raise _damaged() from error
    if not isinstance(content, dict) or not content.get("key") or "primaryKeyId" not in content:
        raise _damaged()
    return content


def _checked(content: dict[str, Any]) -> str:
    """Return the keyset's text, once Tink has said that it can be used."""
    text = json.dumps(content)
    _read_keyset(text).primitive(aead.Aead)
    return text


def _place(table: str, column: str, row: str) -> bytes:
    return _unambiguous("rayhook.column.1", table, column, row)


def _unambiguous(*parts: str) -> bytes:
    """JSON keeps ("a", "bc") and ("ab", "c") apart, which joining would not.

    These are the bytes of `json.dumps(parts)`, in a third of its time: a verification asks for a million of them.
    """
    return f"[{', '.join(map(encode_basestring_ascii, parts))}]".encode("ascii")


def _new_keyset(template: Any) -> str:
    _register()
    text: str = tink.json_proto_keyset_format.serialize(
        tink.new_keyset_handle(template), secret_key_access.TOKEN
    )
    return text


def _read_keyset(text: str) -> Any:
    _register()
    try:
        return tink.json_proto_keyset_format.parse(text, secret_key_access.TOKEN)
    except tink.TinkError as error:
        raise _damaged() from error


def _damaged() -> ServiceUnavailable:
    return ServiceUnavailable("the keyring holds a damaged keyset", code="keyring_refused")


def _register() -> None:
    aead.register()
    prf.register()
