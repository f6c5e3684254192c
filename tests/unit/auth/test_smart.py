import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from rayhook.auth.keys import Keyring, SigningAlgorithm
from rayhook.auth.principal import SMARTUser
from rayhook.auth.registry import EHR, CDSClient, SMARTClient
from rayhook.auth.smart import (
    SMARTConfiguration,
    TokenResponse,
    client_assertion,
    discover,
    exchange_code,
    introspect,
    new_authorization_request,
    public_jwks,
    revoke,
)
from rayhook.fhir.errors import (
    EgressDenied,
    InvalidRequest,
    Unauthenticated,
    UpstreamError,
    UpstreamRefused,
    UpstreamUnavailable,
)
from rayhook.fhir.transport import Transport

from .conftest import ISSUER, Clock, KeyServer

WELL_KNOWN = "/fhir/.well-known/smart-configuration"
REDIRECT_URI = "https://rayhook.example.org/smart/callback"
TOKEN_ENDPOINT = "/auth/token"
Document = dict[str, Any]
Offer = Callable[..., SMARTConfiguration]


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
        smart=SMARTClient(
            client_id="rayhook", issuer=base, scopes=("openid", "patient/Patient.r"), introspection=True
        ),
    )


@pytest.fixture
def document(key_server: KeyServer, base: str) -> Document:
    origin = key_server.base_url
    return {
        "issuer": base,
        "jwks_uri": f"{origin}/auth/jwks.json",
        "authorization_endpoint": f"{origin}/auth/authorize",
        "token_endpoint": f"{origin}{TOKEN_ENDPOINT}",
        "introspection_endpoint": f"{origin}/auth/introspect",
        "revocation_endpoint": f"{origin}/auth/revoke",
        "grant_types_supported": ["authorization_code"],
        "code_challenge_methods_supported": ["S256"],
        "capabilities": ["launch-ehr", "permission-v2"],
    }


@pytest.fixture
def configuration(
    transport: Transport, key_server: KeyServer, ehr: EHR, document: Document
) -> SMARTConfiguration:
    key_server.answer(WELL_KNOWN, document)
    return discover(transport, ehr)


@dataclass(frozen=True)
class Parts:
    """All that a call to the authorization server needs, and the server itself."""

    transport: Transport
    keyring: Keyring
    ehr: EHR
    configuration: SMARTConfiguration
    server: KeyServer
    clock: Clock


@pytest.fixture
def parts(transport: Transport, keyring: Keyring, ehr: EHR, request: pytest.FixtureRequest) -> Parts:
    configuration, server, clock = map(request.getfixturevalue, ("configuration", "key_server", "clock"))
    return Parts(transport, keyring, ehr, configuration, server, clock)


def _claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


def smart(ehr: EHR, **changes: Any) -> EHR:
    assert ehr.smart is not None
    return replace(ehr, smart=replace(ehr.smart, **changes))


