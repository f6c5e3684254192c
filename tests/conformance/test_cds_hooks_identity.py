"""Token, context, prefetch, studies and orders have to be of one patient."""

import pytest


def prefetched_patient(body, _make):
    body["prefetch"]["patient"]["id"] = "p2"


def prefetched_patient_without_id(body, _make):
    del body["prefetch"]["patient"]["id"]


def token(body, _make):
    body["fhirAuthorization"]["patient"] = "p2"


def subject(reference):
    def change(body, make):
        body["prefetch"]["imagingStudies"] = make.bundle(make.study(1), make.study(2, subject=reference))

    return change


CONFLICTS = {
    "prefetch.patient": prefetched_patient,
    "prefetch.patient without id": prefetched_patient_without_id,
    "token": token,
    "study of another": subject({"reference": "Patient/p2"}),
    "study of another server": subject({"reference": "https://evil.example/fhir/Patient/p1"}),
    "study of a group": subject({"reference": "Group/p1"}),
    "study without reference": subject({"display": "Somebody"}),
    "study with a malformed subject": subject("Patient/p1"),
    "study without subject": subject(None),
}


@pytest.mark.parametrize("conflict", CONFLICTS.values(), ids=CONFLICTS)
def test_a_conflict_is_refused_and_audited(service, make, conflict):
    body = make.body()
    conflict(body, make)
    response = service.call(body)
    assert response.status_code == 422
    assert response.json()["issue"][0]["details"]["coding"][0]["code"] == "identity_conflict"
    (event,) = service.audit("cds_hooks:request:refused")
    assert (event.patient_id, event.detail["reason"]) == ("p1", "identity_conflict")
    assert service.analysis.claimed == []


def test_a_fetched_patient_has_to_be_the_one_asked_for(service, make, fhir):
    fhir.answer("/fhir/Patient/p1", make.patient("p2"))
    body = make.body()
    del body["prefetch"]["patient"]
    assert service.call(body).status_code == 422


def test_an_absolute_reference_to_the_same_server_is_the_same_patient(service, make, fhir):
    study = make.study(subject={"reference": f"{fhir.base_url}/Patient/p1"})
    assert service.call(make.body(study)).status_code == 200


def test_a_draft_order_for_another_is_refused(service, make):
    body = make.order_sign(orders=(make.order(subject={"reference": "Patient/p2"}),))
    assert service.call(body, service="rayhook-order-sign").status_code == 422


def test_results_of_another_hospitals_patient_of_the_same_id_are_not_shown(service, make):
    service.cards(make.body())
    body = make.body()
    del body["fhirServer"], body["fhirAuthorization"]
    path = "/cds-services/rayhook-patient-view"
    (card,) = service.cards(body, token=service.other(path))
    assert card["source"]["topic"]["code"] == "unreachable"
