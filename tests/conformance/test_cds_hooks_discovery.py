"""Spec: CDS Hooks 2.0.1 and 3.0.0-ballot, "Discovery"."""

import re

import pytest

SEMVER = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?")
TOKEN = re.compile(r"\{\{(.*?)\}\}")


HOOKS = {
    "appointment-book": ("rayhook-appointment-book", "1.0"),
    "encounter-start": ("rayhook-encounter-start", "1.0"),
    "order-dispatch": ("rayhook-order-dispatch", "1.1"),
    "order-select": ("rayhook-order-select", "1.0"),
    "order-sign": ("rayhook-order-sign", "1.0"),
    "org.rayhook.imaging-result-available": ("rayhook-patient-view", "1.0"),
    "patient-view": ("rayhook-patient-view", "1.0"),
}
CONTEXT_STRINGS = {
    "context.patientId",
    "context.userId",
    "context.encounterId",
    "context.performer",
    "context.imagingStudyId",
}


@pytest.fixture
def services(service):
    response = service.client.get("/cds-services")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    return response.json()["services"]


def test_every_hook_is_listed_once_with_its_version(services):
    told = {entry["hook"]: (entry["id"], entry["hookVersion"]) for entry in services}
    assert told == HOOKS
    assert len(services) == len(HOOKS)


def test_a_client_that_keeps_one_entry_an_id_keeps_the_hook_of_the_library(services):
    assert {entry["id"]: entry["hook"] for entry in services}["rayhook-patient-view"] == "patient-view"


def test_every_service_is_described(services):
    for entry in services:
        assert all(entry[member] for member in ("title", "description", "usageRequirements", "prefetch"))
        assert SEMVER.fullmatch(entry["version"])


def test_templates_use_only_root_level_primitive_tokens(services):
    """Spec: CDS Hooks 2.0.1, "Prefetch tokens"."""
    for entry in services:
        tokens = {token for template in entry["prefetch"].values() for token in TOKEN.findall(template)}
        assert tokens <= CONTEXT_STRINGS


def test_templates_ask_for_what_every_server_can_do(services):
    """Spec: CDS Hooks 2.0.1, "Prefetch query restrictions"."""
    for entry in services:
        for template in entry["prefetch"].values():
            assert set(re.findall(r"[?&]([^=]+)=", template)) <= {"patient", "_sort", "_count"}


def test_a_token_in_discovery_does_no_harm(service):
    headers = {"Authorization": "Bearer whatever"}
    assert service.client.get("/cds-services", headers=headers).status_code == 200
