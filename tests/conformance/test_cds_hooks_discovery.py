"""Spec: CDS Hooks 2.0.1 and 3.0.0-ballot, "Discovery"."""

import re

import pytest

SEMVER = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?")
TOKEN = re.compile(r"\{\{(.*?)\}\}")


@pytest.fixture
def services(service):
    response = service.client.get("/cds-services")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    return {entry["id"]: entry for entry in response.json()["services"]}


def test_both_services_are_listed_with_their_hooks(services):
    assert {id_: entry["hook"] for id_, entry in services.items()} == {
        "rayhook-patient-view": "patient-view",
        "rayhook-order-sign": "order-sign",
    }


def test_every_service_is_described(services):
    for entry in services.values():
        assert all(entry[member] for member in ("title", "description", "usageRequirements", "hookVersion"))
        assert SEMVER.fullmatch(entry["version"])
        assert entry["hookVersion"] == "1.0"


def test_templates_use_only_root_level_primitive_tokens(services):
    """Spec: CDS Hooks 2.0.1, "Prefetch tokens"."""
    for entry in services.values():
        tokens = {token for template in entry["prefetch"].values() for token in TOKEN.findall(template)}
        assert tokens == {"context.patientId"}


def test_templates_ask_for_what_every_server_can_do(services):
    """Spec: CDS Hooks 2.0.1, "Prefetch query restrictions"."""
    for entry in services.values():
        parameters = re.findall(r"[?&]([^=]+)=", entry["prefetch"]["imagingStudies"])
        assert set(parameters) <= {"patient", "_sort", "_count"}


def test_a_token_in_discovery_does_no_harm(service):
    headers = {"Authorization": "Bearer whatever"}
    assert service.client.get("/cds-services", headers=headers).status_code == 200
