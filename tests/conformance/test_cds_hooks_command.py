"""`rayhook conformance cds`: what an integrator sees, against this service and against one that breaks rules."""

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from rayhook.deploy.conformance.requirements import REQUIREMENTS, Level
from rayhook.deploy.conformance.target import PATIENT_VIEW, Target
from rayhook.deploy.conformance.tokens import FORGERIES
from tests.conformance.conftest import BASE_URL, ISSUER, served


@pytest.fixture
def key_file(service, tmp_path):
    path = tmp_path / "client.jwk.json"
    path.write_text(json.dumps(service.key.as_dict(private=True)))
    return path


def run(base_url, *arguments):
    """Run the command in a process of its own, as an integrator does."""
    command = [sys.executable, "-m", "rayhook.deploy.cli", "conformance", "cds", "--base-url", str(base_url)]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


def told(result):
    return {one["id"]: one for one in json.loads(result.stdout)["requirements"]}


@pytest.fixture
def whole(service, make, key_file, tmp_path):
    """Return the report of a run with a client and a patient who has a finding."""
    body = make.body()
    service.cards(body)
    request = tmp_path / "request.json"
    request.write_text(json.dumps(body))
    options = ["--issuer", ISSUER, "--key", key_file, "--audience", BASE_URL, "--request", request]
    return run(service.client.base_url, *options, "--json")


def test_this_service_keeps_every_requirement_that_can_be_seen(whole):
    results = told(whole)
    assert [(id_, one["detail"]) for id_, one in results.items() if one["result"] == "failed"] == []
    assert whole.returncode == 0
    # Plain http on loopback, no tenants, and what only the inside or the other party sees.
    unseen = {"R1", "R35", "R36", "R38", "R40", "R67", "R74", "R77", "R78", "R80", "R82"}
    assert {id_ for id_, one in results.items() if one["result"] != "passed"} == unseen


def test_every_requirement_is_told_once_and_says_why_where_it_cannot_be_seen(whole):
    results = json.loads(whole.stdout)["requirements"]
    assert [one["id"] for one in results] == [f"R{number}" for number in range(1, 85)]
    assert all(one.get("detail") for one in results if one["result"] in {"skipped", "unseen"})


def test_without_a_client_the_rest_is_skipped(service):
    result = run(service.client.base_url, "--json")
    outcomes = {id_: one["result"] for id_, one in told(result).items()}
    assert (outcomes["R8"], outcomes["R66"], outcomes["R44"], outcomes["R75"]) == (
        "passed",
        "passed",
        "skipped",
        "skipped",
    )
    assert result.returncode == 0


def test_the_table_names_every_requirement(service):
    result = run(service.client.base_url)
    assert all(re.search(rf"^\s*{one.id}\b", result.stdout, flags=re.MULTILINE) for one in REQUIREMENTS)
    assert "passed" in result.stdout


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kty": "oct", "k": "AA", "kid": "x"}'])
def test_a_key_that_is_none_is_refused(service, tmp_path, content):
    path = tmp_path / "key.json"
    path.write_text(content)
    result = run(service.client.base_url, "--key", path)
    assert result.returncode != 0


def careless() -> FastAPI:
    """A service as many are: it answers everybody, at once, with whatever."""
    app = FastAPI()
    card = {
        "uuid": "not-a-uuid",
        "summary": "x" * 140,
        "indicator": "success",
        "source": {"label": ""},
        "detail": "<b>bold</b>",
        "suggestions": [{"label": "do", "actions": [{"type": "create", "description": "d"}]}],
        "overrideReasons": [{"code": "a", "system": "b"}],
        "links": [{"label": "l", "url": "https://a.example", "type": "absolute", "appContext": "x"}],
    }

    @app.get("/cds-services")
    def discover() -> JSONResponse:
        entry = {
            "hook": "patient-view",
            "id": "rayhook-patient-view",
            "description": "",
            "title": None,
            "version": "2",
            "hookVersion": "9.9",
            "prefetch": {"a": "Patient/{{context.patient.id}}?_include=b:missing"},
        }
        return JSONResponse({"services": [entry]}, headers={"Access-Control-Allow-Origin": "*"})

    @app.post("/cds-services/{path:path}")
    async def call(request: Request, path: str) -> JSONResponse:
        await request.body()
        return JSONResponse({"cards": [card, card], "systemActions": []})

    return app