class TestDiscovery:
    @pytest.fixture
    def offer(self, transport: Transport, key_server: KeyServer, document: Document) -> Offer:
        def call(ehr: EHR, **changes: object) -> SMARTConfiguration:
            key_server.answer(WELL_KNOWN, document | changes)
            return discover(transport, ehr)

        return call

    def test_what_the_ehr_offers(self, configuration: SMARTConfiguration, document: Document) -> None:
        assert configuration.token_endpoint == document["token_endpoint"]
        assert configuration.capabilities == {"launch-ehr", "permission-v2"}

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("issuer", "https://another.example"),
            ("issuer", None),
            ("token_endpoint", None),
            ("token_endpoint", 7),
            ("token_endpoint", "https://another.example/token"),
            ("token_endpoint", "//another.example/token"),
            ("token_endpoint", "file:///etc/passwd"),
            ("authorization_endpoint", None),
            ("authorization_endpoint", "https://another.example/authorize"),
            ("authorization_endpoint", "javascript:alert(1)"),
            ("jwks_uri", "https://another.example/jwks.json"),
            ("introspection_endpoint", "https://another.example/introspect"),
            ("grant_types_supported", ["implicit", "password"]),
            ("grant_types_supported", "authorization_code"),
            ("code_challenge_methods_supported", None),
            ("code_challenge_methods_supported", ["plain"]),
            ("code_challenge_methods_supported", ["S256", "plain"]),
            ("code_challenge_methods_supported", "S256"),
            ("capabilities", None),
            ("token_endpoint_auth_signing_alg_values_supported", ["HS256", "RS256"]),
        ],
    )
    def test_refused_naming_the_member(self, offer: Offer, ehr: EHR, name: str, value: object) -> None:
        with pytest.raises(UpstreamError) as refusal:
            offer(ehr, **{name: value})
        assert refusal.value.expression == name

    @pytest.mark.parametrize(
        ("offered", "chosen"),
        [(["ES384", "RS384"], "ES384"), (["RS384", "RS256"], "RS384"), (["ES384"], "ES384")],
    )
    def test_the_assertion_s_algorithm_is_one_that_is_offered(
        self, offer: Offer, ehr: EHR, offered: list[str], chosen: str
    ) -> None:
        found = offer(ehr, token_endpoint_auth_signing_alg_values_supported=offered)
        assert found.assertion_algorithm == chosen

    def test_endpoints_relative_to_the_fhir_base(self, offer: Offer, ehr: EHR, document: Document) -> None:
        assert offer(ehr, token_endpoint="../auth/token").token_endpoint == document["token_endpoint"]

    def test_endpoints_of_a_registered_authorization_server(self, offer: Offer, ehr: EHR) -> None:
        url = "https://login.example/authorize"
        found = offer(smart(ehr, origins=("https://login.example",)), authorization_endpoint=url)
        assert found.authorization_endpoint == url

    def test_pkce_that_is_not_advertised_may_be_tolerated(
        self, offer: Offer, ehr: EHR, document: Document
    ) -> None:
        del document["code_challenge_methods_supported"]
        assert offer(smart(ehr, pkce_advertised=False))

    @pytest.mark.parametrize("body", [b"", b"[]", b"not json", b"[" * 100_000])
    def test_what_is_no_document(
        self, transport: Transport, key_server: KeyServer, ehr: EHR, body: bytes
    ) -> None:
        key_server.answers[WELL_KNOWN] = (200, body)
        with pytest.raises(UpstreamError):
            discover(transport, ehr)

    def test_no_document(self, transport: Transport, ehr: EHR) -> None:
        with pytest.raises(UpstreamError) as refusal:
            discover(transport, ehr)
        assert refusal.value.code == "smart_configuration_unavailable"

    def test_a_base_of_another_ehr_is_not_asked(
        self, transport: Transport, key_server: KeyServer, ehr: EHR
    ) -> None:
        with pytest.raises(InvalidRequest):
            discover(transport, ehr, fhir_base_url=f"{key_server.base_url}/other")
        assert key_server.requests == []

    def test_an_ehr_without_a_smart_client(self, transport: Transport, ehr: EHR) -> None:
        with pytest.raises(InvalidRequest):
            discover(transport, replace(ehr, smart=None))


