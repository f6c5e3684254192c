import pytest

from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.references import (
    Reference,
    is_fhir_id,
    is_uid,
    oid_uri,
    parse_reference,
    reference_to,
    study_uid_from_identifiers,
    uid_from_oid,
)

UID = "1.2.826.0.1.3680043.8.498.1"


def _identifier(value, system="urn:dicom:uid"):
    return {"system": system, "value": value}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Patient/p1", Reference("Patient", "p1")),
        ("Patient/p1/_history/3", Reference("Patient", "p1")),
        ("https://ehr.example/fhir/Patient/p1", Reference("Patient", "p1", "https://ehr.example/fhir")),
        (
            "https://ehr.example/a/b/R4/Device/x.y-z",
            Reference("Device", "x.y-z", "https://ehr.example/a/b/R4"),
        ),
    ],
)
def test_literal_references_are_read(text, expected):
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "p1",
        "Patient/",
        "/p1",
        "Patient/p1/",
        "patient/p1",
        "Patient/p 1",
        "Patient/" + "x" * 65,
        "Patient/..",
        "Patient/.",
        "Patient/../Device/1",
        "#contained",
        "urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6e0",
        "Patient?identifier=1",
        "ftp://ehr.example/Patient/1",
        "https://ehr.example/fhir/Patient/1?x=1",
        "https://ehr.example\\@evil.example/Patient/1",
        "Patient/1\n",
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(InvalidRequest):
        parse_reference(text)


def test_refusal_does_not_repeat_the_text():
    with pytest.raises(InvalidRequest) as caught:
        parse_reference("Patient/secret id")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (Reference("Patient", "1"), True),
        (Reference("Patient", "1", "https://ehr.example/fhir"), True),
        (Reference("Patient", "1", "https://ehr.example/fhir2"), False),
        (Reference("Patient", "1", "https://ehr.example.evil/fhir"), False),
    ],
)
def test_base_is_compared_whole(reference, expected):
    assert reference.is_at("https://ehr.example/fhir/") is expected


def test_reference_is_written_as_it_was_read():
    assert str(parse_reference("https://ehr.example/fhir/Patient/1")) == "https://ehr.example/fhir/Patient/1"


@pytest.mark.parametrize(
    "json", [None, {}, {"reference": 1}, {"reference": "#a"}, {"display": "x"}, {"reference": "Group/1"}]
)
def test_reference_of_another_type_is_none(json):
    assert reference_to(json, "Patient") is None


def test_reference_of_the_type_is_read():
    assert reference_to({"reference": "Patient/1"}, "Group", "Patient") == Reference("Patient", "1")


@pytest.mark.parametrize("text", [UID, "0.0", "2.25.329800735698586629295641978511506172918"])
def test_uid_form_is_accepted(text):
    assert is_uid(text)


@pytest.mark.parametrize(
    "text", ["", "1", "1.", ".1", "1..2", "1.02", "1.2a", "1.2 ", "1.2/../3", "1.٣", "1." + "2" * 63, "1.2\n"]
)
def test_other_uid_forms_are_refused(text):
    assert not is_uid(text)


@pytest.mark.parametrize("text", [".", "..", "", "a/b", "a b", "a" * 65, "ä"])
def test_ids_that_would_change_a_url_are_refused(text):
    assert not is_fhir_id(text)


def test_oid_uri_round_trip():
    assert uid_from_oid(oid_uri(UID)) == UID


@pytest.mark.parametrize(
    ("identifiers", "expected"),
    [
        ([], None),
        ([_identifier("A1", system="urn:accession")], None),
        ([_identifier(f"urn:oid:{UID}")], UID),
        ([_identifier(UID)], UID),
        ([_identifier("A1", system="urn:accession"), _identifier(f"urn:oid:{UID}")], UID),
        ([_identifier(f"urn:oid:{UID}"), _identifier(UID)], UID),
    ],
)
def test_study_uid_is_found(identifiers, expected):
    assert study_uid_from_identifiers(identifiers) == expected


@pytest.mark.parametrize(
    "identifiers",
    [
        [_identifier(f"urn:oid:{UID}"), _identifier("urn:oid:1.2.3")],
        [_identifier("urn:oid:1.02")],
        [_identifier(None)],
        [_identifier(f"urn:oid:{UID}"), _identifier("../x")],
    ],
)
def test_doubtful_study_uid_is_refused(identifiers):
    with pytest.raises(InvalidRequest):
        study_uid_from_identifiers(identifiers)
