from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rayhook.audit.handover import HandOver, key_name, trusted_keys

FIRST, SECOND, THIRD, FORGER = (Ed25519PrivateKey.generate() for _ in range(4))
ONE = HandOver.signed(FIRST, SECOND, size=10, signed_at="2026-01-01T00:00:00.000000Z")
TWO = HandOver.signed(SECOND, THIRD, size=20, signed_at="2026-02-01T00:00:00.000000Z")


def periods(pinned, hand_overs):
    found = trusted_keys(pinned.public_key(), hand_overs).periods
    return [(key_name(period.key), period.first, period.last) for period in found]


@pytest.mark.parametrize("pinned", [FIRST, SECOND, THIRD])
def test_whichever_key_is_pinned_all_are_known(pinned):
    assert periods(pinned, [ONE, TWO]) == [
        (key_name(FIRST.public_key()), 0, 10),
        (key_name(SECOND.public_key()), 10, 20),
        (key_name(THIRD.public_key()), 20, None),
    ]


def test_without_hand_over_the_pinned_key_signs_all():
    assert periods(FIRST, []) == [(key_name(FIRST.public_key()), 0, None)]


def test_hand_over_of_strangers_leads_nowhere():
    stranger = HandOver.signed(FORGER, THIRD, size=5, signed_at="")
    assert periods(FIRST, [stranger]) == [(key_name(FIRST.public_key()), 0, None)]


@pytest.mark.parametrize(
    "change",
    [
        {"size": 11},
        {"new_key": key_name(FORGER.public_key())},
        {"old_key": key_name(FORGER.public_key())},
        {"signed_at": "2020"},
        {"old_signature": "00" * 64},
        {"new_signature": ""},
        {"new_key": "zz"},
    ],
)
def test_changed_hand_over_is_refused(change):
    found = trusted_keys(FIRST.public_key(), [replace(ONE, **change)])
    assert len(found.refused) == 1
    assert len(found.periods) == 1


def test_stolen_old_key_cannot_hand_over_once_more():
    """The thief of a retired key signs a second hand-over, to a key of theirs."""
    second = HandOver.signed(FIRST, FORGER, size=15, signed_at="")
    found = trusted_keys(FIRST.public_key(), [ONE, second])
    assert found.refused == (15,)
    assert key_name(found.current) == key_name(SECOND.public_key())


def test_retired_key_does_not_count_for_new_events():
    keys = trusted_keys(FIRST.public_key(), [ONE])
    assert keys.verifies(10, lambda key: key_name(key) == key_name(FIRST.public_key()))
    assert not keys.verifies(11, lambda key: key_name(key) == key_name(FIRST.public_key()))
    assert not keys.verifies("10", lambda _: True)