class TestAuthorizationRequest:
    @pytest.fixture
    def query(self, ehr: EHR, configuration: SMARTConfiguration, base: str) -> dict[str, str]:
        request = new_authorization_request(
            ehr, configuration, fhir_base_url=base, redirect_uri=REDIRECT_URI, launch="a b&c"
        )
        return dict(parse_qsl(urlsplit(request.url).query))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("response_type", "code"),
            ("client_id", "rayhook"),
            ("redirect_uri", REDIRECT_URI),
            ("code_challenge_method", "S256"),
            ("launch", "a b&c"),
            ("scope", "openid patient/Patient.r launch"),
        ],
    )
    def test_parameters(self, query: dict[str, str], name: str, value: str) -> None:
        assert query[name] == value

    def test_the_audience_is_the_fhir_base(self, query: dict[str, str], base: str) -> None:
        assert query["aud"] == base

    def test_the_challenge_is_the_verifier_s_digest(
        self, ehr: EHR, configuration: SMARTConfiguration, base: str
    ) -> None:
        request = new_authorization_request(
            ehr, configuration, fhir_base_url=base, redirect_uri=REDIRECT_URI, launch=None
        )
        digest = hashlib.sha256(request.code_verifier.encode()).digest()
        challenge = parse_qs(urlsplit(request.url).query)["code_challenge"]
        assert challenge == [urlsafe_b64encode(digest).rstrip(b"=").decode()]

    def test_a_standalone_launch_asks_for_a_patient(
        self, ehr: EHR, configuration: SMARTConfiguration, base: str
    ) -> None:
        request = new_authorization_request(
            ehr, configuration, fhir_base_url=base, redirect_uri=REDIRECT_URI, launch=None
        )
        assert "launch/patient" in parse_qs(urlsplit(request.url).query)["scope"][0].split()
        assert "launch=" not in request.url

    def test_no_secret_is_used_twice(self, ehr: EHR, configuration: SMARTConfiguration, base: str) -> None:
        requests = [
            new_authorization_request(
                ehr, configuration, fhir_base_url=base, redirect_uri=REDIRECT_URI, launch="1"
            )
            for _ in range(1000)
        ]
        secrets = {s for request in requests for s in (request.state, request.nonce, request.code_verifier)}
        assert len(secrets) == 3000
        assert min(map(len, secrets)) >= 43

    def test_its_representation_hides_them(
        self, ehr: EHR, configuration: SMARTConfiguration, base: str
    ) -> None:
        request = new_authorization_request(
            ehr, configuration, fhir_base_url=base, redirect_uri=REDIRECT_URI, launch="1"
        )
        assert request.code_verifier not in repr(request)
        assert request.state not in repr(request)


class TestClientAssertion:
    @pytest.mark.parametrize("algorithm", ["ES384", "RS384"])
    def test_our_published_keys_verify_it(
        self, keyring: Keyring, clock: Clock, algorithm: SigningAlgorithm
    ) -> None:
        assertion = client_assertion(
            keyring, client_id="rayhook", token_endpoint="https://a/token", algorithm=algorithm, clock=clock
        )
        token = jwt.decode(assertion, KeySet.import_key_set(public_jwks(keyring)), algorithms=[algorithm])
        claims = token.claims
        assert (claims["iss"], claims["sub"], claims["aud"]) == ("rayhook", "rayhook", "https://a/token")
        assert token.header["typ"] == "JWT"

    def test_it_lives_less_than_five_minutes(self, keyring: Keyring, clock: Clock) -> None:
        claims = _claims(client_assertion(keyring, client_id="a", token_endpoint="b", clock=clock))
        assert 0 < claims["exp"] - clock() < 300

    def test_no_two_share_an_id(self, keyring: Keyring) -> None:
        ids = {
            _claims(client_assertion(keyring, client_id="a", token_endpoint="b"))["jti"] for _ in range(200)
        }
        assert len(ids) == 200

    def test_the_published_keys_hold_nothing_private(self, keyring: Keyring) -> None:
        members = {name for key in public_jwks(keyring)["keys"] for name in key}
        assert not members & {"d", "p", "q", "dp", "dq", "qi", "k"}

    def test_the_published_keys_say_what_they_are_for(self, keyring: Keyring) -> None:
        keys = public_jwks(keyring)["keys"]
        assert [(key["alg"], key["use"]) for key in keys] == [("ES384", "sig")] * 2 + [("RS384", "sig")] * 2
        assert len({key["kid"] for key in keys}) == 4