def test_a_careless_service_fails_by_name(key_file):
    """A checker that lets everything pass would be worth nothing."""
    with served(careless()) as url:
        result = run(url, "--issuer", ISSUER, "--key", key_file, "--json")
    failed = {id_ for id_, one in told(result).items() if one["result"] == "failed"}
    assert result.returncode == 1
    assert failed >= {
        f"R{n}" for n in (2, 6, 7, 10, 11, 13, 14, 19, 20, 21, 22, 24, 26, 29, 31, 32, 33, 37)
    } - {"R24"}
    assert failed >= {f"R{n}" for n in (42, 43, 44, 45, 46, 47, 49, 52, 54, 57, 59, 61, 64, 65, 66)}
    assert failed >= {f"R{n}" for n in (68, 69, 70, 71, 72, 73, 75, 79, 81, 83, 84)}


def test_a_service_that_is_not_there_fails(key_file):
    result = run("http://127.0.0.1:9", "--json")
    assert result.returncode == 1
    assert told(result)["R8"]["detail"].endswith("ConnectError")


def test_the_requirements_are_those_of_the_levels():
    musts = [one for one in REQUIREMENTS if one.level is Level.MUST]
    assert len(REQUIREMENTS) == 84
    assert len(musts) > 40
    assert all(one.text for one in REQUIREMENTS)


@pytest.fixture
def target(service):
    return Target(client=service.client, audience=BASE_URL, issuer=ISSUER, key=service.key)


class TestForgeries:
    """The matrix of tokens, each over HTTP: none is let in, none is told why, none does anything."""

    def test_there_are_more_than_forty(self):
        assert len({one.name for one in FORGERIES}) == len(FORGERIES) >= 40

    def test_the_token_they_are_made_from_is_let_in(self, target):
        assert target.post(target.body()).status_code == 200

    @pytest.mark.parametrize("forgery", FORGERIES, ids=lambda one: one.name)
    def test_none_is_let_in(self, service, target, forgery):
        response = target.post(target.body(), token=forgery.token(target, PATIENT_VIEW))
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["issue"][0]["diagnostics"] == "authentication is required"
        assert service.audit("cds_hooks:service:called") == []
        (event,) = service.audit("cds_hooks:client:refused")
        assert event.detail["reason"]

    @pytest.mark.parametrize("forgery", FORGERIES[:5], ids=lambda one: one.name)
    def test_nor_by_feedback(self, target, forgery):
        path = f"{PATIENT_VIEW}/feedback"
        assert target.post({"feedback": []}, path=path, token=forgery.token(target, path)).status_code == 401


def test_the_documentation_page_is_the_code_s(service):
    response = service.client.get("/cds-services/documentation")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "<script" not in response.text
    discovered = httpx.get(f"{service.client.base_url}/cds-services").json()["services"]
    for entry in discovered:
        assert entry["hook"] in response.text
        assert entry["id"] in response.text
    assert f"{BASE_URL}/cds-services/rayhook-patient-view" in response.text


def test_the_committed_page_is_what_the_code_tells():
    from rayhook.cds_hooks.documentation import markdown

    page = Path(__file__).resolve().parents[2] / "deploy" / "docs" / "cds-hooks.md"
    assert page.read_text() == markdown(), "python -m rayhook.cds_hooks.documentation writes it anew"


def test_the_documented_example_is_understood(service, make):
    from rayhook.cds_hooks.documentation import EXAMPLE, markdown

    assert json.dumps(EXAMPLE, indent=2) in markdown()
    body = EXAMPLE | {"fhirServer": make.fhir_base_url}
    assert service.call(body).status_code == 200


def test_every_topic_and_refusal_is_documented():
    from rayhook.cds_hooks.answers import Topic
    from rayhook.cds_hooks.documentation import markdown

    text = markdown()
    assert all(f"| `{topic.value}` |" in text for topic in Topic)
    assert all(f"| {status} |" in text for status in (400, 401, 403, 404, 412, 413, 422, 429, 503))
