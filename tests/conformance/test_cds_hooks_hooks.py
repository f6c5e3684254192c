"""Every hook that discovery lists. Spec: CDS Hooks Library 1.0.1; Rayhook's own hook."""

import uuid

import pytest

from tests.conformance.conftest import OWN


def topics(cards):
    return [card["source"]["topic"]["code"] for card in cards]


def service_of(hook):
    return "rayhook-patient-view" if hook == OWN else f"rayhook-{hook}"


HOOKS = [
    "patient-view",
    "encounter-start",
    "order-select",
    "order-sign",
    "order-dispatch",
    "appointment-book",
    OWN,
]
REQUIRED = {
    "patient-view": ["userId", "patientId"],
    "encounter-start": ["userId", "patientId", "encounterId"],
    "order-select": ["userId", "patientId", "selections", "draftOrders"],
    "order-sign": ["userId", "patientId", "draftOrders"],
    "order-dispatch": ["patientId", "dispatchedOrders", "performer"],
    "appointment-book": ["userId", "patientId", "appointments"],
    OWN: ["userId", "patientId", "imagingStudyId"],
}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_finding_is_told(service, request_of, hook):
    assert "finding" in topics(service.cards(request_of(hook), service=service_of(hook)))


@pytest.mark.parametrize(("hook", "field"), [(h, f) for h, fields in REQUIRED.items() for f in fields])
def test_a_required_field_of_the_context_is_named(service, request_of, hook, field):
    body = request_of(hook)
    body["context"].pop(field, None)
    response = service.call(body, service=service_of(hook))
    assert response.status_code == 400
    assert response.json()["issue"][0]["expression"] == [f"context.{field}"]


@pytest.mark.parametrize("hook", HOOKS)
def test_another_hook_than_the_service_lists_is_refused(service, make, request_of, hook):
    body = request_of(hook) | {"hook": "medication-prescribe"}
    response = service.call(body, service=service_of(hook))
    assert response.status_code == 400
    assert response.json()["issue"][0]["expression"] == ["hook"]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_study_of_another_patient_is_refused_by_every_hook(service, make, request_of, hook):
    body = request_of(hook, make.study(subject={"reference": "Patient/p2"}))
    assert service.call(body, service=service_of(hook)).status_code == 422


def test_the_audit_names_the_hook(service, request_of):
    service.cards(request_of("encounter-start"), service="rayhook-encounter-start")
    (event,) = service.audit("cds_hooks:service:called")
    assert event.detail["hook"] == "encounter-start"


class TestOrderSelect:
    @pytest.mark.parametrize("selections", [[], ["ServiceRequest/o2"], ["MedicationRequest/o1"]])
    def test_only_what_was_selected_counts(self, service, request_of, fhir, selections):
        body = request_of("order-select", selections=selections) | {"prefetch": {}}
        assert service.cards(body, service="rayhook-order-select") == []
        assert fhir.requests == []

    @pytest.mark.parametrize(
        "selections", ["ServiceRequest/o1", [1], ["o1"], ["../o1"], ["ServiceRequest/../x"], None]
    )
    def test_selections_of_a_wrong_form_are_refused(self, service, request_of, selections):
        response = service.call(
            request_of("order-select", selections=selections), service="rayhook-order-select"
        )
        assert response.status_code == 400
        assert response.json()["issue"][0]["expression"][0].startswith("context.selections")


