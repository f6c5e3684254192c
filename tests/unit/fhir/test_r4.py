import subprocess
import sys
from decimal import Decimal

import pytest

from rayhook.fhir import r4
from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.r4 import (
    EndpointSummary,
    bundle_resources,
    encode_json,
    operation_outcome_in,
    read_endpoint,
    read_imaging_study,
)

BASE = "https://ehr.example/fhir"
UID = "1.2.826.0.1.3680043.8.498.1"
ENDPOINT = {
    "resourceType": "Endpoint",
    "id": "e1",
    "status": "active",
    "connectionType": {
        "system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type",
        "code": "dicom-wado-rs",
    },
    "payloadType": [
        {
            "coding": [
                {
                    "system": "http://dicom.nema.org/resources/ontology/DCM",
                    "code": "113014",
                    "display": "Study",
                }
            ]
        }
    ],
    "address": "https://pacs.example/dicom-web/",
    "extension": [
        {
            "url": "http://hl7.org/fhir/smart-app-launch/StructureDefinition/requires-access-token",
            "valueBoolean": True,
        }
    ],
}
STUDY = {
    "resourceType": "ImagingStudy",
    "id": "s1",
    "meta": {"versionId": "7", "lastUpdated": "2026-01-02T03:04:05Z"},
    "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{UID}"}],
    "status": "available",
    "modality": [{"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "MR"}],
    "subject": {"reference": "Patient/p1"},
    "started": "2026-01-01T10:00:00Z",
    "basedOn": [{"reference": "CarePlan/c1"}, {"reference": "ServiceRequest/r1"}],
    "endpoint": [{"reference": "Endpoint/e1"}, {"reference": "#own"}],
    "numberOfInstances": 24,
    "description": "MR brain",
    "series": [
        {
            "uid": f"{UID}.1",
            "modality": {"code": "SEG"},
            "bodySite": {"code": "12738006", "display": "Brain"},
            "endpoint": [{"reference": "Endpoint/e2"}],
        },
        {"uid": f"{UID}.2", "modality": {"code": "MR"}, "bodySite": {"code": "69536005"}},
    ],
    "contained": [ENDPOINT | {"id": "own"}, {"resourceType": "Organization", "id": "o"}],
}


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("id", "s1"),
        ("patient_id", "p1"),
        ("study_instance_uid", UID),
        ("started", "2026-01-01T10:00:00Z"),
        ("status", "available"),
        ("modalities", ("MR", "SEG")),
        ("description", "MR brain"),
        ("endpoint_references", ("Endpoint/e1", "Endpoint/e2")),
        ("number_of_instances", 24),
        ("source_version", "7"),
        ("body_sites", ("Brain", "69536005")),
        ("based_on", "ServiceRequest/r1"),
    ],
)
def test_imaging_study_is_read(attribute, value):
    assert getattr(read_imaging_study(STUDY), attribute) == value


def test_contained_endpoint_is_read():
    assert [endpoint.id for endpoint in read_imaging_study(STUDY).contained_endpoints] == ["own"]


@pytest.mark.parametrize(
    ("subject", "patient_id"),
    [
        ({"reference": "Patient/p1"}, "p1"),
        ({"reference": f"{BASE}/Patient/p1"}, "p1"),
        ({"reference": "https://other.example/fhir/Patient/p1"}, None),
        ({"reference": f"{BASE}-other/Patient/p1"}, None),
        ({"reference": "Group/p1"}, None),
        ({"reference": "#p1"}, None),
        ({"identifier": {"value": "1"}}, None),
        ({"reference": "Patient/p1/x"}, None),
    ],
)
def test_patient_is_taken_from_the_subject(subject, patient_id):
    assert read_imaging_study(STUDY | {"subject": subject}, base_url=BASE).patient_id == patient_id


@pytest.mark.parametrize(
    ("changed", "version"),
    [
        ({"meta": {"lastUpdated": "2026-01-02T03:04:05Z"}}, "2026-01-02T03:04:05Z"),
        ({"meta": {}}, "24"),
        (
            {
                "meta": {},
                "numberOfInstances": None,
                "series": [{"numberOfInstances": 3}, {"numberOfInstances": 4}],
            },
            "7",
        ),
        ({"meta": {}, "numberOfInstances": None, "series": [{"numberOfInstances": 3}, {}]}, ""),
        ({"meta": {}, "numberOfInstances": None, "series": []}, ""),
    ],
)
def test_version_changes_with_the_study(changed, version):
    assert read_imaging_study(_without_none(STUDY | changed)).source_version == version


def _without_none(resource):
    return {key: value for key, value in resource.items() if value is not None}


def test_smallest_imaging_study_is_read():
    smallest = {"resourceType": "ImagingStudy", "id": "s1", "status": "available", "subject": {}}
    assert read_imaging_study(smallest).study_instance_uid is None


@pytest.mark.parametrize(
    "changed",
    [
        {"resourceType": "Patient"},
        {"id": None},
        {"id": 5},
        {"id": "a/b"},
        {"status": None},
        {"subject": None},
        {"subject": "Patient/p1"},
        {"modality": "MR"},
        {"series": {}},
        {"numberOfInstances": "24"},
        {"identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:../../x"}]},
        {"contained": [{"resourceType": "Endpoint"}]},
    ],
)
def test_malformed_imaging_study_is_refused(changed):
    with pytest.raises(InvalidRequest):
        read_imaging_study(_without_none(STUDY | changed))


