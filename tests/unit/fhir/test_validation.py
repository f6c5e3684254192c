import copy
import traceback

import pytest

from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.r4 import validate

DEVICE_URL = "urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6e0"
OBSERVATION_URL = "urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6e1"
NAME = "Jane Doe"
CODE = {"coding": [{"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "121071"}]}
OBSERVATION = {
    "resourceType": "Observation",
    "status": "preliminary",
    "code": CODE,
    "subject": {"reference": "Patient/p1"},
    "effectiveDateTime": "2026-01-01T10:00:00Z",
    "device": {"reference": "Device/d1"},
    "valueQuantity": {"value": 0.93, "system": "http://unitsofmeasure.org", "code": "1"},
    "component": [{"code": {"text": "threshold"}, "valueQuantity": {"value": 0.5}}],
}
REPORT = {
    "resourceType": "DiagnosticReport",
    "status": "preliminary",
    "code": CODE,
    "subject": {"reference": "Patient/p1"},
    "basedOn": [{"reference": "ServiceRequest/r1"}],
    "imagingStudy": [{"reference": "ImagingStudy/s1"}],
    "performer": [{"reference": "Organization/o1"}],
    "result": [{"reference": "Observation/o1"}],
    "presentedForm": [{"contentType": "text/html; charset=utf-8", "data": "PGI+"}],
}
DEVICE = {"resourceType": "Device", "status": "active", "deviceName": [{"name": "x", "type": "model-name"}]}
PROVENANCE = {
    "resourceType": "Provenance",
    "target": [{"reference": "Observation/o1"}],
    "recorded": "2026-01-01T10:00:00Z",
    "agent": [{"who": {"reference": "Device/d1"}, "onBehalfOf": {"reference": "Organization/o1"}}],
    "entity": [{"role": "source", "what": {"reference": "ImagingStudy/s1"}}],
}


def entry(url, resource):
    request = {"method": "POST", "url": resource["resourceType"], "ifNoneExist": "identifier=a|b"}
    return {"fullUrl": url, "resource": resource, "request": request}


BUNDLE = {
    "resourceType": "Bundle",
    "type": "transaction",
    "entry": [
        entry(DEVICE_URL, DEVICE),
        entry(OBSERVATION_URL, OBSERVATION | {"device": {"reference": DEVICE_URL}}),
    ],
}


def changed(resource, path, value):
    """A copy with `value` at `path`, or without it where the value is None."""
    copied = copy.deepcopy(resource)
    *parents, last = path
    place = copied
    for step in parents:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return copied


@pytest.mark.parametrize(
    "resource", [OBSERVATION, REPORT, DEVICE, PROVENANCE, BUNDLE], ids=lambda r: r["resourceType"]
)
def test_good_resources_pass(resource):
    validate(resource)


@pytest.mark.parametrize(
    ("resource", "path", "value", "where"),
    [
        (OBSERVATION, ["status"], "bogus", "Observation.status"),
        (OBSERVATION, ["status"], "partial", "Observation.status"),
        (REPORT, ["status"], "bogus", "DiagnosticReport.status"),
        (DEVICE, ["status"], "bogus", "Device.status"),
        (DEVICE, ["deviceName", 0, "type"], "bogus", "Device.deviceName[0].type"),
        (PROVENANCE, ["entity", 0, "role"], "bogus", "Provenance.entity[0].role"),
        (OBSERVATION, ["valueQuantity", "comparator"], "~", "Observation.valueQuantity.comparator"),
        (
            REPORT,
            ["presentedForm", 0, "contentType"],
            "html",
            "DiagnosticReport.presentedForm[0].contentType",
        ),
        (BUNDLE, ["type"], "bogus", "Bundle.type"),
        (BUNDLE, ["entry", 0, "request", "method"], "FETCH", "Bundle.entry[0].request.method"),
        (BUNDLE, ["entry", 1, "resource", "status"], "bogus", "Bundle.entry[1].resource.status"),
    ],
)
def test_code_outside_a_required_binding_is_refused(resource, path, value, where):
    with pytest.raises(InvalidRequest) as caught:
        validate(changed(resource, path, value))
    assert caught.value.expression in {where, "Bundle.entry[0].request"}


@pytest.mark.parametrize("status", ["corrected", "cancelled", "entered-in-error", "unknown"])
def test_codes_that_the_models_cut_off_pass(status):
    validate(OBSERVATION | {"status": status})


@pytest.mark.parametrize(
    ("resource", "path", "reference"),
    [
        (OBSERVATION, ["subject"], "Observation/o1"),
        (OBSERVATION, ["subject"], "Organization/o1"),
        (OBSERVATION, ["device"], "Practitioner/x"),
        (OBSERVATION, ["device"], "https://ehr.example/fhir/Practitioner/x"),
        (OBSERVATION, ["device"], "Practitioner?identifier=x"),
        (REPORT, ["performer", 0], "Device/d1"),
        (REPORT, ["result", 0], "DiagnosticReport/r1"),
        (REPORT, ["imagingStudy", 0], "Patient/p1"),
        (REPORT, ["basedOn", 0], "ImagingStudy/s1"),
        (PROVENANCE, ["agent", 0, "who"], "ImagingStudy/s1"),
        (BUNDLE, ["entry", 1, "resource", "encounter"], DEVICE_URL),
    ],
)
def test_reference_to_a_wrong_type_is_refused(resource, path, reference):
    with pytest.raises(InvalidRequest, match="reference must be to"):
        validate(changed(resource, path, {"reference": reference}))


@pytest.mark.parametrize("reference", ["p1", "patient/p1", "Patient/p 1", "/Patient/p1"])
def test_malformed_reference_is_refused(reference):
    with pytest.raises(InvalidRequest, match="Type/id"):
        validate(OBSERVATION | {"subject": {"reference": reference}})


def test_named_type_is_checked_where_the_reference_is_logical():
    with pytest.raises(InvalidRequest):
        validate(OBSERVATION | {"device": {"type": "Patient", "identifier": {"value": "1"}}})


def test_named_type_must_be_the_literal_one():
    with pytest.raises(InvalidRequest):
        validate(OBSERVATION | {"subject": {"reference": "Patient/p1", "type": "Group"}})


def test_reference_to_no_entry_of_the_bundle_is_refused():
    with pytest.raises(InvalidRequest, match="entry of the Bundle"):
        validate(changed(BUNDLE, ["entry", 0, "fullUrl"], "urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6ff"))


def test_reference_across_a_bundle_to_come_passes_alone():
    validate(OBSERVATION | {"device": {"reference": DEVICE_URL}})


def test_contained_resource_is_found():
    validate(OBSERVATION | {"contained": [DEVICE | {"id": "d"}], "device": {"reference": "#d"}})


@pytest.mark.parametrize(
    "contained",
    [[], [DEVICE | {"id": "other"}], [{"resourceType": "Patient", "id": "d"}], [{"resourceType": "Device"}]],
)
def test_contained_resource_has_to_be_there_and_fit(contained):
    with pytest.raises(InvalidRequest):
        validate(OBSERVATION | {"contained": contained, "device": {"reference": "#d"}})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["code"], None),
        (["status"], None),
        (["resourceType"], None),
        (["resourceType"], "Nonsense"),
        (["resourceType"], "Element"),
        (["nonsense"], 1),
        (["component"], []),
        (["component"], [None]),
        (["code"], {}),
        (["subject"], {"reference": ""}),
        (["effectiveDateTime"], "yesterday"),
        (["effectiveDateTime"], "2026-01-01T10:00:00"),
        (["valueString"], "second value"),
        (["valueQuantity", "value"], "0.93"),
        (["valueQuantity", "value"], True),
        (["valueQuantity", "value"], 0.9300000001),
        (["valueQuantity", "value"], 0.1 + 0.2),
        (["component", 0, "valueQuantity", "value"], 1 / 3),
        (["dataAbsentReason"], {"text": "not analysed"}),
        (["component", 0, "code"], CODE),
    ],
)
def test_malformed_observation_is_refused(path, value):
    with pytest.raises(InvalidRequest):
        validate(changed(OBSERVATION, path, value))


