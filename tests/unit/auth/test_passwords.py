"""Which passwords may be chosen, and how they are kept."""

import threading
import time

import pytest
from argon2 import PasswordHasher, extract_parameters
from argon2.low_level import Type

from rayhook.auth import passwords
from rayhook.auth.passwords import check_new_password, hash_password, is_outdated, is_password
from rayhook.fhir.errors import InvalidRequest, RateLimited

GOOD = "purple lantern seven orchard"


@pytest.mark.parametrize(
    "password", [GOOD, "x7#Lq9!vRt2&", "Ünser Hündchen träumt nächtelang", "s" * 3 + GOOD * 4]
)
def test_a_password_that_is_hard_to_guess_may_be_chosen(password):
    check_new_password(password, account_name="officer")


@pytest.mark.parametrize(
    "password",
    [
        "short words",
        "x" * 129,
        "password1234",
        "qwertyuiop123",
        "aaaaaaaaaaaaaaaa",
        "abababababababab",
        "123456789012345",
        "rayhookrayhook",
        "letmeinletmein",
    ],
)
def test_a_password_that_is_guessed_early_is_refused(password):
    with pytest.raises(InvalidRequest) as refused:
        check_new_password(password, account_name="officer")
    assert refused.value.code == "password_refused"


@pytest.mark.parametrize("password", ["margaret.hale1", "margarethale99"])
def test_the_accounts_own_name_makes_no_password(password):
    with pytest.raises(InvalidRequest):
        check_new_password(password, account_name="margaret.hale@hospital.example")


def test_the_refusal_does_not_repeat_the_password():
    with pytest.raises(InvalidRequest) as refused:
        check_new_password("password1234", account_name="officer")
    assert "1234" not in refused.value.message


def test_no_class_of_characters_is_asked_for():
    check_new_password("correcthorsebatterystaplefence", account_name="officer")


def test_the_hash_is_argon2id_with_the_recommended_cost():
    found = extract_parameters(hash_password(GOOD))
    assert (found.type, found.memory_cost, found.time_cost) == (Type.ID, 19_456, 2)


def test_one_password_is_kept_differently_each_time():
    assert hash_password(GOOD) != hash_password(GOOD)


def test_the_right_password_is_known_again():
    assert is_password(GOOD, hash_password(GOOD))


@pytest.mark.parametrize("other", ["", GOOD.upper(), f"{GOOD} ", "\0", "x" * 100_000])
def test_another_password_is_not(other):
    assert not is_password(other, hash_password(GOOD))


def test_a_password_is_the_same_however_the_keyboard_composes_it():
    assert is_password(
        "ma\u0301s vale que sobre la lu\u0301z", hash_password("m\u00e1s vale que sobre la l\u00faz")
    )


def test_what_follows_the_longest_password_counts():
    longest = (GOOD * 6)[:128]
    assert not is_password(f"{longest}x", hash_password(longest))


def test_without_an_account_no_password_is_right():
    assert not is_password("the password of no account", None)


def test_a_damaged_hash_lets_nobody_in():
    assert not is_password(GOOD, "$argon2id$v=19$damaged")


def test_a_hash_of_weaker_parameters_is_outdated():
    weak = PasswordHasher(time_cost=1, memory_cost=8_192, parallelism=1).hash(GOOD)
    assert (is_outdated(weak), is_outdated(hash_password(GOOD))) == (True, False)


def test_no_more_than_two_hash_at_the_same_time(monkeypatch):
    monkeypatch.setattr(passwords, "_WAIT_S", 0.05)
    release = threading.Event()

    def hold() -> None:
        with passwords._turn():
            release.wait(5)

    holders = [threading.Thread(target=hold) for _ in range(2)]
    for holder in holders:
        holder.start()
    time.sleep(0.02)
    try:
        with pytest.raises(RateLimited):
            hash_password(GOOD)
    finally:
        release.set()
        for holder in holders:
            holder.join()
