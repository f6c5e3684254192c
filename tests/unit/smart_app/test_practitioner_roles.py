"""PractitionerRole.code from an EHR that is a small FHIR server here, and what is made of it at launch."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from sqlalchemy import text
from starlette.responses import JSONResponse, Response

from rayhook.auth import registry as registry_module
from rayhook.auth.registry import EHR, CDSClient
from rayhook.auth.role_rules import RoleRule
from rayhook.auth.roles import Role, read_roles
from rayhook.auth.scopes import ScopeSet
from rayhook.deploy.demo.run import serving
from rayhook.fhir.transport import Transport
from rayhook.smart_app.practitioner_roles import read_practitioner_roles
from tests.ports import free_port

from .conftest import World

SCT = "http://snomed.info/sct"
RADIOLOGIST = f"{SCT}|66862007"
SCOPES = "openid fhirUser user/PractitionerRole.rs"
RULE = RoleRule(roles=frozenset({Role.RADIOLOGIST}), practitioner_role=RADIOLOGIST)


def role(*codes: str, practitioner: str = "Practitioner/1", **changes: Any) -> dict[str, Any]:
    coding = [{"system": SCT, "code": code} for code in codes]
    return {
        "resourceType": "PractitionerRole",
        "id": "r1",
        "practitioner": {"reference": practitioner},
        "code": [{"coding": coding}],
        **changes,
    }


@dataclass
class FHIRServer:
    """Answers every search with `roles`, and remembers what it was asked."""

    base_url: str
    roles: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    status: int = 200

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/fhir/{path:path}")
        def answer(path: str, request: Request) -> Response:
            self.asked.append(f"{path}?{request.url.query}" if request.url.query else path)
            self.tokens.append(request.headers.get("Authorization"))
            if self.status != 200:
                return Response(status_code=self.status)
            if "/" in path:
                return JSONResponse(self.roles[0])
            entries = [{"resource": one, "search": {"mode": "match"}} for one in self.roles]
            return JSONResponse({"resourceType": "Bundle", "type": "searchset", "entry": entries})

        return app

    def read(
        self, *rules: RoleRule, fhir_user: str | None = "Practitioner/1", scopes: str = SCOPES
    ) -> frozenset[str]:
        ehr = EHR(
            id="north",
            name="North",
            fhir_base_urls=(f"{self.base_url}/fhir",),
            cds_client=CDSClient(issuer=self.base_url, jwks_url=f"{self.base_url}/jwks"),
            role_rules=rules or (RULE,),
        )
        transport = Transport(allow_loopback_http=True)
        try:
            return read_practitioner_roles(
                transport,
                ehr,
                fhir_base_url=f"{self.base_url}/fhir",
                access_token="token-canary",
                scopes=ScopeSet.parse(scopes),
                fhir_user=fhir_user,
            )
        finally:
            transport.close()


@pytest.fixture
def server() -> Iterator[FHIRServer]:
    server = FHIRServer(f"http://127.0.0.1:{free_port()}")
    with serving(server.app(), server.base_url):
        yield server


def test_the_codes_of_the_users_roles_are_read(server):
    server.roles = [role("66862007", "1"), role("2")]
    assert server.read() == {RADIOLOGIST, f"{SCT}|1", f"{SCT}|2"}


def test_the_users_own_token_asks_for_active_roles(server):
    server.read()
    assert server.asked == ["PractitionerRole?practitioner=Practitioner%2F1&active=true"]
    assert server.tokens == ["Bearer token-canary"]


def test_a_user_who_is_a_practitioner_role_is_read_by_id(server):
    server.roles = [role("66862007")]
    assert server.read(fhir_user="PractitionerRole/r1") == {RADIOLOGIST}


@pytest.mark.parametrize(
    "found",
    [
        role("66862007", practitioner="Practitioner/2"),
        role("66862007", active=False),
        role("66862007", practitioner="nobody"),
        {"resourceType": "PractitionerRole", "id": "r1"},
        {"resourceType": "Practitioner", "id": "1", "code": [{"coding": [{"system": SCT, "code": "1"}]}]},
        role("66862007", code=[{"text": "Radiologist"}, {"coding": [{"code": "66862007"}]}]),
    ],
    ids=["another's", "inactive", "reference", "empty", "type", "no system"],
)
def test_what_does_not_say_that_the_user_is_one_gives_nothing(server, found):
    server.roles = [found]
    assert server.read() == frozenset()


def test_without_a_rule_that_wants_to_know_nothing_is_asked(server):
    server.read(RoleRule(roles=frozenset({Role.RADIOLOGIST}), fhir_user="Practitioner/1"))
    assert server.asked == []


@pytest.mark.parametrize("scopes", ["openid fhirUser", "user/Practitioner.rs", "user/PractitionerRole.c"])
def test_without_the_scope_nothing_is_asked(server, scopes):
    assert (server.read(scopes=scopes), server.asked) == (frozenset(), [])


@pytest.mark.parametrize("fhir_user", [None, "https://elsewhere.example/fhir/Practitioner/1"])
def test_who_is_not_of_this_server_is_not_asked_about(server, fhir_user):
    assert (server.read(fhir_user=fhir_user), server.asked) == (frozenset(), [])


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_an_ehr_that_does_not_answer_gives_no_role(server, status):
    server.status = status
    assert server.read() == frozenset()


def roles_in(world: World) -> frozenset[Role]:
    with world.database.sessions() as session:
        return read_roles(session.execute(text("SELECT roles FROM smart_session")).scalar_one())


def test_the_demos_clinician_is_a_clinician(world):
    with world.browser() as browser:
        world.launch(browser, "phantom-a")
    assert roles_in(world) == {Role.CLINICIAN}


def test_the_demos_radiologist_is_one_by_the_rule(world):
    with world.browser() as browser:
        browser.get(f"{world.ehr_url}/user", params={"user": "demo-radiologist"})
        world.launch(browser, "phantom-a")
    assert roles_in(world) == {Role.CLINICIAN, Role.RADIOLOGIST}


def test_the_demo_knows_no_other_user(world):
    with world.browser() as browser:
        browser.get(f"{world.ehr_url}/user", params={"user": "somebody"})
        world.launch(browser, "phantom-a")
    assert roles_in(world) == {Role.CLINICIAN}


@pytest.fixture
def refused(world: World, monkeypatch: pytest.MonkeyPatch) -> httpx.Response:
    """The answer to a launch by somebody whom no rule gives a role."""
    monkeypatch.setattr(registry_module, "derive_roles", lambda *_, **__: frozenset())
    with world.browser() as browser:
        return world.launch(browser, "phantom-a")


def test_who_has_no_role_is_refused_at_launch(refused):
    assert (refused.status_code, "your account has no role here" in refused.text) == (403, True)


def test_the_refusal_is_told_to_the_audit(world, refused):
    record = world.audited()[0]
    assert (record.kind, record.detail["code"]) == ("smart_app:launch:refused", "role_missing")


def test_no_session_is_left_of_it(world, refused):
    with world.database.sessions() as session:
        assert session.execute(text("SELECT count(*) FROM smart_session")).scalar_one() == 0
