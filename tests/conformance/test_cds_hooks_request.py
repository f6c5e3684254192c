"""Calls that cannot be answered: each gets a status, an OperationOutcome that names the field, and an event.

Spec: CDS Hooks 2.0.1, "Calling a CDS Service"; 3.0.0-ballot, "Returning OperationOutcome"
"""

import json
import uuid

import pytest

PATH = "/cds-services/rayhook-patient-view"
ABSENT = object()


def outcome(response):
    told = response.json()
    assert told["resourceType"] == "OperationOutcome"
    return told["issue"][0]


def changed(body, path, value):
    *parents, name = path.split(".")
    target = body
    for parent in parents:
        target = target[parent]
    if value is ABSENT:
        del target[name]
    else:
        target[name] = value
    return body


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hook", ABSENT),
        ("hook", "order-sign"),
        ("hook", "Patient-View"),
        ("hook", None),
        ("hook", 5),
        ("hookInstance", ABSENT),
        ("hookInstance", "not a uuid"),
        ("context", ABSENT),
        ("context", None),
        ("context", []),
        ("context.patientId", ABSENT),
        ("context.patientId", ""),
        ("context.patientId", "../Patient"),
        ("context.patientId", ".."),
        ("context.patientId", "Patient/p1"),
        ("context.patientId", "p1&x=1"),
        ("context.patientId", "p1\n"),
        ("context.patientId", "x" * 65),
        ("context.patientId", 7),
        ("context.userId", ABSENT),
        ("context.userId", "dr"),
        ("context.userId", "Patient/../x"),
        ("context.userId", "Device/d"),
        ("context.encounterId", "a b"),
        ("fhirServer", ABSENT),
        ("fhirServer", ""),
        ("fhirServer", 5),
        ("fhirAuthorization.access_token", ABSENT),
        ("fhirAuthorization.access_token", "a\r\nX-Evil: 1"),
        ("fhirAuthorization.access_token", ""),
        ("fhirAuthorization.token_type", "mac"),
        ("fhirAuthorization.expires_in", "300"),
        ("fhirAuthorization.expires_in", 0),
        ("fhirAuthorization.scope", ABSENT),
        ("fhirAuthorization.subject", ABSENT),
        ("prefetch", []),
        ("prefetch.patient", "text"),
        ("prefetch.patient", {"resourceType": "Observation"}),
        ("prefetch.imagingStudies", {"resourceType": "Patient", "id": "p1"}),
        ("extension", []),
    ],
)
def test_a_member_of_a_wrong_form_is_named(service, make, path, value):
    response = service.call(changed(make.body(), path, value))
    assert response.status_code == 400, response.text
    assert outcome(response)["expression"] == [path]


def test_the_refusal_does_not_repeat_the_value(service, make):
    response = service.call(changed(make.body(), "context.patientId", "secret patient"))
    assert "secret" not in response.text


@pytest.mark.parametrize(
    "members", [{"extension": {"org.example": {"a": 1}}}, {"unknown": 1}, {"prefetch": None}]
)
def test_members_that_are_not_ours_do_no_harm(service, make, fhir, members):
    fhir.answer("/fhir/Patient/p1", make.patient())
    fhir.answer("/fhir/ImagingStudy", make.bundle())
    assert service.call(make.body() | members).status_code == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_json"),
        (b"{", "malformed_json"),
        (b'{"hook":"patient-view","hook":"order-sign"}', "duplicate_member"),
        (b"[" * 2000, "json_too_deep"),
        (b"[]", "invalid_request"),
        (b"null", "invalid_request"),
    ],
)
def test_a_malformed_body_is_refused(service, body, code):
    response = service.call(body)
    assert response.status_code == 400
    assert outcome(response)["details"]["coding"][0]["code"] == code


def test_a_body_over_the_limit_is_refused(service):
    response = service.call(b" " * (1024 * 1024 + 1))
    assert response.status_code == 413
    assert outcome(response)["code"] == "too-long"


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example/fhir",
        "{base}.evil.example",
        "{base}/../x",
        "{base}x",
        "https://other.example.org/fhir",
        "http://169.254.169.254/",
        "{base}//",
    ],
)
def test_a_fhir_server_of_somebody_else_is_refused(service, make, fhir, address):
    response = service.call(make.body(fhirServer=address.format(base=fhir.base_url)))
    assert response.status_code == 400
    assert outcome(response)["expression"] == ["fhirServer"]
    assert fhir.requests == []


