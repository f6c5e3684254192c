import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from rayhook.auth.jwks import JWKSCache
from rayhook.auth.registry import EHR, CDSClient, SMARTClient
from rayhook.auth.smart import IDToken, SMARTConfiguration, verify_id_token
from rayhook.fhir.errors import Unauthenticated

from .conftest import ISSUER, Clock, KeyServer, jwks_of, signed

NONCE = "nonce-1"
Claims = dict[str, Any]
Verify = Callable[[str], IDToken]


@pytest.fixture
def base(key_server: KeyServer) -> str:
    return f"{key_server.base_url}/fhir"


@pytest.fixture
def ehr(base: str) -> EHR:
    return EHR(
        id="north",
        name="North Hospital",
        fhir_base_urls=(base,),
        cds_client=CDSClient(issuer=ISSUER, jwks_url="https://keys.example.org/jwks.json"),
        smart=SMARTClient(client_id="rayhook", issuer=base, scopes=("openid",)),
    )


@pytest.fixture
def configuration(key_server: KeyServer, base: str) -> SMARTConfiguration:
    return SMARTConfiguration(
        issuer=base,
        authorization_endpoint=f"{base}/authorize",
        token_endpoint=f"{base}/token",
        assertion_algorithm="ES384",
        capabilities=frozenset(),
        jwks_uri=f"{key_server.base_url}/jwks.json",
    )


@pytest.fixture
def verify(
    ehr: EHR, configuration: SMARTConfiguration, jwks: JWKSCache, clock: Clock, published: None
) -> Verify:
    def call(token: str) -> IDToken:
        return verify_id_token(
            token, ehr=ehr, configuration=configuration, nonce=NONCE, jwks=jwks, clock=clock
        )

    return call


@pytest.fixture
def published(key_server: KeyServer, ec_key: ECKey, rsa_key: RSAKey) -> None:
    key_server.answer("/jwks.json", jwks_of(ec_key, rsa_key))


@pytest.fixture
def claims(clock: Clock, base: str) -> Claims:
    now = int(clock())
    return {
        "iss": base,
        "sub": "user-1",
        "aud": "rayhook",
        "iat": now,
        "exp": now + 300,
        "nonce": NONCE,
        "fhirUser": f"{base}/Practitioner/1",
        "name": "Dr North",
    }


def refused(verify: Verify, token: str) -> str:
    with pytest.raises(Unauthenticated) as refusal:
        verify(token)
    return refusal.value.code


def test_who_signed_in(verify: Verify, ec_key: ECKey, claims: Claims) -> None:
    assert verify(signed(ec_key, claims)) == IDToken("user-1", "Practitioner/1", "Dr North")


def test_rs256_which_every_ehr_has(verify: Verify, rsa_key: RSAKey, claims: Claims) -> None:
    header = {"alg": "RS256", "kid": rsa_key.kid}
    assert verify(jwt.encode(header, claims, rsa_key, algorithms=["RS256"])).subject == "user-1"


@pytest.mark.parametrize(
    ("fhir_user", "told"),
    [
        ("Practitioner/1", "Practitioner/1"),
        ("Patient/p-1", "Patient/p-1"),
        ("https://directory.example/fhir/Person/1", "https://directory.example/fhir/Person/1"),
    ],
)
def test_fhir_user(verify: Verify, ec_key: ECKey, claims: Claims, fhir_user: str, told: str) -> None:
    assert verify(signed(ec_key, claims | {"fhirUser": fhir_user})).fhir_user == told


def test_without_fhir_user(verify: Verify, ec_key: ECKey, claims: Claims) -> None:
    del claims["fhirUser"]
    assert verify(signed(ec_key, claims)).fhir_user is None


@pytest.mark.parametrize("audience", [["rayhook"], ["other", "rayhook"]])
def test_several_audiences_with_azp(
    verify: Verify, ec_key: ECKey, claims: Claims, audience: list[str]
) -> None:
    assert verify(signed(ec_key, claims | {"aud": audience, "azp": "rayhook"}))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"iss": "https://another.example"}, "issuer_unknown"),
        ({"iss": None}, "issuer_unknown"),
        ({"aud": "other"}, "audience_wrong"),
        ({"aud": None}, "audience_wrong"),
        ({"aud": []}, "audience_wrong"),
        ({"aud": ["rayhook", "other"]}, "audience_wrong"),
        ({"aud": ["rayhook", "other"], "azp": "other"}, "audience_wrong"),
        ({"azp": "other"}, "audience_wrong"),
        ({"azp": None}, "audience_wrong"),
        ({"nonce": "nonce-2"}, "nonce_wrong"),
        ({"nonce": ""}, "nonce_wrong"),
        ({"nonce": None}, "nonce_wrong"),
        ({"nonce": [NONCE]}, "nonce_wrong"),
        ({"exp": 1}, "token_expired"),
        ({"exp": "soon"}, "exp_malformed"),
        ({"iat": 1}, "token_expired"),
        ({"iat": 10**11}, "issued_in_future"),
        ({"iat": None}, "iat_malformed"),
        ({"sub": ""}, "subject_malformed"),
        ({"sub": None}, "subject_malformed"),
        ({"fhirUser": 7}, "fhir_user_malformed"),
        ({"fhirUser": "Device/1"}, "fhir_user_malformed"),
        ({"fhirUser": "javascript:alert(1)"}, "fhir_user_malformed"),
        ({"fhirUser": "Practitioner/1/../2"}, "fhir_user_malformed"),
    ],
)
def test_claims(verify: Verify, ec_key: ECKey, claims: Claims, changes: Claims, code: str) -> None:
    assert refused(verify, signed(ec_key, claims | changes)) == code


@pytest.mark.parametrize("algorithm", ["none", "HS256", "RS512", "PS256"])
def test_other_algorithms(verify: Verify, rsa_key: RSAKey, claims: Claims, algorithm: str) -> None:
    header = base64.urlsafe_b64encode(json.dumps({"alg": algorithm, "kid": "rsa-1"}).encode()).decode()
    _, payload, signature = signed(rsa_key, claims).split(".")
    assert refused(verify, f"{header}.{payload}.{signature}") == "algorithm_refused"


def test_another_key(verify: Verify, claims: Claims) -> None:
    assert (
        refused(verify, signed(ECKey.generate_key("P-384", {"kid": "ec-1"}), claims)) == "signature_invalid"
    )


def test_an_unknown_kid(verify: Verify, claims: Claims) -> None:
    assert refused(verify, signed(ECKey.generate_key("P-384", {"kid": "ec-9"}), claims)) == "key_unknown"


def test_an_ehr_that_publishes_no_keys(
    ehr: EHR, configuration: SMARTConfiguration, jwks: JWKSCache, ec_key: ECKey, claims: Claims
) -> None:
    bare = replace(configuration, jwks_uri=None)
    with pytest.raises(Unauthenticated) as refusal:
        verify_id_token(signed(ec_key, claims), ehr=ehr, configuration=bare, nonce=NONCE, jwks=jwks)
    assert refusal.value.code == "key_unknown"


def test_a_name_that_is_no_text_is_left_out(verify: Verify, ec_key: ECKey, claims: Claims) -> None:
    assert verify(signed(ec_key, claims | {"name": {"family": "North"}})).name is None


def test_the_name_is_not_in_the_representation(verify: Verify, ec_key: ECKey, claims: Claims) -> None:
    assert "North" not in repr(verify(signed(ec_key, claims)))
