import json
import time

import pytest

from rayhook.cds_hooks.json_body import MAX_DEPTH, parse_json
from rayhook.fhir.errors import InvalidRequest


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nul",
        b'{"a":1,}',
        b'{"a":1} x',
        b"{'a':1}",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{ "a" : NaN }',
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b'// comment\n{"a":1}',
        b"\xff\xfe{\x00}\x00",
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_malformed_json_is_refused(body):
    with pytest.raises(InvalidRequest) as refused:
        parse_json(body)
    assert refused.value.code == "malformed_json"


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":1}',
        b'{"a": 1, "a": 2}',
        b'{"a":{"b":1,"b":2}}',
        b'[{"a":[{"b":1,"b":[]}]}]',
        b'{"\\u0061":1,"a":2}',
    ],
)
def test_a_member_named_twice_is_refused(body):
    with pytest.raises(InvalidRequest) as refused:
        parse_json(body)
    assert refused.value.code == "duplicate_member"


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


def test_the_deepest_allowed_nesting_is_read():
    assert parse_json(nested(MAX_DEPTH))


@pytest.mark.parametrize("body", [nested(MAX_DEPTH + 1), b"[" * 100_000, b"[" * 5000 + b"]" * 5000])
def test_deeper_nesting_is_refused(body):
    with pytest.raises(InvalidRequest) as refused:
        parse_json(body)
    assert refused.value.code == "json_too_deep"


@pytest.mark.parametrize("text", ["[" * 100, '"' + "{" * 100, "\\" + "[" * 100, '\\"[[' * 50])
def test_brackets_in_strings_are_not_nesting(text):
    assert parse_json(json.dumps({"a": text, "b": [text]}).encode()) == {"a": text, "b": [text]}


@pytest.mark.parametrize("body", [b"[" * 1_000_000, b'["' * 500_000, b"[]," * 300_000, b"\\" * 1_000_000])
def test_a_hostile_body_is_refused_quickly(body):
    begun = time.perf_counter()
    with pytest.raises(InvalidRequest):
        parse_json(body)
    assert time.perf_counter() - begun < 2
