import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from joserfc.jwk import ECKey, RSAKey
from sqlmodel import select

from rayhook.auth.database_types import Sessions
from rayhook.auth.jose import read_key_set
from rayhook.auth.jwks import JWKSCache
from rayhook.auth.principal import CDSClientPrincipal
from rayhook.auth.registry import EHR, CDSClient, EHRRegistry
from rayhook.auth.tokens import ReplayMemory, UsedJTI, verify_cds_client
from rayhook.deploy.database import Database, create_database
from rayhook.fhir.errors import ServiceUnavailable, Unauthenticated

from .conftest import AUDIENCE, ISSUER, Clock, KeyServer, jwks_of, signed

Verify = Callable[..., CDSClientPrincipal]
Claims = dict[str, Any]


@pytest.fixture
def verify(registry: EHRRegistry, jwks: JWKSCache, sessions: Sessions, clock: Clock) -> Verify:
    def call(authorization: str | None, sessions: Sessions = sessions) -> CDSClientPrincipal:
        return verify_cds_client(
            authorization, audience=AUDIENCE, registry=registry, jwks=jwks, sessions=sessions, clock=clock
        )

    return call


def refused(verify: Verify, token: str | None) -> str:
    with pytest.raises(Unauthenticated) as refusal:
        verify(None if token is None else f"Bearer {token}")
    return refusal.value.code


def base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def handmade(header: object, claims: object, sign: Callable[[bytes], bytes] = lambda _: b"") -> str:
    signing_input = ".".join(base64url(json.dumps(part).encode()) for part in (header, claims))
    return f"{signing_input}.{base64url(sign(signing_input.encode()))}"


def keyed_with(secret: bytes, digest: str) -> Callable[[bytes], bytes]:
    return lambda message: hmac.digest(secret, message, digest)


def test_es384(verify: Verify, ec_key: ECKey, claims: Claims) -> None:
    principal = verify(f"Bearer {signed(ec_key, claims)}")
    assert (principal.issuer, principal.jti, principal.ehr.id) == (ISSUER, claims["jti"], "north")


def test_rs384(verify: Verify, rsa_key: RSAKey, claims: Claims) -> None:
    assert verify(f"Bearer {signed(rsa_key, claims)}").expires_at == claims["exp"]


@pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE]])
def test_the_audience_alone_or_as_the_only_member(
    verify: Verify, ec_key: ECKey, claims: Claims, audience: object
) -> None:
    assert verify(f"bearer {signed(ec_key, claims | {'aud': audience})}")


@pytest.mark.parametrize(
    "audience",
    [
        "https://rayhook.example.org",
        "https://rayhook.example.org/cds-services",
        "https://rayhook.example.org/cds-services/rayhook-order-sign",
        f"{AUDIENCE}/",
        AUDIENCE.upper(),
        AUDIENCE.replace("https", "http"),
        [AUDIENCE, "https://another.example"],
        ["https://another.example", AUDIENCE],
        [AUDIENCE, AUDIENCE],
        [],
        [[AUDIENCE]],
        {"url": AUDIENCE},
        "",
        None,
        True,
    ],
)
def test_any_other_audience(verify: Verify, ec_key: ECKey, claims: Claims, audience: object) -> None:
    assert refused(verify, signed(ec_key, claims | {"aud": audience})) == "audience_wrong"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"exp": -1}, "token_expired"),
        ({"exp": 0}, "token_expired"),
        ({"exp": 301}, "expiry_too_far"),
        ({"exp": 600}, "expiry_too_far"),
        ({"exp": 331, "iat": 31}, "expiry_too_far"),
        ({"exp": 10**9}, "expiry_too_far"),
        ({"iat": 31, "exp": 300}, "issued_in_future"),
        ({"iat": 10**9, "exp": 300}, "issued_in_future"),
        ({"nbf": 31}, "issued_in_future"),
        ({"iat": -301, "exp": 1}, "expiry_too_far"),
    ],
)
def test_times_relative_to_now(
    verify: Verify, ec_key: ECKey, claims: Claims, changes: dict[str, int], code: str
) -> None:
    moved = {name: claims["iat"] + offset for name, offset in changes.items()}
    assert refused(verify, signed(ec_key, claims | moved)) == code


