from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc import jwt

from rayhook.deploy.demo.ehr_scopes import LOGIN_SCOPES, READ_SCOPES

ISSUER = "http://127.0.0.1:8101/fhir"
CALLBACK = "http://127.0.0.1:8100/smart/callback"
TOKEN_URL = "http://127.0.0.1:8101/auth/token"
VERIFIER = "v" * 50


@pytest.fixture
def authorize(ehr, pkce):
    """Ask for a code; each test changes what it likes."""

    def authorize(**changed):
        query = {
            "response_type": "code",
            "client_id": "rayhook",
            "redirect_uri": CALLBACK,
            "scope": " ".join((*LOGIN_SCOPES, *READ_SCOPES)),
            "state": "s" * 32,
            "aud": ISSUER,
            "launch": ehr.demo.authorization.new_launch("one", '{"result": "r"}'),
            "code_challenge": pkce()[1],
            "code_challenge_method": "S256",
            "nonce": "n" * 32,
            **changed,
        }
        return ehr.browser.get("/auth/authorize", params=query)

    return authorize


def answer_of(response):
    assert response.status_code == 303
    return {
        name: values[0] for name, values in parse_qs(urlsplit(response.headers["location"]).query).items()
    }


@pytest.fixture
def exchange(ehr, authorize):
    """Trade a code for tokens; each test changes what it likes."""

    def exchange(code=None, **changed):
        form = {
            "grant_type": "authorization_code",
            "code": code or answer_of(authorize())["code"],
            "redirect_uri": CALLBACK,
            "code_verifier": VERIFIER,
            **changed,
        }
        return ehr.browser.post("/auth/token", data=ehr.form(TOKEN_URL, **form))

    return exchange


def test_configuration_names_what_rayhook_needs(ehr):
    found = ehr.browser.get("/fhir/.well-known/smart-configuration").json()
    assert found["issuer"] == ISSUER
    assert found["code_challenge_methods_supported"] == ["S256"]
    assert "authorization_code" in found["grant_types_supported"]


def test_code_comes_with_state_and_issuer(authorize):
    answer = answer_of(authorize())
    assert (answer["state"], answer["iss"]) == ("s" * 32, ISSUER)
    assert len(answer["code"]) > 40


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"aud": "https://evil.example/fhir"}, "invalid_request"),
        ({"launch": "guessed"}, "invalid_request"),
    ],
)
def test_bad_request_for_a_code_is_told_at_the_callback(authorize, changed, error):
    assert answer_of(authorize(**changed))["error"] == error


@pytest.mark.parametrize(
    "changed", [{"client_id": "other"}, {"redirect_uri": "https://evil.example/smart/callback"}]
)
def test_unregistered_client_or_callback_is_never_redirected_to(authorize, changed):
    assert authorize(**changed).status_code == 400


def test_launch_works_once(ehr, authorize):
    handle = ehr.demo.authorization.new_launch("one", None)
    answers = [answer_of(authorize(launch=handle)) for _ in range(2)]
    assert ["code" in answer for answer in answers] == [True, False]


def test_token_is_bound_to_the_launched_patient(exchange):
    answer = exchange().json()
    assert (answer["patient"], answer["appContext"]) == ("one", '{"result": "r"}')


def test_scope_that_is_not_offered_is_not_granted(authorize, exchange):
    code = answer_of(authorize(scope="openid patient/*.cruds patient/Patient.r"))["code"]
    assert exchange(code).json()["scope"] == "openid patient/Patient.r"


def test_id_token_is_signed_and_carries_the_nonce(ehr, exchange):
    claims = jwt.decode(
        exchange().json()["id_token"], ehr.demo.authorization.key, algorithms=["ES384"]
    ).claims
    assert (claims["nonce"], claims["aud"], claims["iss"]) == ("n" * 32, "rayhook", ISSUER)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"code": "guessed"}, "invalid_grant"),
        ({"code_verifier": "w" * 50}, "invalid_grant"),
        ({"code_verifier": ""}, "invalid_grant"),
        ({"redirect_uri": "https://evil.example"}, "invalid_grant"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"client_assertion": "x.y.z"}, "invalid_client"),
        ({"client_assertion_type": ""}, "invalid_client"),
    ],
)
def test_bad_exchange_is_refused(exchange, changed, error):
    assert exchange(**changed).json()["error"] == error


def test_code_used_twice_revokes_its_token(ehr, authorize, exchange):
    code = answer_of(authorize())["code"]
    token = exchange(code).json()["access_token"]
    assert exchange(code).json()["error"] == "invalid_grant"
    assert not ehr.demo.authorization.is_active(token)


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "other"},
        {"sub": "other"},
        {"aud": "https://evil.example"},
        {"exp": 0},
        {"exp": 9e9},
        {"jti": ""},
    ],
)
def test_assertion_that_is_not_right_is_refused(ehr, exchange, changed):
    answer = exchange(client_assertion=ehr.assertion(TOKEN_URL, **changed))
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


def test_assertion_works_once(ehr, exchange):
    assertion = ehr.assertion(TOKEN_URL)
    answers = [exchange(client_assertion=assertion).status_code for _ in range(2)]
    assert answers == [200, 401]


def test_introspection_tells_what_a_token_grants(ehr):
    token = ehr.demo.authorization.issue("one", "patient/Patient.r")
    answer = ehr.browser.post("/auth/introspect", data=ehr.form(TOKEN_URL, token=token)).json()
    assert (answer["active"], answer["patient"], answer["scope"]) == (True, "one", "patient/Patient.r")


