from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import RayhookError

names = st.text(max_size=12)
places = st.fixed_dictionaries({"table": names, "column": names, "row": names})


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    path: Path = tmp_path_factory.mktemp("keyring") / "keyring.json"
    return Keyring.load_or_create(path)


@given(plaintext=st.binary(max_size=2000), place=places)
def test_what_was_sealed_opens_in_its_place(
    keyring: Keyring, plaintext: bytes, place: dict[str, str]
) -> None:
    assert keyring.open(keyring.seal(plaintext, **place), **place) == plaintext


@given(place=places, other=places)
def test_it_opens_in_no_other_place(keyring: Keyring, place: dict[str, str], other: dict[str, str]) -> None:
    assume(place != other)
    sealed = keyring.seal(b"value", **place)
    with pytest.raises(RayhookError, match="does not belong"):
        keyring.open(sealed, **other)


@given(text=st.text(min_size=2, max_size=20), cuts=st.lists(st.integers(0, 20), min_size=4, max_size=4))
def test_moving_letters_between_the_names_is_another_place(
    keyring: Keyring, text: str, cuts: list[int]
) -> None:
    (a, b), (c, d) = sorted(cuts[:2]), sorted(cuts[2:])
    place = {"table": text[:a], "column": text[a:b], "row": text[b:]}
    other = {"table": text[:c], "column": text[c:d], "row": text[d:]}
    assume(place != other)
    with pytest.raises(RayhookError):
        keyring.open(keyring.seal(b"value", **place), **other)


@given(plaintext=st.binary(max_size=64), data=st.data())
def test_no_changed_bit_opens(keyring: Keyring, plaintext: bytes, data: st.DataObject) -> None:
    place = {"table": "t", "column": "c", "row": "r"}
    sealed = bytearray(keyring.seal(plaintext, **place))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RayhookError):
        keyring.open(bytes(sealed), **place)


@given(plaintext=st.binary(max_size=64), data=st.data())
def test_no_shortened_value_opens(keyring: Keyring, plaintext: bytes, data: st.DataObject) -> None:
    place = {"table": "t", "column": "c", "row": "r"}
    sealed = keyring.seal(plaintext, **place)
    with pytest.raises(RayhookError):
        keyring.open(sealed[: data.draw(st.integers(0, len(sealed) - 1))], **place)


@given(plaintext=st.binary(max_size=64))
def test_sealing_twice_gives_two_ciphertexts(keyring: Keyring, plaintext: bytes) -> None:
    place = {"table": "t", "column": "c", "row": "r"}
    assert keyring.seal(plaintext, **place) != keyring.seal(plaintext, **place)


@given(one=st.tuples(names, names), two=st.tuples(names, names))
def test_the_index_tells_value_and_purpose_apart(
    keyring: Keyring, one: tuple[str, str], two: tuple[str, str]
) -> None:
    same = keyring.blind_index(one[0], purpose=one[1]) == keyring.blind_index(two[0], purpose=two[1])
    assert same == (one == two)
