"""No patient's data without its event: every route of the running application, counted against the log."""

import uuid

import httpx
import pytest

from rayhook.audit.review import AuditSearch, search
from rayhook.auth.roles import PERMISSIONS, STAFF_ROLES, Permission, Role
from rayhook.smart_app.window import HEADER
from tests.conformance.test_access_matrix import PATIENT, PUBLIC_BASE_URL, world  # noqa: F401 - a fixture
from tests.doubles.full_log import full_log

# What these permissions open holds nothing of a patient: every other one does, until somebody says otherwise here.
_WITHOUT_PATIENTS = frozenset(
    {
        Permission.AUTH_ACCOUNT_MANAGE,
        Permission.AUTH_ROLE_READ,
        Permission.DEPLOY_SETTINGS_READ,
        Permission.INFERENCE_MODEL_READ,
    }
)
_UNREAD = frozenset({400, 413, 415, 422})
# These show the patient of the tests while the log works; studies need a PACS, and are with the viewer's tests.
_SHOWING = {
    ("GET", "/fhir/R4/{resource_type}"),
    ("GET", "/fhir/R4/{resource_type}/{resource_id}"),
    ("GET", "/fhir/R4/{resource_type}/{resource_id}/_history/{version_id}"),
    ("GET", "/patient"),
    ("GET", "/results/{result_id}"),
    ("GET", "/results/{result_id}/image.png"),
    ("GET", "/results/{result_id}/overlay.png"),
    ("GET", "/staff/audit"),
    ("GET", "/staff/audit/events/{seq}"),
}
_CANARIES = ("HEAD-CANARY", PATIENT, "Practitioner/1")


def session_for(world, route):  # noqa: F811
    """Return the cookies of somebody whom the route lets in."""
    role = next(role for role in Role if route.permission in PERMISSIONS[role])
    return world.staff_session(role) if route.kind == "Staffing" else world.smart_session(role)


def ask(world, route, cookies, **values) -> tuple[httpx.Response, str]:  # noqa: F811
    request_id = uuid.uuid4().hex
    headers = {
        "Origin": PUBLIC_BASE_URL,
        HEADER: "mark",
        "X-Request-Id": request_id,
        "Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items()),
    }
    url = world.url(route.path, **values)
    return httpx.request(route.method, url, headers=headers, timeout=20), request_id


def is_of_a_patient(response) -> bool:
    """Say whether the answer is a patient's image, or names who the test's patient is."""
    is_image = response.status_code == 200 and response.headers["Content-Type"].startswith("image/")
    return is_image or any(canary in response.text for canary in _CANARIES)


def real_ids(world) -> dict[str, str]:  # noqa: F811
    """Return what there is to show: a report with its version, and an event of a patient."""
    [route] = [one for one in world.routes if (one.method, one.path) == ("GET", "/fhir/R4/{resource_type}")]
    report = ask(world, route, session_for(world, route))[0].json()["entry"][0]["resource"]
    with world.service.database.reading() as session:
        wanted = AuditSearch(ehr_id="a", patient_id=PATIENT)
        [event, *_] = search(session, world.service.keyring, wanted, limit=1).records
    return {
        "resource_id": report["id"],
        "version_id": report.get("meta", {}).get("versionId", "1"),
        "seq": str(event.seq),
    }


def events_of(world, request_id):  # noqa: F811
    with world.service.database.reading() as session:
        return search(session, world.service.keyring, AuditSearch(request_id=request_id), limit=20).records


def patient_routes(world):  # noqa: F811
    return [one for one in world.routes if one.permission and one.permission not in _WITHOUT_PATIENTS]


def test_there_are_routes_to_count(world):  # noqa: F811
    assert len(patient_routes(world)) > 20


def test_every_route_of_a_patient_leaves_its_event(world):  # noqa: F811
    """100 %: a route that lets somebody in, or finds nothing, says so in the log under the request's id."""
    silent = []
    for route in patient_routes(world):
        response, request_id = ask(world, route, session_for(world, route))
        assert response.status_code != 500
        # A request that could not even be read asked nothing of anybody's data.
        if not events_of(world, request_id) and response.status_code not in _UNREAD:
            silent.append(f"{route.method} {route.path}: {response.status_code}")
    assert silent == []


def test_an_event_knows_who_asked_and_from_where(world):  # noqa: F811
    [route] = [one for one in world.routes if (one.method, one.path) == ("GET", "/results/{result_id}")]
    _, request_id = ask(world, route, session_for(world, route))
    viewed = [event for event in events_of(world, request_id) if event.patient_id == PATIENT]
    assert {(event.agent, event.context["client_address"]) for event in viewed} == {
        ("Practitioner/1", "127.0.0.1")
    }


@pytest.fixture(scope="module")
def shown(world):  # noqa: F811
    """The routes that show the patient while the log works, by method and path."""
    ids = real_ids(world)
    return {
        (route.method, route.path)
        for route in patient_routes(world)
        if is_of_a_patient(ask(world, route, session_for(world, route), **ids)[0])
    }


def test_the_requests_of_these_tests_would_show_the_patient(shown):
    """What is refused below is not refused for want of something to show."""
    assert shown >= _SHOWING


def refused(world, route, cookies, ids) -> str | None:  # noqa: F811
    """Ask, and return what is wrong with the answer where it is not a refusal without the patient."""
    response, _ = ask(world, route, cookies, **ids)
    if is_of_a_patient(response) or response.status_code < 400 or response.status_code == 500:
        return f"{route.method} {route.path}: {response.status_code}"
    return None


def test_without_the_log_no_patients_data_leaves(world, shown):  # noqa: F811
    """Fail closed: where the event cannot be written every such route refuses, with nothing of a patient."""
    ids = real_ids(world)
    routes = [route for route in patient_routes(world) if route.kind != "Staffing"]
    sessions = {route: session_for(world, route) for route in routes}
    with full_log(world.service.database.engine):
        wrong = [refused(world, route, cookies, ids) for route, cookies in sessions.items()]
        told = {
            (route.method, route.path): ask(world, route, cookies, **ids)[0].status_code
            for route, cookies in sessions.items()
            if (route.method, route.path) in shown
        }
        assert httpx.get(f"{world.base_url}/health/live").status_code == 200
    assert list(filter(None, wrong)) == []
    assert set(told.values()) == {503}


@pytest.mark.parametrize("role", [role for role in Role if role in STAFF_ROLES])
def test_without_the_log_no_patients_data_leaves_to_the_staff(world, shown, role):  # noqa: F811
    ids = real_ids(world)
    cookies = world.staff_session(role)
    routes = [
        route
        for route in patient_routes(world)
        if route.kind == "Staffing" and route.permission in PERMISSIONS[role]
    ]
    with full_log(world.service.database.engine):
        wrong = [refused(world, route, cookies, ids) for route in routes]
    assert list(filter(None, wrong)) == []


def test_without_the_log_no_officer_reads_it(world):  # noqa: F811
    cookies = world.staff_session(Role.COMPLIANCE_OFFICER)
    routes = [
        one for one in patient_routes(world) if one.method == "GET" and one.path.startswith("/staff/audit")
    ]
    with full_log(world.service.database.engine):
        answers = {route.path: ask(world, route, cookies)[0].status_code for route in routes}
    # An address of a search that no session made is refused before anything is read.
    assert answers.pop("/staff/audit/found/{handle}") == 400
    assert len(answers) > 5
    assert set(answers.values()) == {503}
