from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayhook.cds_hooks.contexts import PatientViewContext
from rayhook.cds_hooks.prefetch import fill, tokens_of
from rayhook.fhir.errors import PrefetchUnavailable

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(TEXT)
def test_a_value_stays_one_segment_of_the_path(value):
    filled = fill("Patient/{{context.patientId}}", {"context.patientId": value})
    kind, segment = filled.split("/")
    assert (kind, unquote(segment)) == ("Patient", value)
    assert urlsplit(filled).path == filled


@given(TEXT)
def test_a_value_stays_one_parameter(value):
    filled = fill("ImagingStudy?patient={{context.patientId}}&_count=20", {"context.patientId": value})
    patient, count = urlsplit(filled).query.split("&")
    assert unquote(patient.removeprefix("patient=")) == value
    assert count == "_count=20"


@given(TEXT)
def test_a_value_is_not_read_as_a_template(value):
    tokens = {"context.patientId": "{{context.userId}}", "context.userId": value}
    assert fill("{{context.patientId}}", tokens) == "%7B%7Bcontext.userId%7D%7D"


@given(st.text(st.characters(categories=["L"]), min_size=1))
def test_a_token_without_a_value_is_refused(name):
    with pytest.raises(PrefetchUnavailable):
        fill(f"Patient/{{{{{name}}}}}", {})


@pytest.mark.parametrize(
    ("user_id", "token"),
    [
        ("Practitioner/a", "userPractitionerId"),
        ("PractitionerRole/a", "userPractitionerRoleId"),
        ("Patient/a", "userPatientId"),
        ("RelatedPerson/a", "userRelatedPersonId"),
    ],
)
def test_the_user_has_a_token_by_type(user_id, token):
    tokens = tokens_of(PatientViewContext(user_id=user_id, patient_id="p", encounter_id="e"))
    assert tokens == {
        "context.userId": user_id,
        "context.patientId": "p",
        "context.encounterId": "e",
        token: "a",
    }
