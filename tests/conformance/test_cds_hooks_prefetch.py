"""Prefetch: what was sent is used, what is missing is fetched, and what cannot be had is told.

Spec: CDS Hooks 2.0.1, "Prefetch Template", "FHIR Resource Access"
"""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KEYS = ("patient", "imagingStudies")
SEARCH = "/fhir/ImagingStudy?patient=p1&_sort=-started&_count=20&_include=ImagingStudy:endpoint"
OUTCOME = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "exception"}]}


@pytest.fixture
def served(fhir, make):
    """Return the FHIR server that knows the patient, a study and its endpoint."""
    fhir.answer("/fhir/Patient/p1", make.patient())
    fhir.answer("/fhir/ImagingStudy", make.bundle(make.study(), make.endpoint()))
    fhir.answer("/fhir/Endpoint/pacs", make.endpoint())
    return fhir


def topics(cards):
    return [card["source"]["topic"]["code"] for card in cards]


def without(body, *keys):
    for key in keys:
        body["prefetch"].pop(key)
    return body


def test_a_whole_prefetch_needs_no_fetching(service, make, served):
    assert topics(service.cards(make.body())) == ["finding"]
    assert served.requests == []


@pytest.mark.parametrize(
    ("missing", "asked"),
    [
        (["patient"], {"/fhir/Patient/p1"}),
        (["imagingStudies"], {SEARCH}),
        (KEYS, {"/fhir/Patient/p1", SEARCH}),
    ],
)
def test_a_missing_key_is_fetched_and_no_other(service, make, served, missing, asked):
    assert topics(service.cards(without(make.body(), *missing))) == ["finding"]
    assert set(served.paths) == asked


def test_every_fetch_shows_the_lent_token(service, make, served):
    service.cards(without(make.body(), *KEYS))
    assert {token for _, token in served.requests} == {"Bearer lent-token"}


def test_what_was_fetched_is_audited(service, make, served):
    service.cards(without(make.body(), "patient"))
    (event,) = service.audit("cds_hooks:prefetch:fetched")
    assert event.detail["keys"] == "patient"


@pytest.mark.parametrize(
    "sent", [None, OUTCOME, {"resourceType": "Bundle", "entry": [{"resource": OUTCOME}]}]
)
def test_an_outcome_in_prefetch_is_no_data_but_null_is(service, make, served, sent):
    body = make.body()
    body["prefetch"]["imagingStudies"] = sent
    cards = service.cards(body)
    assert topics(cards) == ([] if sent is None else ["finding"])
    assert len(served.requests) == (0 if sent is None else 1)


def test_a_warning_in_a_bundle_is_no_failure(service, make):
    warning = {
        "resourceType": "OperationOutcome",
        "issue": [{"severity": "warning", "code": "informational"}],
    }
    body = make.body()
    body["prefetch"]["imagingStudies"] = make.bundle(make.study(), make.endpoint(), warning)
    assert topics(service.cards(body)) == ["finding"]


@pytest.mark.parametrize("key", KEYS)
def test_without_authorization_a_missing_key_is_412(service, make, served, key):
    body = without(make.body(), key)
    del body["fhirAuthorization"]
    response = service.call(body)
    assert response.status_code == 412
    assert response.json()["issue"][0]["expression"] == [f"prefetch.{key}"]
    assert served.requests == []


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "how",
    [
        {"body": OUTCOME, "status": 500},
        {"body": OUTCOME, "status": 403},
        {"body": OUTCOME, "status": 401},
        {"body": OUTCOME, "status": 404},
        {"body": OUTCOME},
        {"body": b"<html>"},
        {"body": {"resourceType": "Observation", "id": "p1"}},
        {"body": b"", "status": 302},
    ],
)
def test_a_key_that_cannot_be_fetched_is_412(service, make, served, key, how):
    served.answer({"patient": "/fhir/Patient/p1", "imagingStudies": "/fhir/ImagingStudy"}[key], **how)
    response = service.call(without(make.body(), *KEYS))
    assert response.status_code == 412
    assert response.json()["resourceType"] == "OperationOutcome"
    assert len(service.audit("cds_hooks:request:refused")) == 1


