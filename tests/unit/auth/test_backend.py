import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import parse_qs

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from rayhook.auth.backend import BackendTokens
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, BackendClient, CDSClient
from rayhook.auth.smart import public_jwks
from rayhook.fhir.errors import EgressDenied, InvalidRequest, UpstreamError, UpstreamRefused
from rayhook.fhir.transport import Transport

from .conftest import ISSUER, Clock, KeyServer

SCOPES = ("system/Patient.r", "system/DiagnosticReport.cru")
WELL_KNOWN = "/fhir/.well-known/smart-configuration"


@pytest.fixture
def ehr(key_server: KeyServer) -> EHR:
    key_server.answer(WELL_KNOWN, {"token_endpoint": f"{key_server.base_url}/token"})
    answer(key_server, "token-1")
    return EHR(
        id="north",
        name="North Hospital",
        fhir_base_urls=(f"{key_server.base_url}/fhir",),
        cds_client=CDSClient(issuer=ISSUER, jwks_url="https://keys.example.org/jwks.json"),
        backend=BackendClient(client_id="rayhook", scopes=SCOPES),
    )


def answer(server: KeyServer, token: str, **changed: object) -> None:
    body = {"access_token": token, "token_type": "bearer", "expires_in": 300, "scope": " ".join(SCOPES)}
    server.answer("/token", body | changed)


@pytest.fixture
def issued() -> list[str]:
    return []


@pytest.fixture
def tokens(transport: Transport, keyring: Keyring, clock: Clock, issued: list[str]) -> BackendTokens:
    return BackendTokens(
        transport, keyring, issued=lambda ehr, scopes: issued.append(f"{ehr.id} {scopes}"), clock=clock
    )


def form_of(server: KeyServer) -> dict[str, str]:
    content = next(body for method, path, body in server.requests if (method, path) == ("POST", "/token"))
    return {name: values[0] for name, values in parse_qs(content.decode()).items()}


def test_the_request_names_the_grant_and_the_registered_scopes(tokens, ehr, key_server):
    tokens.token(ehr)
    form = form_of(key_server)
    assert (form["grant_type"], form["scope"]) == ("client_credentials", " ".join(SCOPES))
    assert "client_id" not in form


def test_the_request_is_signed_for_the_token_endpoint(tokens, ehr, key_server, keyring):
    tokens.token(ehr)
    keys = KeySet.import_key_set(public_jwks(keyring))
    claims = jwt.decode(form_of(key_server)["client_assertion"], keys, algorithms=["ES384"]).claims
    assert claims["aud"] == f"{key_server.base_url}/token"
    assert 0 < claims["exp"] - claims["iat"] <= 300


def test_the_jwk_sets_address_is_named_where_the_ehr_wants_it(tokens, ehr, key_server, keyring):
    tokens.token(replace(ehr, backend=replace(ehr.backend, jku="https://rayhook.example/jwks")))
    keys = KeySet.import_key_set(public_jwks(keyring))
    header = jwt.decode(form_of(key_server)["client_assertion"], keys, algorithms=["ES384"]).header
    assert header["jku"] == "https://rayhook.example/jwks"


def test_a_token_is_used_until_it_has_half_a_minute_left(tokens, ehr, key_server, clock):
    tokens.token(ehr)
    clock.advance(269)
    tokens.token(ehr)
    clock.advance(2)
    answer(key_server, "token-2")
    assert tokens.token(ehr).access_token == "token-2"
    assert key_server.count("/token") == 2


def test_each_set_of_scopes_has_a_token_of_its_own(tokens, ehr, key_server):
    tokens.token(ehr)
    tokens.token(replace(ehr, backend=replace(ehr.backend, scopes=SCOPES[:1])))
    assert key_server.count("/token") == 2


def test_of_many_who_ask_at_once_one_asks_the_ehr(tokens, ehr, key_server):
    key_server.delay_s = 0.1
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: tokens.token(ehr).access_token, range(8)))
    assert (set(found), key_server.count("/token")) == ({"token-1"}, 1)


def test_a_rejected_token_is_replaced_once_for_all_who_had_it(tokens, ehr, key_server):
    rejected = tokens.token(ehr).access_token
    answer(key_server, "token-2")
    assert [tokens.token(ehr, rejected=rejected).access_token for _ in range(3)] == ["token-2"] * 3
    assert key_server.count("/token") == 2


def test_every_issued_token_is_told_before_it_is_used(tokens, ehr, issued):
    tokens.token(ehr)
    assert issued == ["north system/DiagnosticReport.cru system/Patient.r"]


def test_a_token_that_cannot_be_told_is_not_used(transport, keyring, ehr, clock):
    def down(*_: object) -> None:
        raise RuntimeError("the audit cannot be written")

    tokens = BackendTokens(transport, keyring, issued=down, clock=clock)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            tokens.token(ehr)


def test_a_refusal_has_its_code(tokens, ehr, key_server):
    key_server.answer("/token", {"error": "invalid_scope"}, status=400)
    with pytest.raises(UpstreamRefused) as refusal:
        tokens.token(ehr)
    assert refusal.value.code == "oauth_invalid_scope"


def test_a_refused_request_is_made_anew_the_next_time(tokens, ehr, key_server):
    key_server.answer("/token", {"error": "invalid_client"}, status=401)
    with pytest.raises(UpstreamRefused):
        tokens.token(ehr)
    answer(key_server, "token-1")
    assert tokens.token(ehr).access_token == "token-1"


def test_an_answer_without_scope_grants_what_was_asked_for(tokens, ehr, key_server):
    answer(key_server, "token-1", scope=None)
    key_server.answer("/token", {"access_token": "t", "token_type": "bearer"})
    assert tokens.token(ehr).scopes.permits("system", "DiagnosticReport", "c")


def test_a_token_endpoint_elsewhere_is_not_asked(tokens, ehr, key_server):
    key_server.answer(WELL_KNOWN, {"token_endpoint": "https://evil.example/token"})
    with pytest.raises(UpstreamError):
        tokens.token(ehr)


def test_a_server_without_the_grant_is_not_asked(tokens, ehr, key_server):
    document = {
        "token_endpoint": f"{key_server.base_url}/token",
        "grant_types_supported": ["authorization_code"],
    }
    key_server.answer(WELL_KNOWN, document)
    with pytest.raises(UpstreamError) as refusal:
        tokens.token(ehr)
    assert refusal.value.expression == "grant_types_supported"


def test_an_ehr_without_a_backend_client_is_not_asked(tokens, ehr):
    with pytest.raises(InvalidRequest):
        tokens.token(replace(ehr, backend=None))


def test_an_unregistered_origin_is_not_called(tokens, ehr):
    with pytest.raises(EgressDenied):
        tokens.token(replace(ehr, fhir_base_urls=("http://192.0.2.1/fhir",)))


def test_a_slow_ehr_holds_up_only_those_who_need_it(tokens, ehr, key_server):
    other = replace(ehr, id="south")
    tokens.token(other)
    key_server.delay_s = 0.5
    slow = threading.Thread(target=tokens.token, args=(ehr,))
    slow.start()
    begun = time.monotonic()
    tokens.token(other)
    took_s = time.monotonic() - begun
    slow.join()
    assert took_s < 0.4