class TestExchange:
    @pytest.fixture
    def answer(self) -> Document:
        return {
            "access_token": "token-canary",
            "token_type": "Bearer",
            "expires_in": 60,
            "scope": "openid patient/Patient.r",
            "patient": "p1",
            "id_token": "a.b.c",
            "appContext": "{}",
            "need_patient_banner": False,
            "fhirContext": [
                {"reference": "ImagingStudy/1"},
                {"reference": "ImagingStudy/2", "role": "launch"},
                {"reference": "Patient/9", "role": "other"},
                {"canonical": "http://x"},
            ],
        }

    def exchange(self, parts: Parts, answer: object, *, status: int = 200) -> TokenResponse:
        parts.server.answer(TOKEN_ENDPOINT, answer, status=status)
        return exchange_code(
            parts.transport,
            parts.keyring,
            parts.ehr,
            parts.configuration,
            code="code-1",
            redirect_uri=REDIRECT_URI,
            code_verifier="verifier-1",
            clock=parts.clock,
        )

    def test_what_was_granted(self, parts: Parts, answer: Document) -> None:
        token = self.exchange(parts, answer)
        assert (token.access_token, token.patient_id, token.id_token) == ("token-canary", "p1", "a.b.c")
        assert token.expires_at == parts.clock() + 60
        assert token.scopes.permits("patient", "Patient", "r")
        assert token.context.study_ids("https://fhir.example.org") == {"1", "2"}
        assert not token.need_patient_banner
        assert token.app_context == "{}"

    def test_the_form_that_was_sent(self, parts: Parts, answer: Document) -> None:
        self.exchange(parts, answer)
        form = dict(parse_qsl(parts.server.requests[-1][2].decode()))
        assertion = form.pop("client_assertion")
        assert form == {
            "grant_type": "authorization_code",
            "code": "code-1",
            "redirect_uri": REDIRECT_URI,
            "code_verifier": "verifier-1",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        }
        assert _claims(assertion)["aud"] == parts.configuration.token_endpoint

    @pytest.mark.parametrize("life", [None, 0, -1, "60", True, 10**9, [60]])
    def test_a_life_that_makes_no_sense_becomes_five_minutes(
        self, parts: Parts, answer: Document, life: object
    ) -> None:
        assert self.exchange(parts, answer | {"expires_in": life}).expires_at == parts.clock() + 300

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("access_token", None),
            ("access_token", ""),
            ("access_token", 7),
            ("token_type", "mac"),
            ("token_type", None),
            ("scope", None),
            ("scope", ["openid"]),
            ("patient", "../Patient/2"),
            ("patient", 7),
            ("id_token", {}),
        ],
    )
    def test_an_answer_that_cannot_be_used(
        self, parts: Parts, answer: Document, name: str, value: object
    ) -> None:
        with pytest.raises(UpstreamError) as refusal:
            self.exchange(parts, answer | {name: value})
        assert refusal.value.expression == name

    @pytest.mark.parametrize("answer", [[], "text", None])
    def test_an_answer_that_is_no_object(self, parts: Parts, answer: object) -> None:
        with pytest.raises(UpstreamError):
            self.exchange(parts, answer)

    def test_a_code_that_is_refused(self, parts: Parts) -> None:
        with pytest.raises(UpstreamRefused) as refusal:
            self.exchange(parts, {"error": "invalid_grant", "error_description": "<b>p1</b>"}, status=400)
        assert refusal.value.code == "oauth_invalid_grant"
        assert "<b>" not in refusal.value.message

    @pytest.mark.parametrize("error", ["<script>", 7, None, "x" * 100])
    def test_an_error_code_that_is_none(self, parts: Parts, error: object) -> None:
        with pytest.raises(UpstreamRefused) as refusal:
            self.exchange(parts, {"error": error}, status=400)
        assert refusal.value.code == "oauth_refused"

    def test_a_server_that_fails(self, parts: Parts) -> None:
        with pytest.raises(UpstreamUnavailable):
            self.exchange(parts, {}, status=500)

    def test_a_redirect_is_not_followed(self, parts: Parts) -> None:
        with pytest.raises(UpstreamRefused):
            self.exchange(parts, {}, status=307)

    def test_the_code_goes_to_registered_origins_only(self, parts: Parts, answer: Document) -> None:
        elsewhere = replace(parts.configuration, token_endpoint="https://another.example/token")
        with pytest.raises(EgressDenied):
            self.exchange(replace(parts, configuration=elsewhere), answer)

    def test_its_representation_hides_the_token(self, parts: Parts, answer: Document) -> None:
        assert "canary" not in repr(self.exchange(parts, answer))