@pytest.mark.parametrize("offset", [30, -290])
def test_a_clock_that_is_somewhat_off_is_borne(
    verify: Verify, ec_key: ECKey, claims: Claims, offset: int
) -> None:
    now = claims["iat"]
    assert verify(f"Bearer {signed(ec_key, claims | {'iat': now + offset, 'exp': now + offset + 300})}")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"iss": "https://another.example"}, "issuer_unknown"),
        ({"iss": f"{ISSUER}/"}, "issuer_unknown"),
        ({"iss": f"{ISSUER}.evil"}, "issuer_unknown"),
        ({"iss": ISSUER.upper()}, "issuer_unknown"),
        ({"iss": [ISSUER]}, "issuer_unknown"),
        ({"iss": None}, "issuer_unknown"),
        ({"exp": "soon"}, "exp_malformed"),
        ({"exp": True}, "exp_malformed"),
        ({"exp": None}, "exp_malformed"),
        ({"iat": "1"}, "iat_malformed"),
        ({"iat": None}, "iat_malformed"),
        ({"jti": ""}, "jti_malformed"),
        ({"jti": 7}, "jti_malformed"),
        ({"jti": None}, "jti_malformed"),
        ({"jti": "x" * 256}, "jti_malformed"),
        ({"tenant": ["a"]}, "tenant_refused"),
    ],
)
def test_claims(verify: Verify, ec_key: ECKey, claims: Claims, changes: Claims, code: str) -> None:
    assert refused(verify, signed(ec_key, claims | changes)) == code


@pytest.mark.parametrize("name", ["iss", "aud", "exp", "iat", "jti"])
def test_a_claim_that_is_missing(verify: Verify, ec_key: ECKey, claims: Claims, name: str) -> None:
    del claims[name]
    assert refused(verify, signed(ec_key, claims)) in {
        "issuer_unknown",
        "audience_wrong",
        "exp_malformed",
        "iat_malformed",
        "jti_malformed",
    }


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"jku": "https://ehr.example.org/jwks.json"}, "jku_refused"),
        ({"jku": ""}, "jku_refused"),
        ({"jku": None}, "jku_refused"),
        ({"crit": ["exp"], "exp": 1}, "header_refused"),
        ({"crit": []}, "header_refused"),
        ({"b64": False}, "header_refused"),
        ({"x5u": "https://ehr.example.org/chain.pem"}, "header_refused"),
        ({"x5c": ["AAAA"]}, "header_refused"),
        ({"jwk": {"kty": "EC"}}, "header_refused"),
        ({"kid": "unknown"}, "key_unknown"),
        ({"kid": "rsa-1"}, "key_unknown"),
        ({"kid": ""}, "kid_missing"),
        ({"kid": None}, "kid_missing"),
        ({"kid": ["ec-1"]}, "kid_missing"),
        ({"typ": "at+jwt"}, "type_refused"),
        ({"typ": None}, "type_refused"),
        ({"alg": "none"}, "algorithm_refused"),
        ({"alg": "None"}, "algorithm_refused"),
        ({"alg": "NONE"}, "algorithm_refused"),
        ({"alg": ""}, "algorithm_refused"),
        ({"alg": None}, "algorithm_refused"),
        ({"alg": ["ES384"]}, "algorithm_refused"),
        ({"alg": "es384"}, "algorithm_refused"),
        ({"alg": "ES256"}, "algorithm_refused"),
        ({"alg": "ES512"}, "algorithm_refused"),
        ({"alg": "RS256"}, "algorithm_refused"),
        ({"alg": "RS512"}, "algorithm_refused"),
        ({"alg": "PS384"}, "algorithm_refused"),
        ({"alg": "EdDSA"}, "algorithm_refused"),
        ({"alg": "HS256"}, "algorithm_refused"),
        ({"alg": "HS384"}, "algorithm_refused"),
        ({"alg": "RS384"}, "key_unknown"),
    ],
)
def test_headers(verify: Verify, claims: Claims, header: Claims, code: str) -> None:
    assert refused(verify, handmade({"alg": "ES384", "kid": "ec-1", "typ": "JWT"} | header, claims)) == code


