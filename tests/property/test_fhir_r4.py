import contextlib
import re

from hypothesis import given
from hypothesis import strategies as st

from rayhook.fhir import r4
from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.r4 import bundle_resources, operation_outcome_in, read_endpoint, read_imaging_study

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
STUDY = {
    "resourceType": "ImagingStudy",
    "id": "s1",
    "meta": {"versionId": "1"},
    "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}],
    "status": "available",
    "modality": [{"code": "MR"}],
    "subject": {"reference": "Patient/p1"},
    "series": [{"modality": {"code": "MR"}, "endpoint": [{"reference": "Endpoint/e"}]}],
    "contained": [],
    "endpoint": [],
    "basedOn": [],
}


@given(st.sampled_from(sorted(STUDY)), json_values)
def test_any_element_is_read_or_refused(name, value):
    with contextlib.suppress(InvalidRequest):
        read_imaging_study(STUDY | {name: value})


@given(
    st.dictionaries(
        st.sampled_from(["status", "connectionType", "address", "payloadType", "extension"]), json_values
    )
)
def test_any_endpoint_is_read_or_refused(elements):
    with contextlib.suppress(InvalidRequest):
        read_endpoint({"resourceType": "Endpoint"} | elements)


@given(json_values)
def test_any_bundle_is_read_or_refused(entry):
    with contextlib.suppress(InvalidRequest):
        bundle = {"resourceType": "Bundle", "entry": entry}
        bundle_resources(bundle)
        operation_outcome_in(bundle)


@given(st.floats(0, 1))
def test_probabilities_have_four_decimals(probability):
    written = r4.encode_json({"value": r4.decimal(probability)})
    assert re.fullmatch(rb'\{"value":[01]\.[0-9]{4}\}', written)


@given(
    st.dictionaries(
        st.sampled_from(["status", "code", "subject", "valueQuantity", "component", "contained"]), json_values
    )
)
def test_any_observation_passes_or_is_refused(elements):
    with contextlib.suppress(InvalidRequest):
        r4.validate({"resourceType": "Observation", "status": "final", "code": {"text": "x"}} | elements)
