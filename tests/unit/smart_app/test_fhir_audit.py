"""AuditEvents over FHIR: who may read them, what finds them, and that reading is told."""

import httpx
import pytest

from rayhook.auth.accounts import create_account, enrol_at_once
from rayhook.auth.roles import Role
from rayhook.auth.staff_sessions import open_account_session
from rayhook.deploy.demo.ehr_tokens import Grant
from rayhook.smart_app.fhir_audit import AUDIT_PARAMETERS
from rayhook.smart_app.staff_access import StaffCookies

PASSWORD = "purple lantern seven orchard"
READ = "patient/DiagnosticReport.rs"


@pytest.fixture
def issue(world):
    def issue(scope="system/AuditEvent.rs", *, patient=None, user=None):
        return world.ehr.authorization.tokens.issue(Grant(patient, scope, user=user))

    return issue


@pytest.fixture
def ask(world, issue):
    def ask(path="", *, token=None, cookie=None, kind="AuditEvent", **request):
        headers = request.pop("headers", {})
        if cookie is None:
            headers["Authorization"] = f"Bearer {token or issue()}"
        else:
            headers["Cookie"] = f"{StaffCookies(secure=False).session}={cookie}"
        url = f"{world.base_url}/fhir/R4/{kind}{path}"
        return httpx.request(request.pop("method", "GET"), url, headers=headers, timeout=20, **request)

    return ask


@pytest.fixture
def member(world):
    """Return the session id of somebody of the staff in that role."""

    def member(role=Role.COMPLIANCE_OFFICER):
        with world.database.sessions() as session:
            session.connection().exec_driver_sql("DELETE FROM staff_account")
            account = create_account(session, world.keyring, "officer", frozenset({role}))
            enrol_at_once(session, world.keyring, account.id, password=PASSWORD)
            session_id = open_account_session(session, account.id)
            session.commit()
        return session_id

    return member


@pytest.fixture
def read_report(world, ask, issue):
    """Let a report of the patient be read, and return its id."""

    def read_report(patient="phantom-a", study="1.2.3.9"):
        world.store(patient, study=study)
        token = issue(READ, patient=patient, user="Practitioner/demo")
        (entry,) = ask(token=token, kind="DiagnosticReport").json()["entry"]
        return entry["resource"]["id"]

    return read_report


def events(answer):
    assert answer.status_code == 200, answer.text
    return [entry["resource"] for entry in answer.json().get("entry", [])]


@pytest.mark.parametrize("scope", ["system/AuditEvent.rs", "system/*.read", "system/AuditEvent.s"])
def test_a_system_with_the_scope_searches(ask, issue, read_report, scope):
    read_report()
    assert events(ask(token=issue(scope)))


@pytest.mark.parametrize(
    ("scope", "patient", "user"),
    [
        ("system/DiagnosticReport.rs", None, None),
        ("patient/AuditEvent.rs", "phantom-a", None),
        ("user/AuditEvent.rs", None, "Practitioner/demo"),
        ("system/AuditEvent.rs", None, "Practitioner/demo"),
        ("system/AuditEvent.rs?outcome=0", None, None),
        ("system/AuditEvent.r", None, None),
    ],
)
def test_nothing_less_opens_the_audit(ask, issue, world, scope, patient, user):  # noqa: PLR0917
    assert ask(token=issue(scope, patient=patient, user=user)).status_code == 403
    assert world.kinds()[0] == "smart_app:access:denied"


def test_a_compliance_officer_searches_by_session(ask, member):
    assert events(ask(cookie=member()))


@pytest.mark.parametrize("role", [Role.ADMINISTRATOR, Role.MODEL_MANAGER])
def test_others_of_the_staff_do_not(ask, member, role):
    assert ask(cookie=member(role)).status_code == 403


def test_nobody_is_let_in_without_a_session(ask):
    assert ask(cookie="none").status_code == 401


