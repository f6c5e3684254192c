import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayhook.cds_hooks.json_body import MAX_DEPTH, parse_json
from rayhook.fhir.errors import InvalidRequest

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_every_json_value_is_read_as_python_reads_it(value, ascii_only, indent):
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert parse_json(body) == value


@given(TEXT, VALUES, VALUES, st.integers(0, 5))
def test_a_repeated_member_is_found_anywhere(name, first, second, depth):
    member = json.dumps(name)
    body = f"{{{member}:{json.dumps(first)},{member}:{json.dumps(second)}}}"
    with pytest.raises(InvalidRequest):
        parse_json((f'{{"x":{"[" * depth}' + body + f"{']' * depth}}}").encode())


@given(st.lists(st.sampled_from(["[", '{"a":']), min_size=MAX_DEPTH + 1, max_size=MAX_DEPTH + 5), TEXT)
def test_too_deep_is_refused_whatever_it_is_made_of(openers, text):
    closers = "".join("]" if opener == "[" else "}" for opener in reversed(openers))
    with pytest.raises(InvalidRequest):
        parse_json(("".join(openers) + json.dumps(text) + closers).encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body):
    try:
        parse_json(body)
    except InvalidRequest:
        return
    json.loads(body)