def test_a_trailing_slash_of_the_fhir_server_is_forgiven(service, make, fhir):
    assert service.call(make.body(fhirServer=f"{fhir.base_url}/")).status_code == 200


@pytest.mark.parametrize("path", ["/cds-services/unknown", "/cds-services/unknown/feedback"])
def test_an_unknown_service_is_not_found(service, make, path):
    response = service.post(path, make.body())
    assert response.status_code == 404
    assert outcome(response)["code"] == "not-found"


@pytest.mark.parametrize(("method", "path"), [("GET", PATH), ("PUT", PATH), ("POST", "/cds-services")])
def test_another_method_is_not_allowed(service, method, path):
    response = service.client.request(method, path)
    assert response.status_code == 405
    assert outcome(response)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Basic abc"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer a.b.c"},
        {"Authorization": "Bearer " + "x" * 8000},
    ],
)
@pytest.mark.parametrize("path", [PATH, f"{PATH}/feedback"])
def test_without_a_client_jwt_nothing_is_answered(service, make, path, headers):
    response = service.client.post(path, json=make.body(), headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert service.analysis.claimed == []


REFUSED_CLAIMS = {
    "audience_wrong": {"aud": "https://rayhook.example.org/cds-services/rayhook-order-sign"},
    "token_expired": {"exp": 1_700_000_000},
    "issuer_unknown": {"iss": "https://evil.example"},
    "jti_malformed": {"jti": None},
}


@pytest.mark.parametrize(("reason", "claims"), REFUSED_CLAIMS.items())
def test_the_reason_of_a_refusal_is_in_the_audit_only(service, make, reason, claims):
    response = service.call(make.body(), token=service.token(PATH, **claims))
    assert response.status_code == 401
    assert reason not in response.text
    assert [event.detail["reason"] for event in service.audit("cds_hooks:client:refused")] == [reason]


@pytest.mark.parametrize(
    "aud", ["https://rayhook.example.org", f"https://rayhook.example.org{PATH}/", [PATH, "x"]]
)
def test_only_the_exact_audience_will_do(service, make, aud):
    assert service.call(make.body(), token=service.token(PATH, aud=aud)).status_code == 401


def test_a_token_is_good_for_one_call(service, make):
    token = service.token(PATH)
    assert [service.call(make.body(), token=token).status_code for _ in range(2)] == [200, 401]


def test_a_refusal_is_audited_with_its_field(service, make):
    service.call(make.body(hook="order-sign"))
    (event,) = service.audit("cds_hooks:request:refused")
    assert (event.ehr_id, event.detail["field"]) == ("general", "hook")


def test_the_answer_names_the_request(service, make):
    request_id = str(uuid.uuid4())
    response = service.call(make.body(), **{"X-Request-Id": request_id})
    assert response.headers["X-Request-Id"] == request_id
    assert {event.request_id for event in service.audit("cds_hooks:card:returned")} == {request_id}


def test_a_call_leaves_its_events_before_the_answer(service, make):
    service.cards(make.body())
    (called,) = service.audit("cds_hooks:service:called")
    (returned,) = service.audit("cds_hooks:card:returned")
    assert (called.agent, called.patient_id, called.entities) == (
        "https://ehr.example.org",
        "p1",
        ("Practitioner/dr",),
    )
    assert returned.entities[:2] == ("Practitioner/dr", "ImagingStudy/s1")
    assert len(service.audit("inference:job:enqueued")) == 1


def test_the_lent_token_is_nowhere_in_the_clear(service, make, capfd):
    service.cards(make.body())
    files = [path for path in service.folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"lent-token" in path.read_bytes()]
    captured = capfd.readouterr()
    assert "lent-token" not in captured.out + captured.err


def test_the_token_reaches_the_job_and_goes_with_it(service, make):
    service.cards(make.body())
    assert service.analysis.claimed[0].authorization.access_token == "lent-token"


def test_the_answer_is_not_to_be_stored(service, make):
    response = service.call(make.body())
    assert response.headers["Cache-Control"] == "no-store"
    assert json.loads(response.content)["cards"]