def test_an_unknown_patient_is_told_as_such(service, make, served):
    served.answer("/fhir/Patient/p1", OUTCOME, status=404)
    issue = service.call(without(make.body(), *KEYS)).json()["issue"][0]
    assert issue["details"]["coding"][0]["code"] == "unknown_patient"


@pytest.mark.parametrize("key", KEYS)
def test_a_server_that_hangs_does_not_hang_the_hook(service, make, served, key):
    path = {"patient": "/fhir/Patient/p1", "imagingStudies": "/fhir/ImagingStudy"}[key]
    served.answer(path, {}, delay_s=1.5)
    begun = time.perf_counter()
    response = service.call(without(make.body(), *KEYS), client=service.in_time)
    assert time.perf_counter() - begun < 1.2
    assert response.status_code == 412


def test_keys_are_fetched_side_by_side(service, make, served):
    """Each answer takes more than half of the time for both."""
    served.answer("/fhir/Patient/p1", make.patient(), delay_s=1.2)
    served.answer("/fhir/ImagingStudy", make.bundle(make.study(), make.endpoint()), delay_s=1.2)
    assert service.call(without(make.body(), *KEYS)).status_code == 200


def test_an_endpoint_that_did_not_come_along_is_read(service, make, served):
    body = make.body()
    body["prefetch"]["imagingStudies"] = make.bundle(make.study())
    assert topics(service.cards(body)) == ["finding"]
    assert served.paths == ["/fhir/Endpoint/pacs"]


@pytest.mark.parametrize("how", [{"delay_s": 2.5}, {"status": 500}])
def test_an_endpoint_that_is_late_is_left_to_the_analysis(service, make, served, how):
    body = make.body()
    body["prefetch"]["imagingStudies"] = make.bundle(make.study())
    served.answer("/fhir/Endpoint/pacs", OUTCOME, **how)
    assert topics(service.cards(body)) == ["finding"]
    assert [job.reference.endpoint_ids for job in service.analysis.claimed] == [("pacs",)]


def test_a_late_endpoint_needs_a_token(service, make, served):
    body = make.body()
    body["prefetch"]["imagingStudies"] = make.bundle(make.study())
    del body["fhirAuthorization"]
    assert topics(service.cards(body)) == ["unreachable"]


def test_a_finished_result_needs_no_endpoint(service, make, served):
    service.cards(make.body())
    body = make.body()
    body["prefetch"]["imagingStudies"] = make.bundle(make.study())
    assert topics(service.cards(body)) == ["finding"]
    assert served.requests == []


@pytest.mark.parametrize("members", [{"status": "off"}, {"connectionType": {"code": "hl7-fhir-rest"}}])
def test_an_endpoint_that_has_no_images_is_not_used(service, make, members):
    body = make.body()
    body["prefetch"]["imagingStudies"] = make.bundle(make.study(), make.endpoint(**members))
    assert topics(service.cards(body)) == ["unreachable"]


def test_a_contained_endpoint_is_used(service, make, served):
    study = make.study(contained=[make.endpoint(id="c")], endpoint=[{"reference": "#c"}])
    body = make.body()
    body["prefetch"]["imagingStudies"] = make.bundle(study)
    assert topics(service.cards(body)) == ["finding"]
    assert served.requests == []


def test_a_next_page_on_the_trusted_server_is_followed(service, make, served):
    served.answer("/fhir/page2?x=1", make.bundle(make.study(2)))
    body = make.body()
    next_url = f"{served.base_url}/page2?x=1"
    body["prefetch"]["imagingStudies"] = make.bundle(make.study(1), make.endpoint(), next_url=next_url)
    assert topics(service.cards(body)) == ["finding", "finding"]


@pytest.mark.parametrize(
    "next_url",
    [
        "http://127.0.0.1:1/fhir/page2",
        "https://evil.example/fhir",
        "{base}.evil.example/x",
        "{base}/../page2",
        "{base}//page2",
        "{base}x",
        "file:///etc/passwd",
    ],
)
def test_a_next_page_elsewhere_is_not_followed_and_told(service, make, served, next_url):
    body = make.body()
    url = next_url.format(base=served.base_url)
    body["prefetch"]["imagingStudies"] = make.bundle(make.study(), make.endpoint(), next_url=url)
    assert topics(service.cards(body)) == ["finding", "incomplete"]
    assert served.requests == []


