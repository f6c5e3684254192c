import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from joserfc.jwk import ECKey, RSAKey

from rayhook.auth.jose import VerificationKey
from rayhook.auth.jwks import JWKSCache
from rayhook.fhir.transport import Transport

from .conftest import Clock, KeyServer, eventually, jwks_of

PATH = "/jwks.json"
HOUR = 3600.0


@pytest.fixture
def next_key() -> ECKey:
    return ECKey.generate_key("P-384", {"kid": "ec-2"})


def find(jwks: JWKSCache, server: KeyServer, kid: str = "ec-1", issuer: str = "a") -> VerificationKey | None:
    return jwks.find(
        issuer,
        f"{server.base_url}{PATH}",
        allowed_origins=frozenset([server.base_url]),
        kid=kid,
        algorithm="ES384",
    )


def test_one_fetch_serves_many_calls(jwks: JWKSCache, key_server: KeyServer, ec_key: ECKey) -> None:
    key_server.answer(PATH, jwks_of(ec_key))
    assert all(find(jwks, key_server) for _ in range(20))
    assert key_server.count(PATH) == 1


def test_many_callers_at_once_cause_one_fetch(jwks: JWKSCache, key_server: KeyServer, ec_key: ECKey) -> None:
    key_server.answer(PATH, jwks_of(ec_key))
    key_server.delay_s = 0.1
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: find(jwks, key_server), range(16)))
    assert (all(found), key_server.count(PATH)) == (True, 1)


def test_a_new_kid_is_fetched(
    jwks: JWKSCache, key_server: KeyServer, ec_key: ECKey, next_key: ECKey, clock: Clock
) -> None:
    key_server.answer(PATH, jwks_of(ec_key))
    find(jwks, key_server)
    key_server.answer(PATH, jwks_of(ec_key, next_key))
    clock.advance(60.0)
    assert find(jwks, key_server, "ec-2") is not None


def test_unknown_kids_cause_one_fetch_a_minute(
    jwks: JWKSCache, key_server: KeyServer, ec_key: ECKey, clock: Clock
) -> None:
    key_server.answer(PATH, jwks_of(ec_key))
    for _ in range(59):
        assert find(jwks, key_server, "unknown") is None
        clock.advance(1.0)
    assert key_server.count(PATH) == 1


def test_known_keys_work_during_the_cooldown(jwks: JWKSCache, key_server: KeyServer, ec_key: ECKey) -> None:
    key_server.answer(PATH, jwks_of(ec_key))
    find(jwks, key_server, "unknown")
    assert find(jwks, key_server) is not None


def test_a_key_taken_back_is_forgotten_after_the_refresh(
    jwks: JWKSCache, key_server: KeyServer, ec_key: ECKey, next_key: ECKey, clock: Clock
) -> None:
    key_server.answer(PATH, jwks_of(ec_key))
    find(jwks, key_server)
    key_server.answer(PATH, jwks_of(next_key))
    clock.advance(HOUR + 1)
    find(jwks, key_server)
    assert eventually(lambda: find(jwks, key_server) is None)


def test_cached_keys_work_while_the_server_is_down(
    jwks: JWKSCache, key_server: KeyServer, ec_key: ECKey, clock: Clock
) -> None:
    key_server.answer(PATH, jwks_of(ec_key))
    find(jwks, key_server)
    key_server.answer(PATH, {}, status=500)
    clock.advance(23 * HOUR)
    assert find(jwks, key_server) is not None


def test_cached_keys_end_at_their_age_limit(
    jwks: JWKSCache, key_server: KeyServer, ec_key: ECKey, clock: Clock
) -> None:
    key_server.answer(PATH, jwks_of(ec_key))
    find(jwks, key_server)
    key_server.answer(PATH, {}, status=500)
    clock.advance(24 * HOUR + 1)
    assert find(jwks, key_server) is None


def test_an_empty_set_does_not_replace_the_keys(
    jwks: JWKSCache, key_server: KeyServer, ec_key: ECKey, clock: Clock
) -> None:
    key_server.answer(PATH, jwks_of(ec_key))
    find(jwks, key_server)
    key_server.answer(PATH, {"keys": []})
    clock.advance(2 * HOUR)
    find(jwks, key_server, "unknown")
    assert key_server.count(PATH) == 2
    assert find(jwks, key_server) is not None


def test_a_first_fetch_that_failed_is_soon_tried_again(
    jwks: JWKSCache, key_server: KeyServer, ec_key: ECKey, clock: Clock
) -> None:
    assert find(jwks, key_server) is None
    key_server.answer(PATH, jwks_of(ec_key))
    clock.advance(5.0)
    assert find(jwks, key_server) is not None


def test_a_slow_server_holds_nobody_up_and_serves_the_next_call(
    transport: Transport, key_server: KeyServer, ec_key: ECKey, clock: Clock
) -> None:
    cache = JWKSCache(transport, clock, wait_s=0.01)
    key_server.answer(PATH, jwks_of(ec_key))
    key_server.delay_s = 0.1
    assert find(cache, key_server) is None
    assert eventually(lambda: find(cache, key_server) is not None)
    cache.close()


def test_a_stale_key_is_answered_before_the_refresh_ends(
    jwks: JWKSCache, key_server: KeyServer, ec_key: ECKey, clock: Clock
) -> None:
    key_server.answer(PATH, jwks_of(ec_key))
    find(jwks, key_server)
    clock.advance(2 * HOUR)
    key_server.delay_s = 1.0
    began = time.monotonic()
    assert find(jwks, key_server) is not None
    assert time.monotonic() - began < 0.9
    assert eventually(lambda: key_server.count(PATH) == 2)


def test_warmed_keys_need_no_fetch(jwks: JWKSCache, key_server: KeyServer, ec_key: ECKey) -> None:
    key_server.answer(PATH, jwks_of(ec_key))
    origins = frozenset([key_server.base_url])
    jwks.warm("a", f"{key_server.base_url}{PATH}", allowed_origins=origins)
    assert eventually(lambda: key_server.count(PATH) == 1)
    assert find(jwks, key_server) is not None
    assert key_server.count(PATH) == 1


def test_issuers_do_not_share_keys(jwks: JWKSCache, key_server: KeyServer, ec_key: ECKey) -> None:
    key_server.answer(PATH, jwks_of(ec_key))
    find(jwks, key_server, issuer="a")
    find(jwks, key_server, issuer="b")
    assert key_server.count(PATH) == 2


def test_an_origin_that_is_not_allowed_is_not_asked(
    jwks: JWKSCache, key_server: KeyServer, ec_key: ECKey
) -> None:
    key_server.answer(PATH, jwks_of(ec_key))
    found = jwks.find(
        "a", f"{key_server.base_url}{PATH}", allowed_origins=frozenset(), kid="ec-1", algorithm="ES384"
    )
    assert (found, key_server.requests) == (None, [])


def test_keys_of_other_kinds_are_passed_over(
    jwks: JWKSCache, key_server: KeyServer, ec_key: ECKey, rsa_key: RSAKey
) -> None:
    others = [{"kty": "oct", "k": "AAAA", "kid": "ec-1"}, {"kty": "XYZ"}, 7, {"kty": "EC", "kid": "ec-1"}]
    key_server.answer(PATH, {"keys": [*others, *jwks_of(rsa_key, ec_key)["keys"]]})
    assert find(jwks, key_server) is not None


def test_an_encryption_key_verifies_nothing(jwks: JWKSCache, key_server: KeyServer, ec_key: ECKey) -> None:
    key_server.answer(PATH, {"keys": [ec_key.as_dict(private=False, use="enc")]})
    assert find(jwks, key_server) is None