class TestOrderDispatch:
    SERVICE = "rayhook-order-dispatch"

    def test_an_order_that_did_not_come_along_is_read(self, service, make, request_of, fhir):
        body = request_of("order-dispatch")
        body["prefetch"]["serviceRequests"] = None
        fhir.answer("/fhir/ServiceRequest/o1", make.order(id="o1"))
        assert "finding" in topics(service.cards(body, service=self.SERVICE))
        assert fhir.paths == ["/fhir/ServiceRequest/o1"]

    @pytest.mark.parametrize(
        "answer", [{"resourceType": "ServiceRequest", "id": "o2"}, {"resourceType": "Patient"}]
    )
    def test_another_resource_than_the_order_is_412(self, service, request_of, fhir, answer):
        body = request_of("order-dispatch")
        body["prefetch"]["serviceRequests"] = None
        fhir.answer("/fhir/ServiceRequest/o1", answer)
        assert service.call(body, service=self.SERVICE).status_code == 412

    def test_an_order_that_cannot_be_read_is_412(self, service, request_of):
        body = request_of("order-dispatch")
        body["prefetch"]["serviceRequests"] = None
        del body["fhirAuthorization"]
        response = service.call(body, service=self.SERVICE)
        assert response.status_code == 412
        assert response.json()["issue"][0]["expression"] == ["context.dispatchedOrders"]

    def test_an_order_of_another_patient_is_refused(self, service, request_of):
        body = request_of("order-dispatch", order={"subject": {"reference": "Patient/p2"}})
        assert service.call(body, service=self.SERVICE).status_code == 422

    def test_no_order_of_another_patient_may_come_along(self, service, make, request_of):
        body = request_of("order-dispatch")
        other = make.order(id="o2", subject={"reference": "Patient/p2"})
        body["prefetch"]["serviceRequests"] = make.bundle(make.order(id="o1"), other)
        assert service.call(body, service=self.SERVICE).status_code == 422

    @pytest.mark.parametrize("subject", [{"reference": "Patient/p2"}, {}, "Patient/p1"])
    def test_a_task_for_another_patient_is_refused(self, service, request_of, subject):
        body = request_of("order-dispatch", fulfillmentTasks=[{"resourceType": "Task", "for": subject}])
        assert service.call(body, service=self.SERVICE).status_code == 422

    def test_a_task_for_the_patient_is_taken(self, service, request_of):
        tasks = [{"resourceType": "Task", "for": {"reference": "Patient/p1"}}, {"resourceType": "Task"}]
        body = request_of("order-dispatch", fulfillmentTasks=tasks)
        assert service.call(body, service=self.SERVICE).status_code == 200

    def test_what_is_no_imaging_order_brings_nothing(self, service, make, request_of):
        body = request_of("order-dispatch", order={"category": [], "code": {"text": "Blood count"}})
        assert service.cards(body, service=self.SERVICE) == []

    def test_orders_of_another_kind_are_not_looked_for(self, service, request_of, fhir):
        body = request_of("order-dispatch", dispatchedOrders=["MedicationRequest/m1"]) | {"prefetch": {}}
        assert service.cards(body, service=self.SERVICE) == []
        assert fhir.requests == []


class TestAppointmentBook:
    SERVICE = "rayhook-appointment-book"

    @pytest.mark.parametrize(
        "members",
        [
            {"serviceType": [{"text": "CT chest"}]},
            {"serviceCategory": [{"coding": [{"display": "Radiology"}]}]},
            {"serviceCategory": {"coding": [{"display": "Medical imaging"}]}},
            {"specialty": [{"coding": [{"system": "http://snomed.info/sct", "code": "394914008"}]}]},
        ],
    )
    def test_an_imaging_appointment_is_recognised(self, service, make, request_of, members):
        bundle = make.bundle({"resourceType": "Appointment", "status": "proposed"} | members)
        body = request_of("appointment-book", appointments=bundle)
        assert "finding" in topics(service.cards(body, service=self.SERVICE))

    def test_the_bare_list_of_the_definitions_examples_is_read(self, service, request_of):
        appointment = {"resourceType": "Appointment", "status": "proposed", "serviceType": [{"text": "CT"}]}
        body = request_of("appointment-book", appointments=[appointment])
        assert "finding" in topics(service.cards(body, service=self.SERVICE))

    def test_talk_of_an_mri_is_no_imaging_appointment(self, service, make, request_of):
        """The definition's own example: "Discussion on the results of your recent MRI"."""
        appointment = {
            "resourceType": "Appointment",
            "status": "proposed",
            "serviceType": [{"coding": [{"code": "52", "display": "General Discussion"}]}],
            "description": "Discussion on the results of your recent MRI",
        }
        body = request_of("appointment-book", appointments=make.bundle(appointment))
        assert service.cards(body, service=self.SERVICE) == []

    def test_an_appointment_of_another_patient_is_refused(self, service, make, request_of):
        appointment = {
            "resourceType": "Appointment",
            "status": "proposed",
            "serviceType": [{"text": "MRI"}],
            "participant": [{"actor": {"reference": "Patient/p2"}}],
        }
        body = request_of("appointment-book", appointments=make.bundle(appointment))
        response = service.call(body, service=self.SERVICE)
        assert response.status_code == 422
        assert response.json()["issue"][0]["details"]["coding"][0]["code"] == "identity_conflict"

    def test_other_participants_do_no_harm(self, service, make, request_of):
        appointment = {
            "resourceType": "Appointment",
            "status": "proposed",
            "serviceType": [{"text": "MRI"}],
            "participant": [
                {"actor": {"reference": "Patient/p1"}},
                {"actor": {"reference": "Location/1"}},
                {},
            ],
        }
        body = request_of("appointment-book", appointments=make.bundle(appointment))
        assert service.call(body, service=self.SERVICE).status_code == 200


