"""Strict JSON: what two parsers could read differently, or what is too deep, is not read at all."""

import json
import re
from typing import Any, NoReturn

import msgspec

from rayhook.fhir.errors import InvalidRequest

MAX_BODY_BYTES = 1024 * 1024
MAX_DEPTH = 64

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'"[]{}')
_ROUND = bytes.maketrans(b"[]{}", b"()()")


def parse_json(body: bytes) -> object:
    """Return the value that `body` spells.

    Raises InvalidRequest for anything that is not RFC 8259 JSON in UTF-8, that nests deeper than MAX_DEPTH,
    or in which an object names a member twice.
    """
    if _depth_exceeds(body, MAX_DEPTH):
        raise InvalidRequest(f"the body nests deeper than {MAX_DEPTH} levels", code="json_too_deep")
    try:
        value: object = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest("the body is not valid JSON", code="malformed_json") from error
    # A body that is its own compact form names no member twice: only other bodies are read a second time.
    if msgspec.json.encode(value) != body:
        _refuse_duplicates(body)
    return value


def _depth_exceeds(body: bytes, limit: int) -> bool:
    """Peel innermost pairs: what is gone after `limit` rounds nests no deeper; only the rest is counted."""
    structure = _structure(body)
    rest = structure.translate(_ROUND)
    for _ in range(limit):
        if not rest:
            return False
        rest = rest.replace(b"()", b"")
    return bool(rest) and _deepest(structure) > limit


def _structure(body: bytes) -> bytes:
    """Return the brackets of `body` that stand outside strings."""
    if b"\\" in body:
        body = _STRING.sub(b"", body)
    return _STRING.sub(b"", body.translate(None, _NOT_STRUCTURE).replace(b'""', b""))


def _deepest(structure: bytes) -> int:
    depth = deepest = 0
    for byte in structure:
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _refuse_duplicates(body: bytes) -> None:
    try:
        json.loads(body.decode(), object_pairs_hook=_members, parse_constant=_constant)
    except ValueError as error:
        raise InvalidRequest("the body is not valid JSON", code="malformed_json") from error


def _members(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise InvalidRequest("an object in the body names a member twice", code="duplicate_member")


def _constant(_: str) -> NoReturn:
    raise InvalidRequest("the body is not valid JSON", code="malformed_json")