def test_introspection_of_an_unknown_token_is_inactive(ehr):
    answer = ehr.browser.post("/auth/introspect", data=ehr.form(TOKEN_URL, token="x")).json()
    assert answer == {"active": False}


def test_revoked_token_is_dead(ehr):
    token = ehr.demo.authorization.issue("one", "patient/Patient.r")
    ehr.browser.post("/auth/revoke", data=ehr.form(TOKEN_URL, token=token))
    assert not ehr.demo.authorization.is_active(token)


def test_token_endpoint_answers_are_not_stored(exchange):
    assert exchange().headers["cache-control"] == "no-store"


@pytest.fixture
def refresh(ehr):
    def refresh(token, **changed):
        form = {"grant_type": "refresh_token", "refresh_token": token, **changed}
        return ehr.browser.post("/auth/token", data=ehr.form(TOKEN_URL, **form))

    return refresh


def test_refresh_gives_another_pair_for_the_same_patient(exchange, refresh):
    first = exchange().json()
    second = refresh(first["refresh_token"]).json()
    assert (second["patient"], second["scope"]) == (first["patient"], first["scope"])
    assert first["access_token"] != second["access_token"]
    assert first["refresh_token"] != second["refresh_token"]


def test_refresh_token_used_twice_ends_everything_of_its_grant(ehr, exchange, refresh):
    first = exchange().json()
    second = refresh(first["refresh_token"]).json()
    assert refresh(first["refresh_token"]).json()["error"] == "invalid_grant"
    assert refresh(second["refresh_token"]).json()["error"] == "invalid_grant"
    assert not ehr.demo.authorization.is_active(second["access_token"])


def test_refresh_may_narrow_the_scope_and_never_widen_it(exchange, refresh):
    token = exchange().json()["refresh_token"]
    narrowed = refresh(token, scope="patient/Patient.r online_access").json()
    assert narrowed["scope"] == "patient/Patient.r online_access"
    assert (
        refresh(narrowed["refresh_token"], scope="patient/Observation.rs").json()["error"] == "invalid_scope"
    )


def test_without_online_access_there_is_no_refresh_token(authorize, exchange):
    assert (
        "refresh_token" not in exchange(answer_of(authorize(scope="openid patient/Patient.r"))["code"]).json()
    )


def test_code_used_twice_ends_its_refresh_token_too(authorize, exchange, refresh):
    code = answer_of(authorize())["code"]
    token = exchange(code).json()["refresh_token"]
    exchange(code)
    assert refresh(token).json()["error"] == "invalid_grant"


def test_revoked_refresh_token_takes_its_access_token_along(ehr, exchange):
    answer = exchange().json()
    ehr.browser.post("/auth/revoke", data=ehr.form(TOKEN_URL, token=answer["refresh_token"]))
    assert not ehr.demo.authorization.is_active(answer["access_token"])


@pytest.fixture
def system(ehr):
    def system(scope="system/Patient.r", **changed):
        form = {"grant_type": "client_credentials", "scope": scope, **changed}
        return ehr.browser.post("/auth/token", data=ehr.form(TOKEN_URL, **form))

    return system


def test_system_gets_the_system_scopes_that_are_offered(system):
    answer = system("system/Patient.r system/Condition.r patient/Patient.r").json()
    assert (answer["scope"], "refresh_token" in answer, "patient" in answer) == (
        "system/Patient.r",
        False,
        False,
    )


@pytest.mark.parametrize("scope", ["", "patient/Patient.r", "system/*.cruds"])
def test_system_without_an_offered_scope_is_refused(system, scope):
    assert system(scope).json()["error"] == "invalid_scope"


@pytest.mark.parametrize(
    "changed", [{"exp": 9e9}, {"exp": 0}, {"aud": "https://evil.example"}, {"jti": ""}, {"sub": "other"}]
)
def test_systems_assertion_is_checked_as_strictly(ehr, system, changed):
    answer = system(client_assertion=ehr.assertion(TOKEN_URL, **changed))
    assert answer.json()["error"] == "invalid_client"


def test_system_reads_any_patient_and_only_by_system_scopes(ehr, system):
    headers = {"Authorization": f"Bearer {system().json()['access_token']}"}
    answers = [
        ehr.browser.get(f"/fhir/{path}", headers=headers).status_code
        for path in ("Patient/one", "ImagingStudy")
    ]
    assert answers == [200, 403]


def test_standalone_launch_lets_a_patient_be_chosen(authorize):
    page = authorize(launch="", scope="openid launch/patient patient/Patient.r")
    assert (page.status_code, "chosen_patient=one" in page.text) == (200, True)


def test_chosen_patient_is_the_tokens(authorize, exchange):
    answer = authorize(launch="", scope="openid launch/patient patient/Patient.r", chosen_patient="one")
    assert exchange(answer_of(answer)["code"]).json()["patient"] == "one"


def test_launch_that_names_its_patient_cannot_be_given_another(authorize, exchange):
    answer = authorize(chosen_patient="two")
    assert exchange(answer_of(answer)["code"]).json()["patient"] == "one"


def test_launched_study_is_in_the_context(ehr, authorize, exchange):
    handle = ehr.demo.authorization.new_launch("one", None, "study-7")
    answer = exchange(answer_of(authorize(launch=handle))["code"]).json()
    assert answer["fhirContext"] == [{"reference": "ImagingStudy/study-7"}]
