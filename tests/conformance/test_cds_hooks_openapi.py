"""Schemathesis over the OpenAPI document: whatever is sent by its forms, or against them, nothing is a 5xx."""

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from rayhook.cds_hooks.services import SERVICES

CASES = int(os.environ.get("SCHEMATHESIS_CASES", "60"))
IDS = sorted({service.id for service in SERVICES})
HOOKS = {service.hook: service.id for service in SERVICES}
BOUNDED = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def schema(running):
    return schemathesis.openapi.from_url(f"{running.client.base_url}/openapi.json")


def operations(schema):
    return {
        f"{found.ok().method.upper()} {found.ok().path}": found.ok() for found in schema.get_all_operations()
    }


def send(service, case, path):
    """Send the case as it is, signed for where it goes."""
    token = service.token(path)
    return case.call(headers={"Authorization": f"Bearer {token}"}, timeout=10)


def check(response):
    assert response.status_code < 500, response.status_code
    if response.status_code >= 400:
        assert response.json()["resourceType"] == "OperationOutcome"


def test_every_route_is_in_the_document(schema):
    assert set(operations(schema)) == {
        "GET /cds-services",
        "GET /cds-services/documentation",
        "POST /cds-services/{service_id}",
        "POST /cds-services/{service_id}/feedback",
    }


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(
    "name", ["POST /cds-services/{service_id}", "POST /cds-services/{service_id}/feedback"]
)
def test_nothing_is_a_server_error(service, schema, mode, name):
    operation = operations(schema)[name]
    statuses = set()

    @BOUNDED
    @given(case=operation.as_strategy(generation_mode=mode), id_=st.sampled_from(IDS))
    def run(case, id_):
        path = name.split()[1].replace("{service_id}", id_)
        case.path_parameters = {"service_id": id_}
        response = send(service, case, path)
        statuses.add(response.status_code)
        check(response)

    run()
    assert 400 in statuses


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_bodies_of_the_right_form_reach_every_hook(service, request_of, schema, hook):
    """The form alone rarely makes sense of a call: here the call does, and what is generated is put beside it."""
    operation = operations(schema)["POST /cds-services/{service_id}"]
    statuses = set()

    @settings(BOUNDED, max_examples=CASES // 3)
    @given(
        case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
        replaced=st.sampled_from(
            [None, "fhirServer", "fhirAuthorization", "prefetch", "extension", "context"]
        ),
    )
    def run(case, replaced):
        sensible = request_of(hook)
        generated = case.body if isinstance(case.body, dict) else {}
        beside = {name: generated[name] for name in [replaced] if name in generated}
        case.body = generated | sensible | beside
        case.path_parameters = {"service_id": HOOKS[hook]}
        response = send(service, case, f"/cds-services/{HOOKS[hook]}")
        statuses.add(response.status_code)
        check(response)

    run()
    assert 200 in statuses
