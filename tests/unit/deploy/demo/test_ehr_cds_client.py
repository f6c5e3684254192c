import pytest
from joserfc import jwt

TEMPLATES = {
    "patient": "Patient/{{context.patientId}}",
    "imagingStudies": "ImagingStudy?patient={{context.patientId}}&_sort=-started&_count=20",
}
CONTEXT = {"userId": "Practitioner/demo-clinician", "patientId": "one"}
URL = "http://127.0.0.1:8100/cds-services/rayhook-patient-view"


@pytest.fixture
def request_of(ehr):
    return lambda: ehr.demo.client.request(TEMPLATES, "patient-view", CONTEXT)


def test_assertion_is_a_short_es384_jwt_for_one_url(ehr):
    token = jwt.decode(ehr.demo.client.assertion(URL), ehr.demo.client.key, algorithms=["ES384"])
    assert token.header["typ"] == "JWT"
    assert token.claims["aud"] == URL
    assert token.claims["exp"] - token.claims["iat"] == 60


def test_no_two_assertions_share_a_jti(ehr):
    tokens = [
        jwt.decode(ehr.demo.client.assertion(URL), ehr.demo.client.key, algorithms=["ES384"])
        for _ in range(20)
    ]
    assert len({token.claims["jti"] for token in tokens}) == 20


def test_published_key_is_the_signing_key_without_its_secret(ehr):
    key = ehr.browser.get("/cds-client/jwks.json").json()["keys"][0]
    assert key["kid"] == ehr.demo.client.key.kid
    assert "d" not in key


def test_prefetch_is_filled_from_the_store(request_of):
    prefetch = request_of()["prefetch"]
    assert prefetch["patient"]["id"] == "one"
    assert [entry["resource"]["resourceType"] for entry in prefetch["imagingStudies"]["entry"]] == [
        "ImagingStudy",
        "ImagingStudy",
    ]


def test_token_is_bound_to_the_patient_and_may_write(ehr, request_of):
    authorization = request_of()["fhirAuthorization"]
    granted = ehr.demo.authorization.find(authorization["access_token"])
    assert granted.patient_id == authorization["patient"] == "one"
    assert "patient/DiagnosticReport.c" in authorization["scope"].split()


def test_fault_no_prefetch_leaves_it_out(ehr, request_of):
    ehr.demo.faults.no_prefetch = True
    assert "prefetch" not in request_of()


def test_fault_no_write_scope_grants_reading_only(ehr, request_of):
    ehr.demo.faults.no_write_scope = True
    assert not [scope for scope in request_of()["fhirAuthorization"]["scope"].split() if scope.endswith(".c")]


def test_fault_wrong_patient_reaches_the_prefetch(ehr, request_of):
    ehr.demo.faults.wrong_patient = True
    study = request_of()["prefetch"]["imagingStudies"]["entry"][0]["resource"]
    assert study["subject"]["reference"] == "Patient/somebody-else"


def test_service_that_does_not_answer_is_an_error_not_an_empty_list(ehr):
    answer = ehr.demo.client.patient_view("one")
    assert answer.error
    assert answer.cards == ()
