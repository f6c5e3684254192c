import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey

from rayhook.auth.jose import read_key_set, take_apart, verify
from rayhook.fhir.errors import InvalidRequest, Unauthenticated

KEY = ECKey.generate_key("P-384", {"kid": "ec-1"})
HEADER = {"alg": "ES384", "kid": "ec-1", "typ": "JWT"}
TOKEN = jwt.encode(HEADER, {"iss": "https://ehr.example.org"}, KEY, algorithms=["ES384"])

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
members = st.fixed_dictionaries(
    {},
    optional={
        "kty": st.sampled_from(["EC", "RSA", "oct", "OKP", "ec"]) | values,
        "crv": st.sampled_from(["P-256", "P-384", "P-999"]) | values,
        "x": st.text("ABCxyz019-_", max_size=64) | values,
        "y": st.text("ABCxyz019-_", max_size=64) | values,
        "n": st.text("ABCxyz019-_=", max_size=400) | values,
        "e": st.sampled_from(["AQAB", "", "AA", "*"]) | values,
        "d": st.text(max_size=10),
        "kid": st.text(max_size=10) | values,
        "alg": st.sampled_from(["ES384", "none", "HS256"]) | values,
        "use": st.sampled_from(["sig", "enc"]) | values,
    },
)


def base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


@given(values | st.fixed_dictionaries({"keys": values | st.lists(members | values, max_size=4)}))
def test_any_key_set_is_read_or_refused(document: Any) -> None:
    try:
        keys = read_key_set(document).keys
    except InvalidRequest:
        return
    assert not any(key.is_private for key in keys)


@given(members)
def test_looking_a_key_up_never_fails(member: dict[str, Any]) -> None:
    for algorithm in ("ES256", "ES384", "RS256", "RS384"):
        read_key_set({"keys": [member]}).find("ec-1", algorithm)


@given(st.text() | st.lists(st.binary().map(base64url), min_size=3, max_size=3).map(".".join))
def test_any_text_is_taken_apart_or_refused(text: str) -> None:
    with pytest.raises(Unauthenticated):
        take_apart(text, algorithms=("ES384",))


@given(values, values)
def test_any_json_is_taken_apart_or_refused(header: Any, claims: Any) -> None:
    text = ".".join(base64url(json.dumps(part).encode()) for part in (header, claims))
    with pytest.raises(Unauthenticated):
        take_apart(f"{text}.AA", algorithms=("ES384",))


@given(position=st.integers(0, len(TOKEN) - 1), letter=st.sampled_from("ABab01-_.=+/ é"))
def test_no_changed_letter_verifies(position: int, letter: str) -> None:
    changed = TOKEN[:position] + letter + TOKEN[position + 1 :]
    if changed == TOKEN:
        return
    with pytest.raises(Unauthenticated):
        verify(take_apart(changed, algorithms=("ES384",)), KEY)


@given(st.binary(max_size=120))
def test_no_random_signature_verifies(signature: bytes) -> None:
    token = take_apart(f"{TOKEN.rpartition('.')[0]}.{base64url(signature)}", algorithms=("ES384",))
    with pytest.raises(Unauthenticated):
        verify(token, KEY)