def test_reading_the_audit_is_told_in_it(ask, member, world):
    ask("?outcome=0", cookie=member())
    newest = world.audited()[0]
    assert (str(newest.kind), newest.context["query"]) == ("audit:log:read", "AuditEvent?outcome=0")


def test_a_system_sees_its_own_ehrs_events_alone(ask, member, world, read_report):
    read_report()
    ask(cookie=member())  # an event of no EHR
    seen = {one["id"] for one in events(ask("?_count=200"))}
    assert seen
    foreign = next(record.hash for record in world.audited() if record.ehr_id is None)
    assert foreign not in seen
    assert foreign in {one["id"] for one in events(ask("?_count=200", cookie=member()))}
    assert ask(f"/{foreign}").status_code == 404
    assert ask(f"/{foreign}", cookie=member()).status_code == 200


def test_events_are_valid_and_are_read_one_by_one(ask, judges, read_report):
    read_report()
    answer = ask("?_count=20")
    assert judges.errors(answer.json()) == []
    one = events(answer)[0]
    assert ask(f"/{one['id']}").json() == one


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("patient=phantom-a", True),
        ("patient=Patient/phantom-a", True),
        ("patient={ehr}/fhir/Patient/phantom-a", True),
        ("patient=https://other.example/Patient/phantom-a", False),
        ("patient=phantom-z", False),
        ("agent=Practitioner/demo", True),
        ("agent=Practitioner/nobody", False),
        ("entity=DiagnosticReport/{report}", True),
        ("entity=DiagnosticReport/none", False),
        ("type=rest", True),
        ("type=http://terminology.hl7.org/CodeSystem/audit-event-type|rest", True),
        ("type=http://other.example|rest", False),
        ("type=nothing", False),
        ("subtype=search-type", True),
        ("subtype=search-type,delete", True),
        ("subtype=delete", False),
        ("outcome=0", True),
        ("outcome=12", False),
        ("outcome=7", False),
        ("date=ge2020-01-01", True),
        ("date=le2020-01-01", False),
        ("date=ge2020-01-01&date=lt2020-01-02", False),
        ("patient=phantom-a&subtype=search-type&outcome=0&date=gt2020", True),
        ("patient=phantom-a&subtype=delete", False),
    ],
)
def test_parameters(ask, read_report, world, query, found):
    report = read_report()
    query = query.format(ehr=world.ehr_url, report=report)
    searched = [one for one in events(ask(f"?{query}")) if one.get("subtype", [{}])[0].get("code")]
    assert bool(searched) is found


def test_every_parameter_was_asked_for():
    (mark,) = [one for one in test_parameters.pytestmark if one.name == "parametrize"]
    tested = {part.partition("=")[0] for query, _ in mark.args[1] for part in query.split("&")}
    assert tested == set(AUDIT_PARAMETERS)


def test_a_search_by_post_is_one_by_get(ask, read_report):
    read_report()
    posted = ask("/_search", method="POST", data={"patient": "phantom-a"})
    assert {one["id"] for one in events(posted)} == {one["id"] for one in events(ask("?patient=phantom-a"))}


@pytest.mark.parametrize("query", ["colour=red", "date=ne2026", "date=yesterday", "_count=x", "_cursor=abc"])
def test_what_is_not_understood_is_refused(ask, query):
    assert ask(f"?{query}").status_code == 400


def test_pages_follow_each_other_and_are_their_readers_alone(ask, issue, member, read_report):
    read_report()
    token = issue()
    first = ask("?_count=2&patient=phantom-a", token=token)
    (url,) = [link["url"] for link in first.json()["link"] if link["relation"] == "next"]
    assert "phantom" not in url
    query = url.partition("AuditEvent")[2]
    second = ask(query, token=token)
    assert not {one["id"] for one in events(first)} & {one["id"] for one in events(second)}
    assert ask(query, cookie=member()).status_code == 400
