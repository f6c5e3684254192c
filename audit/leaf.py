"""What of an event is hashed, and how: one canonical text per event, one leaf of the tree.

Spec: RFC 8785 (canonical JSON), RFC 6962 2.1 (leaf hash).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from rayhook.audit.merkle import leaf_hash
from rayhook.audit.models import AUDIT_EVENT
from rayhook.auth.keys import Keyring

GENESIS: Final = "0" * 64
MAC_PURPOSE: Final = "audit_event.mac"
HASHED: Final = tuple(
    sorted(column.name for column in AUDIT_EVENT.columns if column.name not in {"hash", "mac"})
)
# Columns that the log did not always have: where one is empty the text is that of before it was there.
_LATER: Final = (HASHED.index("client_id"), HASHED.index("context_sealed"))
_KINDS: Final = frozenset({str, int, bytes, type(None)})
_Canonical: Final = msgspec.defstruct("_Canonical", HASHED)
_encode = msgspec.json.Encoder().encode

Event = Mapping[str, Any]


def event_hash(event: Event) -> str:
    """Return the RFC 6962 leaf hash of the event's canonical JSON, bytes written as hex.

    Names are ASCII, sorted, and numbers are integers: for these msgspec writes what RFC 8785 asks (a property
    test compares them). Raises ValueError for a value that no event has.
    """
    return values_hash([event[name] for name in HASHED])


def values_hash(values: Sequence[object]) -> str:
    """Return `event_hash` of the values of the columns HASHED, in their order."""
    return leaf_hash(canonical_text(values)).hex()


def canonical_text(values: Sequence[object]) -> bytes:
    if not _KINDS.issuperset(map(type, values)):
        [kind, *_] = {type(value).__name__ for value in values if type(value) not in _KINDS}
        raise ValueError(f"an audit event holds no {kind}")
    content = [value.hex() if type(value) is bytes else value for value in values]
    for index in _LATER:
        if content[index] is None:
            content[index] = msgspec.UNSET
    return _encode(_Canonical(*content))


def event_mac(keyring: Keyring, hash_: str) -> str:
    return keyring.blind_index(hash_, purpose=MAC_PURPOSE)


def is_hashed(event: Event) -> bool:
    try:
        return bool(event_hash(event) == event["hash"])
    except ValueError:
        return False


def stored_leaf(text: object) -> bytes:
    """Return the stored hash; for one that is none, a leaf that no checkpoint has."""
    try:
        return bytes.fromhex(str(text))
    except ValueError:
        return b""
