"""Every route of the running service, every role, with no session, an expired one and one of another hospital.

The routes are those of the application itself: one that declares nothing, or a new one that nobody thought of,
fails here.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from rayhook.audit.review import recent
from rayhook.auth.accounts import create_account, enrol_at_once
from rayhook.auth.registry import EHR, CDSClient, EHRRegistry, SMARTClient
from rayhook.auth.roles import PERMISSIONS, STAFF_ROLES, Role
from rayhook.auth.scopes import ScopeSet
from rayhook.auth.sessions import SMARTSession, create_session
from rayhook.auth.staff_sessions import open_account_session
from rayhook.deploy.demo.run import serving
from rayhook.deploy.role_tables import bare_app
from rayhook.deploy.service import Service
from rayhook.inference import jobs
from rayhook.inference.report import build_resources
from rayhook.inference.study import StudyReference
from rayhook.smart_app.access import Cookies
from rayhook.smart_app.routes_access import (
    CDS_CLIENT,
    DICOM_SENDER,
    EHR_NOTIFICATION,
    EMERGENCY,
    OPEN,
    PUBLIC,
    SESSION,
    STAFF,
    RouteAccess,
    route_accesses,
)
from rayhook.smart_app.staff_access import StaffCookies
from rayhook.smart_app.window import HEADER
from tests.ports import free_url
from tests.unit.smart_app.conftest import MANIFEST, MODEL, study_result

PATIENT = "patient-1"
PUBLIC_BASE_URL = "http://127.0.0.1:8000"
STUDY = "1.2.3.77"
SCOPES = "openid fhirUser patient/*.cruds"

LET_IN = "let in"
NOBODY = "unauthenticated"
SIGN_IN = "to the sign-in page"
CONFIRM = "to the second factor"
DENIED = "forbidden"
# Who asks here is no browser: no cookie and no form of another site opens anything.
MACHINES = {CDS_CLIENT, DICOM_SENDER, EHR_NOTIFICATION}


def hospital(name: str, base: str) -> EHR:
    return EHR(
        id=name,
        name=name,
        fhir_base_urls=(f"{base}/{name}",),
        cds_client=CDSClient(issuer=f"{base}/{name}", jwks_url=f"{base}/{name}/jwks"),
        smart=SMARTClient(client_id="rayhook", issuer=f"{base}/{name}", scopes=("openid", "fhirUser")),
    )


@dataclass(frozen=True)
class World:
    """The service with one result of hospital "a"; the patient of hospital "b" has the same id by accident."""

    service: Service
    base_url: str
    peer_url: str
    routes: list[RouteAccess]
    result_id: str
    job_id: str

    def smart_session(self, role: Role, *, ehr_id: str = "a") -> dict[str, str]:
        new = SMARTSession(
            ehr_id=ehr_id,
            fhir_base_url=f"{self.peer_url}/{ehr_id}",
            client_id="rayhook",
            scopes=ScopeSet.parse(SCOPES),
            access_token="token",
            access_token_expires_at=4e9,
            patient_id=PATIENT,
            fhir_user="Practitioner/1",
            roles=frozenset({role}),
            window_mark="mark",
        )
        with self.service.database.sessions() as session:
            session_id = create_session(session, self.service.keyring, new)
            session.commit()
        return {Cookies(secure=False).session: session_id}

    def staff_session(self, role: Role) -> dict[str, str]:
        keyring = self.service.keyring
        with self.service.database.sessions() as session:
            session.execute(text("DELETE FROM staff_account"))
            account = create_account(session, keyring, "somebody", STAFF_ROLES)
            enrol_at_once(session, keyring, account.id, password="purple lantern seven orchard")
            # A role of an EHR that got into the table all the same must open nothing of the staff.
            session.execute(text("UPDATE staff_account SET roles = :role"), {"role": role.value})
            session_id = open_account_session(session, account.id)
            session.commit()
        return {StaffCookies(secure=False).session: session_id}

    def end_all(self) -> None:
        with self.service.database.sessions() as session:
            for table in ("smart_session", "staff_session"):
                session.execute(text(f"UPDATE {table} SET last_used_at = last_used_at - 901"))
            session.commit()

    def url(self, path: str, **values: str) -> str:
        known = {
            "account_id": "0" * 32,
            "frame": "0",
            "job_id": self.job_id,
            "name": "app.css",
            "name:path": "nothing.js",
            "resource_type": "DiagnosticReport",
            "result_id": self.result_id,
            **values,
        }
        for part in path.split("{")[1:]:
            name = part.partition("}")[0]
            path = path.replace(f"{{{name}}}", known.get(name, "0" * 32))
        return f"{self.base_url}{path}"

    def ask(self, route: RouteAccess, cookies: dict[str, str], **values: str) -> httpx.Response:
        headers = {
            "Origin": PUBLIC_BASE_URL,
            "X-Request-Id": "0f0e0d0c-0b0a-4000-8000-000000000001",
            HEADER: "mark",
            "Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items()),
        }
        return httpx.request(route.method, self.url(route.path, **values), headers=headers, timeout=20)

    def outcomes(self, cookies: dict[str, str], routes: list[RouteAccess]) -> dict[str, str]:
        with httpx.Client(timeout=20) as client:
            client.cookies.update(cookies)
            headers = {"Origin": PUBLIC_BASE_URL, HEADER: "mark"}
            return {
                f"{route.method} {route.path}": outcome(
                    client.request(route.method, self.url(route.path), headers=headers)
                )
                for route in routes
            }

    def denials(self) -> int:
        with self.service.database.reading() as session:
            found = recent(session, self.service.keyring, limit=500)
        return sum(record.kind == "smart_app:access:denied" for record in found)

    @property
    def smart(self) -> list[RouteAccess]:
        """The routes for the people of an EHR, with a permission to ask for."""
        return [one for one in self.routes if one.permission and one.kind != "Staffing"]

    @property
    def staff(self) -> list[RouteAccess]:
        return [one for one in self.routes if one.permission and one.kind == "Staffing"]


def outcome(response: httpx.Response) -> str:
    location = response.headers.get("Location", "")
    if response.status_code == 303 and location.startswith("/sign-in/confirm"):
        return CONFIRM
    if response.status_code == 303 and location.startswith("/sign-in"):
        return SIGN_IN
    refused = {401: NOBODY, 403: DENIED, 500: "failed"}
    return refused.get(response.status_code, LET_IN)


def expected(routes: list[RouteAccess], told: str) -> dict[str, str]:
    return {f"{route.method} {route.path}": told for route in routes}


def by_role(routes: list[RouteAccess], role: Role) -> dict[str, str]:
    return {
        f"{route.method} {route.path}": LET_IN if route.permission in PERMISSIONS[role] else DENIED
        for route in routes
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    base_url, peer_url = free_url(), free_url()
    # An EHR that knows nothing: it answers at once, and what it would have said is not the question here.
    registry = EHRRegistry(tuple(hospital(name, peer_url) for name in ("a", "b")))
    with ExitStack() as stack:
        app, service = stack.enter_context(bare_app(tmp_path_factory.mktemp("matrix"), registry))
        result_id, job_id = seed(service, peer_url)
        stack.enter_context(serving(FastAPI(), peer_url))
        stack.enter_context(serving(app, base_url))
        yield World(service, base_url, peer_url, route_accesses(app.routes), result_id, job_id)


def seed(service: Service, peer_url: str) -> tuple[str, str]:
    reference = StudyReference(
        ehr_id="a",
        fhir_base_url=f"{peer_url}/a",
        patient_id=PATIENT,
        imaging_study_id="study-1",
        study_instance_uid=STUDY,
        dicomweb_url=f"{peer_url}/dicom-web",
        token_required=True,
        modalities=("MR",),
        description="HEAD-CANARY",
    )
    result = study_result(STUDY)
    with service.database.sessions() as session:
        key = jobs.job_key(reference, [MODEL])
        row, _ = jobs.enqueue(session, service.keyring, reference, None, key=key, request_id="test")
        claimed = jobs.claim(session, service.keyring, row.id, lease_s=60)
        assert claimed is not None
        resources = build_resources(reference, result, MANIFEST, organization="Test site")
        result_id = jobs.complete(session, service.keyring, claimed, result, resources)
        session.commit()
    assert result_id is not None
    return result_id, row.id


def test_every_route_says_what_it_asks_for(world):
    silent = [f"{one.method} {one.path}" for one in world.routes if not (one.permission or one.instead)]
    assert silent == []


def test_what_is_open_is_still_a_route(world):
    assert set(OPEN) - {one.path for one in world.routes} == set()


def test_the_matrix_has_routes_for_both_kinds_of_people(world):
    assert world.smart
    assert world.staff


def test_without_a_session_no_page_of_a_patient_is_shown(world):
    assert world.outcomes({}, world.smart) == expected(world.smart, NOBODY)


def test_without_a_session_the_staff_has_to_sign_in(world):
    assert world.outcomes({}, world.staff) == expected(world.staff, SIGN_IN)


def test_what_is_public_asks_for_nothing(world):
    public = [one for one in world.routes if one.instead == PUBLIC and one.method == "GET"]
    assert world.outcomes({}, public) == expected(public, LET_IN)


def test_a_page_asks_whether_its_session_lives(world):
    routes = [one for one in world.routes if one.instead == SESSION]
    assert world.outcomes({}, routes) == expected(routes, NOBODY)


def test_an_emergency_without_a_session_is_nobodys(world):
    routes = [one for one in world.routes if one.instead == EMERGENCY]
    assert world.outcomes({}, routes) == expected(routes, NOBODY)


def test_the_first_page_of_the_staff_is_for_who_is_signed_in(world):
    routes = [one for one in world.routes if one.instead == STAFF]
    assert world.outcomes({}, routes) == expected(routes, SIGN_IN)


def test_a_cds_call_without_a_token_is_nobodys(world):
    routes = [one for one in world.routes if one.instead == CDS_CLIENT]
    body = {"hook": "patient-view", "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea", "context": {}}
    service_id = httpx.get(f"{world.base_url}/cds-services").json()["services"][0]["id"]
    answers = {
        httpx.post(world.url(one.path, service_id=service_id), json=body, timeout=20).status_code
        for one in routes
    }
    assert answers == {401}


@pytest.mark.parametrize("asked", [DICOM_SENDER, EHR_NOTIFICATION])
def test_who_shows_no_secret_tells_us_nothing(world, asked):
    routes = [one for one in world.routes if one.instead == asked]
    sessions = {**world.smart_session(Role.RADIOLOGIST), **world.staff_session(Role.ADMINISTRATOR)}
    assert routes
    assert world.outcomes(sessions, routes) == expected(routes, NOBODY)


@pytest.mark.parametrize("role", Role)
def test_a_live_session_opens_what_the_role_allows(world, role):
    assert world.outcomes(world.smart_session(role), world.smart) == by_role(world.smart, role)


@pytest.mark.parametrize("role", Role)
def test_a_live_session_of_the_staff_opens_what_the_role_allows(world, role):
    assert world.outcomes(world.staff_session(role), world.staff) == by_role(world.staff, role)


@pytest.mark.parametrize("role", Role)
def test_every_denial_is_audited(world, role):
    before = world.denials()
    routes = [one for one in world.smart if one.permission not in PERMISSIONS[role]]
    world.outcomes(world.smart_session(role), routes)
    assert world.denials() - before == len(routes)


@pytest.mark.parametrize("role", Role)
def test_an_expired_session_opens_nothing(world, role):
    cookies = world.smart_session(role)
    world.end_all()
    assert world.outcomes(cookies, world.smart) == expected(world.smart, NOBODY)


@pytest.mark.parametrize("role", Role)
def test_an_expired_session_of_the_staff_opens_nothing(world, role):
    cookies = world.staff_session(role)
    world.end_all()
    assert world.outcomes(cookies, world.staff) == expected(world.staff, SIGN_IN)


@pytest.mark.parametrize("role", Role)
def test_another_hospitals_person_gets_by_role_what_is_not_of_a_result(world, role):
    cookies = world.smart_session(role, ehr_id="b")
    assert world.outcomes(cookies, world.smart) == by_role(world.smart, role)


def without_request_id(page):
    """The number for support is another one on every page."""
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "", page)


@pytest.mark.parametrize("role", [Role.CLINICIAN, Role.RADIOLOGIST])
def test_another_hospitals_result_is_as_one_that_does_not_exist(world, role):
    cookies = world.smart_session(role, ehr_id="b")
    differing = []
    for route in world.smart:
        if "{result_id}" not in route.path and "{job_id}" not in route.path:
            continue
        real = world.ask(route, cookies)
        absent = world.ask(route, cookies, result_id="f" * 32, job_id="f" * 32)
        told = real.text.replace(world.result_id, "f" * 32).replace(world.job_id, "f" * 32)
        same = without_request_id(told) == without_request_id(absent.text)
        if real.status_code != absent.status_code or not same or real.status_code < 400:
            differing.append(f"{route.method} {route.path}")
    assert differing == []


@pytest.mark.parametrize("role", [Role.CLINICIAN, Role.RADIOLOGIST])
def test_nothing_of_another_hospitals_patient_is_in_any_answer(world, role):
    cookies = world.smart_session(role, ehr_id="b")
    reads = [one for one in world.smart if one.method == "GET"]
    assert [one.path for one in reads if "HEAD-CANARY" in world.ask(one, cookies).text] == []


def test_the_own_hospitals_list_names_the_study(world):
    route = next(one for one in world.smart if one.path == "/patient")
    assert "HEAD-CANARY" in world.ask(route, world.smart_session(Role.CLINICIAN)).text


@pytest.mark.parametrize("role", Role)
def test_a_session_of_an_ehr_that_is_not_registered_opens_nothing(world, role):
    cookies = world.smart_session(role, ehr_id="gone")
    assert world.outcomes(cookies, world.smart) == expected(world.smart, NOBODY)


def test_a_session_of_an_ehr_is_none_of_the_staff(world):
    (session_id,) = world.smart_session(Role.RADIOLOGIST).values()
    cookies = {StaffCookies(secure=False).session: session_id}
    assert world.outcomes(cookies, world.staff) == expected(world.staff, SIGN_IN)


def test_a_session_of_the_staff_is_none_of_an_ehr(world):
    (session_id,) = world.staff_session(Role.ADMINISTRATOR).values()
    cookies = {Cookies(secure=False).session: session_id}
    assert world.outcomes(cookies, world.smart) == expected(world.smart, NOBODY)


def test_what_matters_asks_for_the_second_factor_again(world):
    cookies = world.staff_session(Role.ADMINISTRATOR)
    with world.service.database.sessions() as session:
        session.execute(text("UPDATE staff_session SET proved_at = proved_at - 601"))
        session.commit()
    routes = [one for one in world.staff if one.fresh and one.permission in PERMISSIONS[Role.ADMINISTRATOR]]
    assert routes
    assert world.outcomes(cookies, routes) == expected(routes, CONFIRM)


def test_a_form_of_another_site_does_nothing(world):
    cookies = world.staff_session(Role.ADMINISTRATOR)
    posts = [one for one in world.routes if one.method == "POST" and one.instead not in MACHINES]
    headers = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", HEADER: "mark"}
    let_in = []
    smart = world.smart_session(Role.RADIOLOGIST)
    with httpx.Client(timeout=20) as client:
        client.cookies.update({**cookies, **smart})
        form = {"language": "fr", "name": "x", "password": "x", "code": "1", "repeated": "x"}
        for route in posts:
            answer = client.post(world.url(route.path), data=form, headers=headers)
            if answer.status_code != 403:
                let_in.append((route.path, answer.status_code))
    assert let_in == []
