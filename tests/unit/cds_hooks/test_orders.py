import pytest

from rayhook.cds_hooks.orders import draft_orders
from rayhook.fhir.errors import IdentityConflict, InvalidRequest

SNOMED = "http://snomed.info/sct"
SECTION = "http://terminology.hl7.org/CodeSystem/v2-0074"


def order(**members):
    return {"resourceType": "ServiceRequest", "subject": {"reference": "Patient/p1"}, **members}


def drafts(*resources):
    return {"resourceType": "Bundle", "entry": [{"resource": resource} for resource in resources]}


def category(system, code):
    return [{"coding": [{"system": system, "code": code}]}]


@pytest.mark.parametrize(
    "members",
    [
        {"category": category(SNOMED, "363679005")},
        {"category": category(SECTION, "RAD")},
        {"category": category(SECTION, "NMR")},
        {"category": [{}, *category(SECTION, "CT")]},
        {"code": {"text": "MRI of brain without contrast"}},
        {"code": {"coding": [{"display": "Chest x-ray"}]}},
        {"code": {"coding": [{"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "MR"}]}},
        {"code": {"text": "Ultrasound abdomen"}, "subject": None},
    ],
)
def test_an_imaging_order_is_recognised(members):
    assert draft_orders(drafts(order(**members)), patient_id="p1", base_url="https://ehr.example/fhir")


@pytest.mark.parametrize(
    "resource",
    [
        order(category=category(SECTION, "LAB")),
        order(category=category("http://example.org", "RAD")),
        order(code={"text": "Complete blood count"}),
        order(code={"text": "direct access"}),
        order(category=category(SECTION, "RAD"), doNotPerform=True),
        {"resourceType": "MedicationRequest", "code": {"text": "CT contrast"}},
    ],
)
def test_another_order_is_not(resource):
    assert not draft_orders(drafts(resource), patient_id="p1", base_url="https://ehr.example/fhir")


@pytest.mark.parametrize(
    "bundle",
    [{}, {"resourceType": "ServiceRequest"}, drafts("text"), drafts(None), drafts(order(category="RAD"))],
)
def test_drafts_that_are_no_bundle_of_resources_are_refused(bundle):
    with pytest.raises(InvalidRequest) as refused:
        draft_orders(bundle, patient_id="p1", base_url="https://ehr.example/fhir")
    assert refused.value.expression.startswith("context.draftOrders")


@pytest.mark.parametrize(
    "subject", ["Patient/p2", "Group/p1", "not a reference", "https://other.example/fhir/Patient/p1", None]
)
def test_an_order_for_somebody_else_is_a_conflict(subject):
    with pytest.raises(IdentityConflict):
        draft_orders(
            drafts(order(subject={"reference": subject})),
            patient_id="p1",
            base_url="https://ehr.example/fhir",
        )