def test_absent_reason_in_place_of_a_value_passes():
    validate(changed(OBSERVATION, ["valueQuantity"], None) | {"dataAbsentReason": {"text": "not analysed"}})


@pytest.mark.parametrize("value", [0.93, 0.12345678, 1, 0, 1e-05, 120.5])
def test_decimals_of_fixed_precision_pass(value):
    validate(changed(OBSERVATION, ["valueQuantity", "value"], value))


def test_transaction_entry_needs_a_request():
    with pytest.raises(InvalidRequest):
        validate(changed(BUNDLE, ["entry", 0, "request"], None))


def test_full_urls_are_unique():
    with pytest.raises(InvalidRequest, match="unique"):
        validate(changed(BUNDLE, ["entry", 0, "fullUrl"], OBSERVATION_URL))


@pytest.mark.parametrize(
    "path", [["valueQuantity", "value"], ["effectiveDateTime"], ["jane-doe-1970"], ["status"]]
)
def test_refusal_does_not_repeat_the_value(path):
    with pytest.raises(InvalidRequest) as caught:
        validate(changed(OBSERVATION, path, NAME))
    assert NAME not in "".join(traceback.format_exception(caught.value))


def test_resource_is_not_changed():
    before = copy.deepcopy(BUNDLE)
    validate(BUNDLE)
    assert before == BUNDLE


@pytest.mark.parametrize(
    "value", ["\ud800", {1, 2}.__iter__(), float("nan")], ids=["surrogate", "object", "nan"]
)
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises(InvalidRequest):
        validate(OBSERVATION | {"valueQuantity": {"value": value}})


def test_bottomless_nesting_is_refused():
    nested = {"url": "urn:x", "valueString": "x"}
    for _ in range(5000):
        nested = {"url": "urn:x", "extension": [nested]}
    with pytest.raises(InvalidRequest):
        validate(OBSERVATION | {"extension": [nested]})
