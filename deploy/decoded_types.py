"""The types that JSON is decoded into, made ready before threads need them.

msgspec fills in what it knows of a type at its first use, and other threads do not wait for it: two that decode into
one type for the first time at once end the whole process with a segmentation fault (msgspec 0.22.0).
"""

import dataclasses
import sys
from collections.abc import Iterator

import msgspec

_OURS = "rayhook."


def make_ready() -> frozenset[type]:
    """Let msgspec look at every type of ours that is loaded, and return those that it can decode into.

    Call it before the first thread starts.
    """
    return frozenset(one for one in _types() if _is_decodable(one))


def _types() -> Iterator[type]:
    for name, module in list(sys.modules.items()):
        if not name.startswith(_OURS):
            continue
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__ == name and _is_described(value):
                yield value


def _is_described(value: type) -> bool:
    return issubclass(value, msgspec.Struct) or dataclasses.is_dataclass(value)


def _is_decodable(value: type) -> bool:
    try:
        msgspec.json.Decoder(value)
    except (AttributeError, NameError, TypeError):
        # It holds what JSON has no word for: nobody decodes into it.
        return False
    return True