@pytest.mark.parametrize("missing", ["alg", "kid", "typ"])
def test_a_header_that_is_missing(verify: Verify, claims: Claims, missing: str) -> None:
    header = {"alg": "ES384", "kid": "ec-1", "typ": "JWT"}
    del header[missing]
    assert refused(verify, handmade(header, claims)) in {"algorithm_refused", "kid_missing", "type_refused"}


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("encoding", ["PEM", "DER"])
def test_hmac_keyed_with_the_public_key(
    verify: Verify, rsa_key: RSAKey, claims: Claims, algorithm: str, encoding: str
) -> None:
    secret = rsa_key.as_pem(private=False) if encoding == "PEM" else rsa_key.as_der(private=False)
    header = {"alg": algorithm, "kid": "rsa-1", "typ": "JWT"}
    token = handmade(header, claims, keyed_with(secret, f"sha{algorithm[2:]}"))
    assert refused(verify, token) == "algorithm_refused"


def test_hmac_passed_off_as_rs384(verify: Verify, rsa_key: RSAKey, claims: Claims) -> None:
    secret = rsa_key.as_pem(private=False)
    token = handmade({"alg": "RS384", "kid": "rsa-1", "typ": "JWT"}, claims, keyed_with(secret, "sha384"))
    assert refused(verify, token) == "signature_invalid"


def test_rs256_with_the_right_key(verify: Verify, rsa_key: RSAKey, claims: Claims) -> None:
    assert refused(verify, signed(rsa_key, claims, alg="RS256")) == "algorithm_refused"


@pytest.mark.parametrize("kind", ["EC", "RSA"])
def test_another_key_under_the_known_kid(verify: Verify, claims: Claims, kind: str) -> None:
    key = (
        ECKey.generate_key("P-384", {"kid": "ec-1"})
        if kind == "EC"
        else RSAKey.generate_key(2048, {"kid": "rsa-1"})
    )
    assert refused(verify, signed(key, claims)) == "signature_invalid"


def test_a_key_brought_along(verify: Verify, claims: Claims) -> None:
    own = ECKey.generate_key("P-384", {"kid": "ec-1"})
    assert refused(verify, signed(own, claims, jwk=own.as_dict(private=False))) == "header_refused"


def test_changed_claims(verify: Verify, ec_key: ECKey, claims: Claims) -> None:
    header, _, signature = signed(ec_key, claims).split(".")
    payload = base64url(json.dumps(claims | {"tenant": "other"}).encode())
    assert refused(verify, f"{header}.{payload}.{signature}") == "signature_invalid"


@pytest.mark.parametrize("signature", ["", "AAAA", base64url(bytes(96)), base64url(bytes(48))])
def test_no_signature_or_a_trivial_one(verify: Verify, ec_key: ECKey, claims: Claims, signature: str) -> None:
    signing_input = signed(ec_key, claims).rpartition(".")[0]
    assert refused(verify, f"{signing_input}.{signature}") == "signature_invalid"


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "Token abc", "Bearer\tx.y.z"],
)
def test_no_bearer_token(verify: Verify, authorization: str | None) -> None:
    with pytest.raises(Unauthenticated) as refusal:
        verify(authorization)
    assert refusal.value.code in {"token_missing", "token_malformed"}


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "a.b.c.d.e",
        "..",
        "é.é.é",
        f"{base64url(b'[]')}.{base64url(b'{}')}.AA",
        f"{base64url(b'null')}.{base64url(b'{}')}.AA",
        f"{base64url(b'[' * 5000)}.{base64url(b'{}')}.AA",
        "A" * 20_000,
        handmade({"alg": "ES384", "kid": "ec-1", "typ": "JWT"}, []),
        handmade({"alg": "ES384", "kid": "ec-1", "typ": "JWT"}, {"exp": float("nan")}),
    ],
)
def test_what_is_no_token(verify: Verify, token: str) -> None:
    assert refused(verify, token) == "token_malformed"


def test_a_claim_given_twice(verify: Verify, ec_key: ECKey, claims: Claims) -> None:
    header = base64url(b'{"alg":"ES384","kid":"ec-1","typ":"JWT"}')
    payload = base64url(json.dumps(claims).encode().replace(b"{", b'{"iss":"https://another.example",', 1))
    assert refused(verify, f"{header}.{payload}.AA") == "token_malformed"