def test_a_page_that_names_itself_ends(service, make, served):
    url = f"{served.base_url}/page2"
    served.answer("/fhir/page2", make.bundle(next_url=url))
    body = make.body()
    body["prefetch"]["imagingStudies"] = make.bundle(make.study(), make.endpoint(), next_url=url)
    assert topics(service.cards(body)) == ["finding", "incomplete"]
    assert len(served.requests) == 2


def test_pages_beyond_what_is_shown_are_not_read(service, make, served):
    studies = [make.study(n) for n in (3, 2, 1)]
    body = make.body()
    body["prefetch"]["imagingStudies"] = make.bundle(
        *studies, make.endpoint(), next_url=f"{served.base_url}/page2"
    )
    assert topics(service.cards(body)) == ["finding"] * 3
    assert served.requests == []


def test_a_study_that_cannot_be_read_is_told(service, make):
    cards = service.cards(make.body(make.study(1), make.study(2, started=5)))
    assert topics(cards) == ["finding", "incomplete"]


@pytest.mark.parametrize("entry", [5, [5], [None], {"resource": {}}])
def test_a_malformed_bundle_is_refused(service, make, entry):
    body = make.body()
    body["prefetch"]["imagingStudies"]["entry"] = entry
    assert service.call(body).status_code == 400


@pytest.mark.parametrize("issue", [5, "x", [5], {}, None])
def test_a_malformed_outcome_is_refused_or_fetched_over(service, make, served, issue):
    body = make.body()
    outcome = {"resourceType": "OperationOutcome", "issue": issue}
    body["prefetch"]["imagingStudies"] = make.bundle(outcome, make.study(), make.endpoint())
    assert service.call(body).status_code in {200, 400}


def test_without_a_token_images_that_need_one_are_not_fetched(service, make):
    extension = {
        "url": "http://hl7.org/fhir/smart-app-launch/StructureDefinition/requires-access-token",
        "valueBoolean": True,
    }
    body = make.body()
    del body["fhirAuthorization"]
    body["prefetch"]["imagingStudies"] = make.bundle(make.study(), make.endpoint(extension=[extension]))
    (card,) = service.cards(body)
    assert topics([card]) == ["unreachable"]
    assert "no\\_access\\_token" in card["detail"]


def test_without_fhir_server_the_prefetch_is_enough(service, make):
    body = make.body()
    del body["fhirAuthorization"], body["fhirServer"]
    assert topics(service.cards(body)) == ["finding"]


def test_a_failure_that_may_pass_is_tried_again(service, make):
    service.analysis.failure = ("upstream_unavailable", True)
    assert topics(service.cards(make.body())) == ["failed"]
    service.analysis.failure = None
    assert topics(service.cards(make.body())) == ["finding"]


STATES = st.sampled_from(["given", "null", "missing", "outcome", "outcome in a bundle"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(patient=STATES, studies=STATES, may_fetch=st.booleans())
def test_what_is_fetched_is_what_was_not_given(service, make, fhir, *, patient, studies, may_fetch):
    """Spec: CDS Hooks 2.0.1, "Prefetch Template": per key, null is data, an OperationOutcome is none."""
    fhir.requests.clear()
    fhir.answer("/fhir/Patient/p1", make.patient())
    fhir.answer("/fhir/ImagingStudy", make.bundle(make.study(), make.endpoint()))
    body = make.body()
    for key, state in (("patient", patient), ("imagingStudies", studies)):
        if state == "missing":
            del body["prefetch"][key]
        elif state != "given":
            bundle = make.bundle(OUTCOME)
            body["prefetch"][key] = {"null": None, "outcome": OUTCOME, "outcome in a bundle": bundle}[state]
    if not may_fetch:
        del body["fhirAuthorization"]
    absent = {
        key
        for key, state in (("patient", patient), ("imagingStudies", studies))
        if state not in {"given", "null"}
    }
    response = service.call(body)
    assert response.status_code == (412 if absent and not may_fetch else 200)
    paths = {"patient": "/fhir/Patient/p1", "imagingStudies": SEARCH}
    assert set(fhir.paths) == ({paths[key] for key in absent} if may_fetch else set())