class TestIntrospection:
    @pytest.fixture
    def answer(self, clock: Clock, base: str) -> Document:
        return {
            "active": True,
            "scope": "patient/*.rs",
            "client_id": "another-app",
            "exp": clock() + 60,
            "patient": "p1",
            "fhirUser": f"{base}/Practitioner/1",
        }

    def ask(self, parts: Parts, answer: object, *, status: int = 200) -> SMARTUser:
        parts.server.answer("/auth/introspect", answer, status=status)
        return introspect(
            parts.transport, parts.keyring, parts.ehr, parts.configuration, token="t 1", clock=parts.clock
        )

    def test_an_active_token(self, parts: Parts, answer: Document) -> None:
        user = self.ask(parts, answer)
        assert (user.client_id, user.patient_id, user.fhir_user) == ("another-app", "p1", "Practitioner/1")
        assert user.scopes.permits("patient", "Observation", "rs")

    def test_the_token_goes_in_the_body(self, parts: Parts, answer: Document) -> None:
        self.ask(parts, answer)
        assert dict(parse_qsl(parts.server.requests[-1][2].decode()))["token"] == "t 1"

    @pytest.mark.parametrize("active", [False, None, "true", 1])
    def test_a_token_that_is_not_active(self, parts: Parts, answer: Document, active: object) -> None:
        with pytest.raises(Unauthenticated) as refusal:
            self.ask(parts, answer | {"active": active})
        assert refusal.value.code == "token_inactive"

    def test_a_token_that_has_expired(self, parts: Parts, answer: Document) -> None:
        with pytest.raises(Unauthenticated):
            self.ask(parts, answer | {"exp": parts.clock()})

    @pytest.mark.parametrize("name", ["scope", "client_id", "exp"])
    def test_an_answer_without_what_it_must_hold(self, parts: Parts, answer: Document, name: str) -> None:
        del answer[name]
        with pytest.raises(UpstreamError):
            self.ask(parts, answer)

    @pytest.mark.parametrize("expires", ["soon", True, float("nan"), float("inf")])
    def test_an_end_that_is_no_number(self, parts: Parts, answer: Document, expires: object) -> None:
        with pytest.raises(UpstreamError):
            self.ask(parts, answer | {"exp": expires})

    @pytest.mark.parametrize("status", [400, 401, 404, 500, 302])
    def test_an_issuer_that_cannot_tell(self, parts: Parts, answer: Document, status: int) -> None:
        with pytest.raises(UpstreamError):
            self.ask(parts, answer, status=status)

    def test_an_ehr_registered_without_it_is_not_asked(self, parts: Parts, answer: Document) -> None:
        with pytest.raises(Unauthenticated):
            self.ask(replace(parts, ehr=smart(parts.ehr, introspection=False)), answer)
        assert parts.server.count("/auth/introspect") == 0


class TestRevocation:
    def revoke(self, parts: Parts) -> bool:
        return revoke(
            parts.transport, parts.keyring, parts.ehr, parts.configuration, token="t1", clock=parts.clock
        )

    def test_told_to_the_ehr(self, parts: Parts) -> None:
        parts.server.answer("/auth/revoke", {})
        assert self.revoke(parts)
        assert dict(parse_qsl(parts.server.requests[-1][2].decode()))["token"] == "t1"

    def test_an_ehr_that_offers_none(self, parts: Parts) -> None:
        bare = replace(parts, configuration=replace(parts.configuration, revocation_endpoint=None))
        assert not self.revoke(bare)