def test_a_p256_key_is_not_used_for_es384(
    jwks: JWKSCache, sessions: Sessions, clock: Clock, ehr: EHR, claims: Claims
) -> None:
    key = ECKey.generate_key("P-256", {"kid": "small"})
    keys = replace(ehr.cds_client, keys=read_key_set(jwks_of(key)))
    registry = EHRRegistry((replace(ehr, cds_client=keys),))
    token = handmade({"alg": "ES384", "kid": "small", "typ": "JWT"}, claims)
    with pytest.raises(Unauthenticated) as refusal:
        verify_cds_client(
            f"Bearer {token}", audience=AUDIENCE, registry=registry, jwks=jwks, sessions=sessions, clock=clock
        )
    assert refusal.value.code == "key_unknown"


class TestTenants:
    @pytest.fixture
    def registry(self, ehr: EHR) -> EHRRegistry:
        client = replace(ehr.cds_client, tenants=frozenset({"main", "branch"}))
        return EHRRegistry((replace(ehr, cds_client=client),))

    def test_registered(self, verify: Verify, ec_key: ECKey, claims: Claims) -> None:
        assert verify(f"Bearer {signed(ec_key, claims | {'tenant': 'main'})}").tenant == "main"

    @pytest.mark.parametrize("tenant", ["other", "", "MAIN", None, ["main"]])
    def test_not_registered(self, verify: Verify, ec_key: ECKey, claims: Claims, tenant: object) -> None:
        assert refused(verify, signed(ec_key, claims | {"tenant": tenant})) == "tenant_refused"

    def test_missing(self, verify: Verify, ec_key: ECKey, claims: Claims) -> None:
        assert refused(verify, signed(ec_key, claims)) == "tenant_refused"


class TestReplay:
    def test_the_second_use_is_refused(self, verify: Verify, ec_key: ECKey, claims: Claims) -> None:
        token = signed(ec_key, claims)
        verify(f"Bearer {token}")
        assert refused(verify, token) == "jti_replayed"

    def test_the_same_jti_in_another_token(self, verify: Verify, ec_key: ECKey, claims: Claims) -> None:
        verify(f"Bearer {signed(ec_key, claims)}")
        assert refused(verify, signed(ec_key, claims | {"exp": claims["exp"] - 1})) == "jti_replayed"

    def test_after_a_restart(
        self, verify: Verify, ec_key: ECKey, claims: Claims, database: Database, database_url: str
    ) -> None:
        token = signed(ec_key, claims)
        verify(f"Bearer {token}")
        database.close()
        with closing(create_database(database_url)) as again, pytest.raises(Unauthenticated) as refusal:
            verify(f"Bearer {token}", again.sessions)
        assert refusal.value.code == "jti_replayed"

    def test_fifty_at_once(self, verify: Verify, ec_key: ECKey, claims: Claims) -> None:
        authorization = f"Bearer {signed(ec_key, claims)}"
        barrier = threading.Barrier(50)

        def use(_: int) -> str:
            barrier.wait()
            try:
                verify(authorization)
            except Unauthenticated as refusal:
                return refusal.code
            return "accepted"

        with ThreadPoolExecutor(50) as pool:
            outcomes = sorted(pool.map(use, range(50)))
        assert outcomes == ["accepted", *["jti_replayed"] * 49]

    def test_a_refused_token_uses_nothing_up(self, verify: Verify, ec_key: ECKey, claims: Claims) -> None:
        refused(verify, signed(ec_key, claims | {"aud": "elsewhere"}))
        assert verify(f"Bearer {signed(ec_key, claims)}")

    def test_issuers_do_not_share_their_ids(self, sessions: Sessions) -> None:
        memory = ReplayMemory(sessions)
        memory.use("https://a.example", "1", expires_at=10.0, now=0.0)
        memory.use("https://b.example", "1", expires_at=10.0, now=0.0)

    def test_expired_rows_are_erased(self, sessions: Sessions) -> None:
        memory = ReplayMemory(sessions)
        memory.use("https://old.example", "old", expires_at=100.0, now=0.0)
        memory.use("https://old.example", "new", expires_at=1100.0, now=1000.0)
        with sessions() as session:
            kept = session.exec(select(UsedJTI.jti).where(UsedJTI.issuer == "https://old.example")).all()
        assert kept == ["new"]

    def test_a_clock_set_back_brings_nothing_to_life(self, sessions: Sessions) -> None:
        memory = ReplayMemory(sessions)
        memory.use("https://back.example", "1", expires_at=100.0, now=0.0)
        memory.use("https://back.example", "2", expires_at=400.0, now=150.0)
        with pytest.raises(Unauthenticated):
            memory.use("https://back.example", "1", expires_at=100.0, now=50.0)

    def test_without_its_table_nobody_is_let_in(self, tmp_path: Any) -> None:
        empty = create_database(f"sqlite:///{tmp_path / 'empty.db'}")
        with pytest.raises(ServiceUnavailable):
            ReplayMemory(empty.sessions).use(ISSUER, "1", expires_at=1.0, now=0.0)
        empty.close()


