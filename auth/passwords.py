"""Passwords of local accounts: which may be chosen, and how they are kept.

Spec: NIST SP 800-63B-4 section 3.1.1; OWASP Password Storage (Argon2id); OWASP ASVS 5.0.0 V6.2, V11.4.2
"""

import re
import threading
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from rayhook.fhir.errors import InvalidRequest, RateLimited

MIN_LENGTH: Final = 12
MAX_LENGTH: Final = 128
# Of zxcvbn's 0 to 4, "safely unguessable": more than 10^8 guesses for who knows our lists and this account.
_MIN_SCORE: Final = 3
_WORD_LENGTH: Final = 3
_RATED_LENGTH: Final = 72  # zxcvbn takes no more
_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
# Each takes 19 MiB and a core: a crowd at the sign-in page must not take them from the hooks.
_AT_ONCE: Final = threading.BoundedSemaphore(2)
_WAIT_S: Final = 3.0


def check_new_password(password: str, *, account_name: str) -> None:
    """Raise InvalidRequest, saying which rule, for a password that may not be chosen. No classes of characters."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise _refusal(f"must have {MIN_LENGTH} to {MAX_LENGTH} characters")
    if len(set(password)) < MIN_LENGTH // 2:
        raise _refusal("repeats too few characters")
    own = _own_words(account_name)
    if len(_without(password.casefold(), own)) < MIN_LENGTH // 2 or _is_guessed_early(password, own):
        raise _refusal("is too easy to guess: take a longer one, of words that do not belong together")


def hash_password(password: str) -> str:
    """Return the PHC string of an Argon2id hash with a salt of its own."""
    with _turn():
        return _HASHER.hash(_normal(password))


def is_password(password: str, hashed: str | None) -> bool:
    """Compare; without a hash, as for an account that does not exist, it takes as long and says no."""
    with _turn():
        try:
            matches = _HASHER.verify(hashed or _nobodys(), _normal(password))
        except (VerificationError, InvalidHashError):
            return False
    return matches and hashed is not None and len(password) <= MAX_LENGTH


def is_outdated(hashed: str) -> bool:
    """Say whether the hash was made with weaker parameters than today's."""
    return _HASHER.check_needs_rehash(hashed)


class _turn:  # noqa: N801 - read as a statement: `with _turn()`
    """One of the few that hash at the same time; raises RateLimited where none gets free."""

    def __enter__(self) -> None:
        if not _AT_ONCE.acquire(timeout=_WAIT_S):
            raise RateLimited("too many sign-ins at the same time", retry_after_s=5)

    def __exit__(self, *_: object) -> None:
        _AT_ONCE.release()


def _own_words(account_name: str) -> list[str]:
    """Return what belongs to this account or to us, the longest first."""
    parts = re.split(r"[^a-z0-9]+", account_name.casefold())
    words = {"rayhook", account_name.casefold(), *(part for part in parts if len(part) >= _WORD_LENGTH)}
    return sorted(words, key=len, reverse=True)


def _without(password: str, words: Iterable[str]) -> str:
    for word in words:
        password = password.replace(word, "")
    return password


def _is_guessed_early(password: str, own: list[str]) -> bool:
    # Here, as its lists take a tenth of a second to load, and few processes ever see a new password.
    from zxcvbn import zxcvbn

    return int(zxcvbn(password[:_RATED_LENGTH], user_inputs=list(own))["score"]) < _MIN_SCORE


def _normal(password: str) -> str:
    """Keyboards write one character in several ways. Spec: NIST SP 800-63B-4 section 3.1.1.2 (NFC)."""
    return unicodedata.normalize("NFC", password[:MAX_LENGTH])


@cache
def _nobodys() -> str:
    return _HASHER.hash("the password of no account")


def _refusal(rule: str) -> InvalidRequest:
    return InvalidRequest(f"password: {rule}", code="password_refused", expression="password")
