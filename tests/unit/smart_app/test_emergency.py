"""Emergency access: offered by registration alone, for a reason, to read, for half an hour, and reviewed."""

import re
from contextlib import ExitStack

import pytest

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditLog
from rayhook.audit.unusual import Watching, review_items
from rayhook.audit.watch import Rule, Thresholds
from rayhook.deploy.demo.ehr import create_ehr, demo_registry_toml
from rayhook.deploy.demo.run import serving
from rayhook.deploy.middleware import RequestContext
from tests.ports import free_port

from .conftest import Clock, World, app_of, catalogue, smart_service

REASON = "unconscious after a fall, no colleague can be reached"
PATIENT = "phantom-a"


def hospital(stack, folder, *, break_glass: bool) -> World:
    """A hospital whose registration gives no practitioner a role by themselves."""
    base_url, ehr_url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    rules = f"practitioner_roles = []\nbreak_glass = {str(break_glass).lower()}\n"
    toml = demo_registry_toml(ehr_base_url=ehr_url, pacs_base_url="http://127.0.0.1:9")
    registry = folder / "ehrs.toml"
    registry.write_text(toml.replace("dicom_results =", f"{rules}dicom_results =", 1))
    ehr_app = create_ehr(
        catalogue(),
        base_url=ehr_url,
        cds_base_url=base_url,
        pacs_base_url="http://127.0.0.1:9",
        keys_dir=folder / "ehr-keys",
    )
    deps, database, own_tokens = smart_service(stack, folder, registry, base_url=base_url)
    app = app_of(deps)
    app.add_middleware(RequestContext, https=False)
    stack.enter_context(serving(app, base_url))
    stack.enter_context(serving(ehr_app, ehr_url))
    assert isinstance(deps.clock, Clock)
    server = ehr_app.state.demo.authorization
    server.clock = server.tokens.clock = deps.clock
    return World(base_url, ehr_url, ehr_app.state.demo, database, deps.keyring, deps.clock, own_tokens)


@pytest.fixture(scope="module")
def open_hospital(tmp_path_factory):
    with ExitStack() as stack:
        yield hospital(stack, tmp_path_factory.mktemp("open"), break_glass=True)


@pytest.fixture
def there(open_hospital):
    yield open_hospital
    open_hospital.clock.ahead_s = 0.0


@pytest.fixture
def launched(there):
    """A practitioner without a role who opened the app, and their refused first page."""
    with there.browser() as browser:
        browser.get(f"{there.ehr_url}/user?user=demo-clinician")
        page = there.launch(browser, PATIENT)
        yield browser, page


def form_of(page) -> str:
    return re.search(r'href="(/emergency[^"]*)"', page.text)[1].replace("&amp;", "&")


def start(there, browser, page, reason=REASON):
    headers = {"Origin": there.base_url}
    return browser.post(f"{there.base_url}{form_of(page)}", data={"reason": reason}, headers=headers)


def test_without_a_role_the_page_is_refused_and_an_emergency_offered(launched):
    _, page = launched
    assert page.status_code == 403
    assert "Emergency access" in page.text


def test_an_emergency_needs_a_reason(there, launched):
    answer = start(there, *launched, reason=" because ")
    assert answer.status_code == 400
    assert "ten letters" in answer.text
    assert there.kinds()[0] != AuditKind.SMART_APP_EMERGENCY_STARTED


def test_with_a_reason_the_patient_is_shown_and_the_page_says_until_when(there, launched):
    answer = start(there, *launched)
    assert answer.status_code == 200
    assert "to read only" in answer.text


def test_start_and_all_that_follows_is_told_as_breaking_the_glass(there, launched):
    there.store(PATIENT)
    start(there, *launched)
    [started, *_] = [one for one in there.audited() if one.kind is AuditKind.SMART_APP_EMERGENCY_STARTED]
    assert started.context["purpose"] == "BTG"
    assert started.detail["reason"] == REASON
    assert started.patient_id == PATIENT
    after = [one for one in there.audited() if one.seq > started.seq]
    assert after
    assert {one.context.get("purpose") for one in after} == {"BTG"}


def test_nothing_is_answered_in_an_emergency(there, launched):
    browser, _ = launched
    result_id = there.store(PATIENT, study="1.2.3.10")
    start(there, *launched)
    mark = re.search(r"\?w=([^\"]+)\"", browser.get(f"{there.base_url}/results/{result_id}").text)
    answer = browser.post(
        f"{there.base_url}/results/{result_id}/answers?w={mark[1]}",
        data={"action": "accept"},
        headers={"Origin": there.base_url},
    )
    assert answer.status_code == 403


def test_it_ends_by_itself_after_half_an_hour(there, launched):
    browser, _ = launched
    start(there, *launched)
    for minutes in (10, 20, 29):
        there.clock.ahead_s = minutes * 60
        assert browser.get(f"{there.base_url}/patient").status_code == 200
    there.clock.ahead_s = 30 * 60 + 1
    assert browser.get(f"{there.base_url}/patient").status_code == 403


def test_another_session_of_the_same_person_has_none(there, launched):
    start(there, *launched)
    with there.browser() as other:
        other.get(f"{there.ehr_url}/user?user=demo-clinician")
        assert there.launch(other, PATIENT).status_code == 403


def test_it_is_found_for_review(there, launched):
    start(there, *launched)
    Watching(
        there.database.sessions, there.database.reading, there.keyring, AuditLog(there.keyring), Thresholds()
    ).step()
    with there.database.reading() as session:
        items = review_items(session, there.keyring)
    assert (Rule.BREAK_GLASS, PATIENT) in {(item.rule, item.patient_id) for item in items}


def test_who_has_a_role_is_offered_none(there):
    with there.browser() as browser:
        browser.get(f"{there.ehr_url}/user?user=demo-radiologist")
        assert there.launch(browser, PATIENT).status_code == 200
        assert browser.get(f"{there.base_url}/emergency").status_code == 404


def test_an_ehr_that_is_not_registered_for_it_lets_nobody_in(tmp_path):
    with ExitStack() as stack:
        closed = hospital(stack, tmp_path, break_glass=False)
        with closed.browser() as browser:
            browser.get(f"{closed.ehr_url}/user?user=demo-clinician")
            page = closed.launch(browser, PATIENT)
            assert page.status_code == 403
            assert "emergency" not in page.text.lower()