class TestKeysByURL:
    @pytest.fixture
    def registry(self, ehr: EHR, key_server: KeyServer) -> EHRRegistry:
        client = CDSClient(issuer=ISSUER, jwks_url=f"{key_server.base_url}/jwks.json")
        return EHRRegistry((replace(ehr, cds_client=client),))

    def test_fetched(self, verify: Verify, key_server: KeyServer, ec_key: ECKey, claims: Claims) -> None:
        key_server.answer("/jwks.json", jwks_of(ec_key))
        assert verify(f"Bearer {signed(ec_key, claims)}")

    def test_the_registered_jku(
        self, verify: Verify, key_server: KeyServer, ec_key: ECKey, claims: Claims
    ) -> None:
        key_server.answer("/jwks.json", jwks_of(ec_key))
        assert verify(f"Bearer {signed(ec_key, claims, jku=f'{key_server.base_url}/jwks.json')}")

    @pytest.mark.parametrize(
        "trick",
        [
            "{base}/other.json",
            "{base}/jwks.json?",
            "{base}/jwks.json#",
            "{base}/./jwks.json",
            "{base}.evil.example/jwks.json",
            "http://user@{host}/jwks.json",
            "https://{host}/jwks.json",
            "file:///etc/passwd",
        ],
    )
    def test_another_jku_is_refused_without_a_fetch(
        self, verify: Verify, key_server: KeyServer, ec_key: ECKey, claims: Claims, trick: str
    ) -> None:
        base = key_server.base_url
        jku = trick.format(base=base, host=base.removeprefix("http://"))
        token = handmade({"alg": "ES384", "kid": "ec-1", "typ": "JWT", "jku": jku}, claims)
        assert (refused(verify, token), key_server.requests) == ("jku_refused", [])

    def test_an_unknown_issuer_causes_no_fetch(
        self, verify: Verify, key_server: KeyServer, ec_key: ECKey, claims: Claims
    ) -> None:
        refused(verify, signed(ec_key, claims | {"iss": "https://another.example"}))
        assert key_server.requests == []

    @pytest.mark.parametrize(
        "answer", [(500, b"{}"), (200, b"not json"), (200, b"[]"), (200, b'{"keys":[]}'), (302, b"{}")]
    )
    def test_no_keys_to_be_had(
        self,
        verify: Verify,
        key_server: KeyServer,
        ec_key: ECKey,
        claims: Claims,
        answer: tuple[int, bytes],
    ) -> None:
        key_server.answers["/jwks.json"] = answer
        assert refused(verify, signed(ec_key, claims)) == "key_unknown"


def test_the_token_is_never_stored(verify: Verify, sessions: Sessions, ec_key: ECKey, claims: Claims) -> None:
    token = signed(ec_key, claims)
    verify(f"Bearer {token}")
    with sessions() as session:
        row = session.exec(select(UsedJTI).where(UsedJTI.jti == claims["jti"])).one()
    assert not {token, hashlib.sha256(token.encode()).hexdigest()} & {row.issuer, row.jti}


def test_the_refusal_does_not_repeat_the_token(verify: Verify, ec_key: ECKey, claims: Claims) -> None:
    token = signed(ec_key, claims | {"aud": "elsewhere"})
    with pytest.raises(Unauthenticated) as refusal:
        verify(f"Bearer {token}")
    assert token[:20] not in refusal.value.message
