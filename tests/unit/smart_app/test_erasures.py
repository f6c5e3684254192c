"""The page on which one person asks for a patient's erasure and another confirms it."""

import re

import pytest
from sqlalchemy import text

from rayhook.audit.events import AuditKind
from rayhook.audit.review import AuditSearch, search
from rayhook.inference import jobs

from .test_audit_pages import officer  # noqa: F401 - fixture
from .test_staff_sign_in import at_once, staff, words  # noqa: F401 - fixtures

PATIENT = "phantom-a"
ASKED = {"ehr": "demo-ehr", "patient": PATIENT, "again": PATIENT, "reason": "request 17"}
PAGE = "/staff/erasures"


@pytest.fixture(autouse=True)
def none_before(world):
    with world.database.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM patient_erasure")


@pytest.fixture
def administrator(staff):  # noqa: F811
    staff.administrator.sign_in()
    return staff.administrator


@pytest.fixture
def waiting(officer):  # noqa: F811
    """Return the id of an erasure that the officer asked for."""
    officer.browser.post(PAGE, data=ASKED)
    return re.search(rf"{PAGE}/(\w+)/withdraw", officer.browser.get(PAGE).text)[1]


def kinds(world):
    with world.database.reading() as session:
        wanted = AuditSearch(ehr_id="demo-ehr", patient_id=PATIENT)
        return [one.kind for one in search(session, world.keyring, wanted, limit=10).records]


def confirm(person, id_, again=PATIENT):
    return person.browser.post(f"{PAGE}/{id_}/confirm", data={"again": again})


def test_a_second_person_erases(world, waiting, administrator):
    world.store(PATIENT)
    assert confirm(administrator, waiting).status_code == 303
    page = words(administrator.browser.get(PAGE))
    assert "Erased" in page
    assert kinds(world)[1] is AuditKind.AUTH_PATIENT_KEY_DESTROYED


def test_the_page_says_how_much_there_is(world, waiting, administrator):
    world.store(PATIENT)
    assert "1 analyses, 1 results" in " ".join(words(administrator.browser.get(PAGE)).split())


def test_who_asked_is_offered_no_confirmation(waiting, officer):  # noqa: F811
    assert f"{PAGE}/{waiting}/confirm" not in officer.browser.get(PAGE).text


def test_who_asked_cannot_confirm(world, waiting, officer):  # noqa: F811
    result = world.store(PATIENT)
    answer = confirm(officer, waiting)
    assert (answer.status_code, "another person" in words(answer).lower()) == (409, True)
    with world.database.reading() as session:
        assert jobs.load_result(session, world.keyring, result) is not None


def test_who_confirms_types_the_patients_id(world, waiting, administrator):
    answer = confirm(administrator, waiting, again="somebody-else")
    assert answer.status_code == 400
    assert AuditKind.AUTH_PATIENT_KEY_DESTROYED not in kinds(world)[:2]


@pytest.mark.parametrize("wrong", [{"ehr": "nowhere"}, {"again": "other"}, {"reason": " "}, {"patient": ""}])
def test_a_wish_that_is_not_whole_is_refused(officer, wrong):  # noqa: F811
    assert officer.browser.post(PAGE, data={**ASKED, **wrong}).status_code == 400


def test_a_hold_refuses(world, officer):  # noqa: F811
    hold = {"reason": "case", "ehr": "demo-ehr", "patient": "held"}
    officer.browser.post("/staff/audit/holds", data=hold)
    answer = officer.browser.post(PAGE, data={**ASKED, "patient": "held", "again": "held"})
    assert (answer.status_code, "legal hold" in words(answer)) == (409, True)


def test_a_withdrawn_one_is_not_confirmed(waiting, administrator):
    assert administrator.browser.post(f"{PAGE}/{waiting}/withdraw").status_code == 303
    assert confirm(administrator, waiting).status_code == 409


def test_who_reads_the_page_is_in_the_log(world, waiting, administrator):
    administrator.browser.get(PAGE)
    assert kinds(world)[0] is AuditKind.AUTH_ERASURE_LISTED


def test_an_unknown_one_is_not_found(administrator):
    assert confirm(administrator, "0" * 32).status_code == 404


def test_a_result_that_was_erased_is_told_to_be_so(world, waiting, administrator):
    result = world.store(PATIENT)
    confirm(administrator, waiting)
    with world.browser() as browser:
        world.launch(browser, PATIENT)
        answer = browser.get(f"{world.base_url}/results/{result}")
    assert (answer.status_code, "was erased" in words(answer)) == (410, True)


def test_the_session_of_the_patient_has_ended(world, waiting, administrator):
    with world.browser() as browser:
        page = world.launch(browser, PATIENT).url
        confirm(administrator, waiting)
        answer = browser.get(page)
    assert "Your session has ended" in words(answer)
    with world.database.engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM smart_session")).scalar() == 0


def test_a_new_launch_finds_nothing_of_before(world, waiting, administrator):
    world.store(PATIENT)
    confirm(administrator, waiting)
    with world.browser() as browser:
        answer = world.launch(browser, PATIENT)
    assert answer.status_code == 200
    assert "/results/" not in answer.text


def test_the_officer_reads_of_an_erased_patient_what_is_left(world, officer, administrator):  # noqa: F811
    officer.browser.post(PAGE, data={**ASKED, "audit": "yes"})
    id_ = re.search(rf"{PAGE}/(\w+)/confirm", administrator.browser.get(PAGE).text)[1]
    world.store(PATIENT)
    with world.browser() as browser:
        world.launch(browser, PATIENT)
    confirm(administrator, id_)
    found = officer.browser.post("/staff/audit", data={"ehr": "demo-ehr", "patient": PATIENT})
    page = words(officer.browser.get(found.headers["Location"]))
    assert "erased" in page