def test_refusal_names_the_element_not_the_value():
    with pytest.raises(InvalidRequest) as caught:
        read_imaging_study(STUDY | {"description": ["Jane Doe"]})
    assert "description" in str(caught.value)
    assert "Jane" not in str(caught.value)


def test_endpoint_is_read():
    assert read_endpoint(ENDPOINT) == EndpointSummary(
        address="https://pacs.example/dicom-web",
        connection_type="dicom-wado-rs",
        payload=("113014",),
        active=True,
        requires_access_token=True,
        id="e1",
    )


@pytest.mark.parametrize("status", ["off", "suspended", "error", "test", "entered-in-error", "Active"])
def test_endpoint_of_another_status_is_not_active(status):
    assert not read_endpoint(ENDPOINT | {"status": status}).active


@pytest.mark.parametrize(
    "extension",
    [
        [],
        [{"url": "http://hl7.org/fhir/smart-app-launch/StructureDefinition/requires-access-token"}],
        [{"url": "urn:other", "valueBoolean": True}],
        [ENDPOINT["extension"][0] | {"valueBoolean": False}],
    ],
)
def test_token_goes_only_where_the_extension_says_true(extension):
    assert not read_endpoint(ENDPOINT | {"extension": extension}).requires_access_token


@pytest.mark.parametrize(
    "changed", [{"address": None}, {"connectionType": None}, {"address": 1}, {"resourceType": "X"}]
)
def test_malformed_endpoint_is_refused(changed):
    with pytest.raises(InvalidRequest):
        read_endpoint(_without_none(ENDPOINT | changed))


def _bundle(*resources):
    return {"resourceType": "Bundle", "type": "searchset", "entry": [{"resource": r} for r in resources]}


@pytest.mark.parametrize(
    ("json_", "expected"),
    [
        (_bundle(STUDY, ENDPOINT), [STUDY]),
        (_bundle(), []),
        ({"resourceType": "Bundle", "type": "searchset"}, []),
        ({"resourceType": "Bundle", "entry": [{"fullUrl": "urn:x"}]}, []),
        (STUDY, [STUDY]),
        (ENDPOINT, []),
    ],
)
def test_resources_of_a_type(json_, expected):
    assert bundle_resources(json_, "ImagingStudy") == expected


@pytest.mark.parametrize("entry", [{}, "x", 1, ["x"]])
def test_bundle_without_a_list_of_entries_is_refused(entry):
    if not entry:
        entry = {"0": {}}
    with pytest.raises(InvalidRequest):
        bundle_resources({"resourceType": "Bundle", "entry": entry})


def _outcome(severity):
    return {"resourceType": "OperationOutcome", "issue": [{"severity": severity, "code": "processing"}]}


@pytest.mark.parametrize(
    ("json_", "expected"),
    [
        (_outcome("error"), True),
        (_outcome("warning"), True),
        (_bundle(STUDY, _outcome("error")), True),
        (_bundle(STUDY, _outcome("fatal")), True),
        (_bundle(STUDY, _outcome("warning")), False),
        (_bundle({"resourceType": "OperationOutcome", "issue": 5}), False),
        (_bundle({"resourceType": "OperationOutcome", "issue": [5, {"severity": []}]}), False),
        (_bundle(STUDY), False),
        (STUDY, False),
    ],
)
def test_failure_is_seen(json_, expected):
    assert operation_outcome_in(json_) is expected


@pytest.mark.parametrize(
    ("value", "places", "shown"),
    [
        (0.9300000001, 4, "0.9300"),
        (0.1 + 0.2, 4, "0.3000"),
        (0.93456, 3, "0.935"),
        (1.0, 4, "1.0000"),
        (1 / 3, 4, "0.3333"),
        (1e-9, 4, "0.0000"),
    ],
)
def test_decimal_shows_how_precise_it_is(value, places, shown):
    assert r4.encode_json({"value": r4.decimal(value, places=places)}) == f'{{"value":{shown}}}'.encode()


def test_decimals_keep_their_zeros_when_read_back():
    written = r4.encode_json([{"value": r4.decimal(0.93)}])
    assert r4.encode_json(r4.decode_json(written)) == written


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_decimal_is_finite(value):
    with pytest.raises(InvalidRequest):
        r4.decimal(value)


def test_decimal_type_keeps_its_zeros_on_the_wire():
    assert encode_json({"value": Decimal("0.930")}) == b'{"value":0.930}'


@pytest.mark.parametrize(
    "name", ["DiagnosticReport", "Observation", "Device", "Provenance", "Bundle", "AuditEvent"]
)
def test_models_are_there(name):
    assert getattr(r4, name).__resource_type__ == name


def test_other_names_are_not_there():
    with pytest.raises(AttributeError):
        _ = r4.Medication


def test_readers_do_not_import_the_models():
    program = "import sys, rayhook.fhir.client; sys.exit('fhir.resources' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
