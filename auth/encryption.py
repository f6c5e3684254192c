"""Column encryption bound to its place, and the blind index by which sealed values are found.

Keys are Tink keysets in Tink's JSON form: rotation is a change of the keyset, not of the code.

Spec: NIST SP 800-38D (AES-256-GCM), RFC 2104 (HMAC-SHA-256).
"""

from json.encoder import encode_basestring_ascii
from typing import Any

import tink
from tink import aead, prf, secret_key_access

from rayhook.fhir.errors import RayhookError, ServiceUnavailable

_INDEX_BYTES = 32


def new_encryption_keyset() -> str:
    return _new_keyset(aead.aead_key_templates.AES256_GCM)


def new_index_keyset() -> str:
    return _new_keyset(prf.prf_key_templates.HMAC_SHA256)


class ColumnCipher:
    """Seals values so that they open only in the table, column and row that they were written to."""

    def __init__(self, keyset: str) -> None:
        self._aead: Any = _read_keyset(keyset).primitive(aead.Aead)

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
        raise ServiceUnavailable("the keyring holds a damaged keyset", code="keyring_refused") from error


def _register() -> None:
    aead.register()
    prf.register()
