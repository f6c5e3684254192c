"""Spec: CDS Hooks 2.0.1, "Cross-Origin Resource Sharing"; Fetch Standard, "CORS protocol"."""

import pytest

REGISTERED = "https://clinic.example.org"
PATHS = ("/cds-services", "/cds-services/rayhook-patient-view", "/cds-services/rayhook-patient-view/feedback")


@pytest.mark.parametrize("path", PATHS)
def test_a_registered_page_may_send_its_token(service, path):
    headers = {
        "Origin": REGISTERED,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    response = service.client.options(path, headers=headers)
    assert response.status_code == 204
    assert response.headers["Access-Control-Allow-Origin"] == REGISTERED
    assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize(
    "origin", ["https://evil.example", f"{REGISTERED}.evil.example", "http://clinic.example.org", "null"]
)
@pytest.mark.parametrize("path", PATHS)
def test_another_page_may_not(service, path, origin):
    response = service.client.options(path, headers={"Origin": origin})
    assert "Access-Control-Allow-Origin" not in response.headers


def test_a_registered_page_reads_cards(service, make):
    response = service.call(make.body(), Origin=REGISTERED)
    assert response.headers["Access-Control-Allow-Origin"] == REGISTERED
    assert response.headers["Vary"] == "Origin"


def test_a_registered_page_reads_refusals(service, make):
    response = service.call({}, Origin=REGISTERED)
    assert response.status_code == 400
    assert response.headers["Access-Control-Allow-Origin"] == REGISTERED


def test_a_registered_page_reads_the_discovery(service):
    response = service.client.get("/cds-services", headers={"Origin": REGISTERED})
    assert response.headers["Access-Control-Allow-Origin"] == REGISTERED