class TestOurOwnHook:
    def test_the_study_that_is_named_comes_first(self, service, make, request_of):
        studies = [make.study(number) for number in range(1, 6)]
        cards = service.cards(request_of(OWN, *studies), service="rayhook-patient-view")
        assert [card["summary"].split()[-1].removesuffix(";") for card in cards] == [
            "2026-03-01",
            "2026-03-05",
            "2026-03-04",
        ]

    def test_a_study_that_is_not_in_the_list_is_taken_from_its_own_key(self, service, make, request_of):
        body = request_of(OWN, make.study(2))
        body["prefetch"]["imagingStudy"] = make.study(1)
        cards = service.cards(body, service="rayhook-patient-view")
        assert "2026-03-01" in cards[0]["summary"]

    def test_the_study_is_fetched_where_it_is_missing(self, service, make, request_of, fhir):
        body = request_of(OWN)
        del body["prefetch"]["imagingStudy"]
        fhir.answer("/fhir/ImagingStudy/s1", make.study())
        service.cards(body, service="rayhook-patient-view")
        assert fhir.paths == ["/fhir/ImagingStudy/s1"]

    def test_its_cards_stand_in_for_those_of_patient_view(self, service, make, request_of):
        """The same id for two hooks: what the later one says replaces the earlier."""
        study = make.study()
        first = service.cards(make.body(study))
        again = service.cards(request_of(OWN, study))
        assert topics(first) == topics(again) == ["finding"]
        assert first[0]["uuid"] != again[0]["uuid"]


@pytest.mark.parametrize(
    "scope", ["patient/ImagingStudy.read patient/Endpoint.read", "patient/*.rs", "patient/*.read"]
)
def test_scopes_of_both_versions_are_read(service, make, scope):
    """Spec: SMART App Launch 1 (CDS Hooks 2.0.1) and 2 (3.0.0-ballot)."""
    assert topics(service.cards(make.body(fhirAuthorization=make.authorization(scope=scope)))) == ["finding"]


@pytest.mark.parametrize("place", ["request", "context", "fhirAuthorization"])
def test_an_extension_may_stand_anywhere(service, make, place):
    body = make.body()
    (body if place == "request" else body[place])["extension"] = {"org.example.more": {"a": [1]}}
    assert topics(service.cards(body)) == ["finding"]


def test_the_same_hook_instance_twice_is_answered_twice(service, make):
    """Spec: CDS Hooks 2.0.1, "hookInstance": nothing tells a service to refuse it."""
    body = make.body(hookInstance=str(uuid.uuid4()))
    assert topics(service.cards(body)) == topics(service.cards(body)) == ["finding"]
