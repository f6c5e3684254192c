"""Whatever is asked of our FHIR API, the answer is FHIR and never a 5xx."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from rayhook.deploy.demo.ehr_tokens import Grant
from rayhook.smart_app.fhir_parameters import PARAMETERS

OPERATIONS = [
    "GET /fhir/R4/AuditEvent",
    "GET /fhir/R4/AuditEvent/{event_id}",
    "GET /fhir/R4/metadata",
    "GET /fhir/R4/{resource_type}",
    "GET /fhir/R4/{resource_type}/{resource_id}",
    "GET /fhir/R4/{resource_type}/{resource_id}/_history/{version_id}",
    "POST /fhir/R4/AuditEvent/_search",
    "POST /fhir/R4/{resource_type}/_search",
]
BOUNDED = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
NAMES = sorted(
    {name for names in PARAMETERS.values() for name in names} | {"_count", "_sort", "_cursor", "_total"}
)
VALUES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["phantom-a", "ge2026", "a|b", "|", ",", "\\,", "0", "-1", "9" * 9, "true", "Patient/x", "é"]
    ),
)
TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)


@pytest.fixture
def client(world):
    """A caller who may read everything there is of one patient, and the audit."""
    world.store("phantom-a")
    scope = "patient/*.rs"
    token = world.ehr.authorization.tokens.issue(Grant("phantom-a", scope, user=None))
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=world.base_url, headers=headers, timeout=20) as client:
        yield client


def check(response):
    assert response.status_code < 500, response.status_code
    if response.status_code != 304:
        assert response.json()["resourceType"] in {
            "Bundle",
            "CapabilityStatement",
            "OperationOutcome",
            *PARAMETERS,
        }


@pytest.fixture(scope="module")
def operations(running):
    schema = schemathesis.openapi.from_url(f"{running.base_url}/openapi.json")
    found = [one.ok() for one in schema.get_all_operations()]
    return {f"{one.method.upper()} {one.path}": one for one in found if one.path.startswith("/fhir/R4/")}


def test_every_route_is_in_the_document(operations):
    assert sorted(operations) == OPERATIONS


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_by_the_document_is_a_server_error(client, operations, name):
    @BOUNDED
    @given(case=operations[name].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def run(case):
        check(case.call(headers=dict(client.headers), timeout=20))

    run()


@settings(BOUNDED, max_examples=150)
@given(
    kind=st.sampled_from(sorted(PARAMETERS)),
    pairs=st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=4),
    headers=st.fixed_dictionaries({}, optional={"Accept": TEXT, "Prefer": TEXT, "If-None-Match": TEXT}),
    by_post=st.booleans(),
)
def test_no_search_is_a_server_error(client, kind, pairs, headers, by_post):
    if by_post:
        check(client.post(f"/fhir/R4/{kind}/_search", data=dict(pairs), headers=headers))
    else:
        check(client.get(f"/fhir/R4/{kind}", params=pairs, headers=headers))
