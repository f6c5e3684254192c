"""Whatever stands in a body, the answer is cards or a refusal in the protocol's form."""

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayhook.cds_hooks.services import SERVICES

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
)
TYPES = st.sampled_from(
    ["Bundle", "OperationOutcome", "ImagingStudy", "Endpoint", "Patient", "ServiceRequest"]
)
NAMES = st.sampled_from(
    [
        "resourceType",
        "id",
        "entry",
        "resource",
        "issue",
        "subject",
        "reference",
        "endpoint",
        "contained",
        "link",
        "relation",
        "url",
        "identifier",
        "system",
        "value",
        "series",
        "modality",
        "code",
        "meta",
        "severity",
        "category",
        "coding",
        "address",
        "connectionType",
    ]
)
VALUES = st.recursive(
    SCALARS | TYPES | st.just("next") | st.just("urn:dicom:uid"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def places(value, path=()):
    """Yield the path of everything inside `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield (*path, name)
        yield from places(inner, (*path, name))


def put(body, path, value):
    for name in path[:-1]:
        body = body[name]
    body[path[-1]] = value


HOOKS = {service.hook: service.id for service in SERVICES}


@pytest.fixture(params=sorted(HOOKS))
def template(request, request_of):
    return request_of(request.param)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_body_breaks_the_service(service, template, data):
    body = copy.deepcopy(template)
    path = data.draw(st.sampled_from(sorted(places(body), key=str)))
    put(body, path, data.draw(VALUES))
    response = service.call(body, service=HOOKS[template["hook"]])
    assert response.status_code in {200, 400, 412, 422}
    assert ("cards" if response.status_code == 200 else "issue") in response.json()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES, key=st.sampled_from(["patient", "imagingStudies"]))
def test_no_answer_of_the_fhir_server_breaks_the_service(service, make, fhir, value, key):
    fhir.answer("/fhir/Patient/p1", make.patient())
    fhir.answer("/fhir/ImagingStudy", make.bundle())
    fhir.answer({"patient": "/fhir/Patient/p1", "imagingStudies": "/fhir/ImagingStudy"}[key], value)
    response = service.call(make.body(prefetch={}))
    assert response.status_code in {200, 412, 422}
