import itertools
import re
from html import unescape

import pytest
from sqlmodel import select

from rayhook.deploy.demo.ehr_seed import PRACTITIONER_ID, RADIOLOGIST_ID
from rayhook.inference.answers import FindingAnswerRow
from rayhook.inference.job_table import Authorization
from rayhook.inference.review import load_answers
from rayhook.inference.signature import load_signatures
from rayhook.inference.study import AnalysisStatus

CODE = "4147007"
STUDIES = itertools.count(1000)
SCOPES = " ".join(
    f"patient/{kind}.crus" for kind in ("Device", "DiagnosticReport", "Observation", "Provenance")
)


class Desk:
    """A browser at one result's page."""

    def __init__(self, world, browser, result_id):
        self.world, self.browser, self.result_id = world, browser, result_id
        self.page = browser.get(f"{world.base_url}/results/{result_id}")

    @property
    def text(self):
        return unescape(self.page.text)

    @property
    def mark(self):
        return re.search(r'name="rayhook-window" content="([^"]+)"', self.page.text)[1]

    @property
    def seen(self):
        return unescape(re.search(r'name="seen" value="([^"]*)"', self.page.text)[1])

    def post(self, path, **fields):
        answer = self.browser.post(
            f"{self.world.base_url}/results/{self.result_id}{path}",
            params={"w": self.mark},
            data=fields,
            headers={"Sec-Fetch-Site": "same-origin"},
        )
        if answer.status_code == 200:
            self.page = answer
        return answer

    def accept(self, version=0):
        return self.post("/answers", finding=CODE, version=version, action="accepted")

    def change(self, version=0, **changed):
        fields = {"value": "absent", "reason": "false-positive", "text": "coil artefact"} | changed
        return self.post("/answers", finding=CODE, version=version, action="edited", **fields)

    def add(self, **changed):
        fields = {"display": "Midline shift", "value": "present", "reason": "not-looked-for"} | changed
        return self.post("/answers", finding="", version=0, action="added", **fields)

    def sign(self, act="sign", reason="", seen=None):
        return self.post("/report", act=act, seen=seen or self.seen, reason=reason)

    @property
    def answers(self):
        with self.world.database.reading() as session:
            return load_answers(session, self.world.keyring, self.result_id)

    @property
    def signatures(self):
        with self.world.database.reading() as session:
            return load_signatures(session, self.world.keyring, self.result_id)


def enter(world, browser, user=RADIOLOGIST_ID):
    browser.get(f"{world.ehr_url}/user", params={"user": user})
    world.launch(browser, "phantom-a")


@pytest.fixture
def desk(world):
    with world.browser() as browser:
        enter(world, browser)
        study = f"1.2.3.{next(STUDIES)}"  # the EHR keeps what other tests signed
        yield Desk(world, browser, world.store("phantom-a", study=study))


@pytest.fixture
def clinician(world, desk):
    """Somebody who may answer and not sign, at the same result."""
    with world.browser() as browser:
        enter(world, browser, PRACTITIONER_ID)
        yield Desk(world, browser, desk.result_id)


@pytest.fixture
def writable(world):
    """A token that may change reports, in the place of our own."""
    token = world.ehr.authorization.issue("phantom-a", SCOPES)
    world.own_tokens.append(Authorization(token, SCOPES, world.clock() + 300))


def test_the_page_offers_the_three_answers(desk):
    assert all(f'value="{action}"' in desk.page.text for action in ("accepted", "edited", "rejected"))


def test_every_reason_of_the_list_is_offered(desk):
    offered = set(re.findall(r'<option value="([a-z-]+)">', desk.page.text))
    assert offered >= {"false-positive", "artefact", "not-looked-for", "other"}


def test_an_answer_is_shown_with_who_and_when(desk):
    assert desk.accept().status_code == 200
    assert "Accepted" in desk.text
    assert desk.answers.latest[CODE].by.fhir_user.startswith("Practitioner/")


def test_a_change_is_shown_with_its_reason(desk):
    desk.change()
    assert "The model is wrong: it is not there: coil artefact" in desk.text


def test_an_added_finding_is_shown_and_can_be_taken_back(desk):
    desk.add()
    key = desk.answers.added[0].finding
    desk.post("/answers", finding=key, version=1, action="withdrawn", reason="taken-back")
    assert "None was added." in desk.text


def test_the_second_to_answer_is_told_what_the_first_said(desk):
    desk.change()
    late = desk.accept(version=0)
    told = unescape(late.text)
    assert late.status_code == 409
    assert "coil artefact" in told
    assert "Your answer was not stored" in told


def test_the_second_can_answer_again_from_the_page_that_tells(desk):
    desk.change()
    late = desk.accept(version=0)
    fields = dict(re.findall(r'<input type="hidden" name="([a-z_]+)" value="([^"]*)">', late.text))
    assert desk.post("/answers", **fields).status_code == 200
    assert [a.action.value for a in desk.answers.history] == ["edited", "accepted"]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"reason": ""}, 400),
        ({"reason": "other", "text": " "}, 400),
        ({"reason": "no-such-reason"}, 400),
        ({"value": "maybe"}, 400),
        ({"size_mm": "-3"}, 400),
        ({"size_mm": "wide"}, 400),
        ({"text": "x" * 2001}, 400),
        ({"text": "x" * 5000}, 400),
    ],
)
def test_what_does_not_fit_is_refused_and_not_stored(desk, fields, status):
    assert desk.change(**fields).status_code == status
    assert desk.answers.history == ()


def test_a_size_may_have_the_readers_own_decimal_mark(desk):
    desk.change(size_mm="7,5")
    assert desk.answers.latest[CODE].draft.size_mm == 7.5


def test_a_form_of_another_site_does_not_answer(desk):
    answer = desk.browser.post(
        f"{desk.world.base_url}/results/{desk.result_id}/answers",
        params={"w": desk.mark},
        data={"finding": CODE, "version": "0", "action": "accepted"},
        headers={"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
    )
    assert (answer.status_code, desk.answers.history) == (403, ())


def test_another_patients_result_is_not_answered(desk, world):
    other = world.store("phantom-b", study="1.2.3.8")
    desk.result_id = other
    assert desk.accept().status_code == 404
    assert desk.answers.history == ()


def test_an_answer_is_audited_with_its_reason(desk, world):
    desk.change()
    event = next(e for e in world.audited() if str(e.kind) == "smart_app:finding:answered")
    assert (event.detail["action"], event.detail["reason"], event.patient_id) == (
        "edited",
        "false-positive",
        "phantom-a",
    )


def test_no_words_of_an_answer_are_in_the_audit(desk, world):
    desk.change()
    assert "coil artefact" not in repr(world.audited())


def test_without_the_audit_no_answer_is_stored(desk, world):
    with world.audit_is_full():
        assert desk.accept().status_code == 503
    with world.database.reading() as session:
        assert session.exec(select(FindingAnswerRow)).all() == []


def test_where_no_model_answered_nothing_is_asked(world):
    with world.browser() as browser:
        world.launch(browser, "phantom-a")
        page = browser.get(
            f"{world.base_url}/results/{world.store('phantom-a', status=AnalysisStatus.ABSTAINED)}"
        ).text
    assert 'value="accepted"' not in page
    assert 'id="report"' not in page


def test_an_abstained_result_names_what_was_asked(world):
    with world.browser() as browser:
        world.launch(browser, "phantom-a")
        page = browser.get(
            f"{world.base_url}/results/{world.store('phantom-a', status=AnalysisStatus.ABSTAINED)}"
        ).text
    assert "Asked for, and not answered: Mass" in " ".join(page.split())


def test_nothing_can_be_signed_before_every_finding_is_answered(desk):
    assert 'value="sign"' not in desk.page.text
    assert "Every finding has to be answered" in desk.text


def test_a_signed_report_says_so_and_who(desk, writable):
    desk.accept()
    assert desk.sign().status_code == 200
    assert "Signed" in desk.text
    assert "The EHR has this version." in desk.text


def test_the_ehr_has_the_signed_report(desk, world, writable):
    desk.accept()
    desk.sign()
    reports = world.ehr.store.search("DiagnosticReport", [("patient", "phantom-a")])
    assert reports[-1]["status"] == "final"


def test_what_changed_since_the_page_was_opened_is_not_signed(desk):
    desk.accept()
    seen = desk.seen
    desk.change(version=1)
    assert desk.sign(seen=seen).status_code == 409
    assert desk.signatures == ()


def test_signing_is_audited(desk, world):
    desk.accept()
    desk.sign()
    event = next(e for e in world.audited() if str(e.kind) == "smart_app:report:signed")
    assert (event.detail["status"], event.detail["version"]) == ("final", "2")


def test_without_the_audit_nothing_is_signed(desk, world):
    desk.accept()
    with world.audit_is_full():
        assert desk.sign().status_code == 503
    assert desk.signatures == ()


def test_a_report_that_the_ehr_did_not_take_is_signed_here(desk):
    desk.accept()
    desk.sign()
    assert "Signed here, not at the EHR" in desk.text
    assert "Send to the EHR again" in desk.text


def test_it_is_sent_again_when_somebody_asks(desk, world):
    desk.accept()
    desk.sign()
    token = world.ehr.authorization.issue("phantom-a", SCOPES)
    world.own_tokens.append(Authorization(token, SCOPES, world.clock() + 300))
    desk.post("/report/delivery")
    assert "The EHR has this version." in desk.text


def test_a_signed_report_is_corrected_under_its_reason(desk, writable):
    desk.accept()
    desk.sign()
    desk.change(version=1)
    assert "Answers have changed since the report was signed" in desk.text
    desk.sign("correct", reason="seen on the prior study")
    assert [s.status.value for s in desk.signatures] == ["final", "corrected"]


def test_a_signed_report_is_withdrawn(desk, writable):
    desk.accept()
    desk.sign()
    desk.sign("withdraw", reason="wrong patient")
    assert desk.signatures[-1].status.value == "entered-in-error"
    assert 'value="accepted"' not in desk.page.text


def test_a_clinician_answers_and_does_not_sign(clinician):
    assert clinician.accept().status_code == 200
    assert "Only a radiologist signs." in clinician.text
    assert clinician.post("/report", act="sign", seen="0/x").status_code == 403


def test_two_people_answer_the_same_finding(desk, clinician):
    assert clinician.accept().status_code == 200
    late = desk.change(version=0)
    assert (late.status_code, len(desk.answers.history)) == (409, 1)


def test_a_clinician_does_not_change_what_is_signed(desk, clinician):
    desk.accept()
    desk.sign()
    assert clinician.change(version=1).status_code == 403
    assert len(desk.answers.history) == 1


def test_who_may_not_change_what_is_signed_is_in_the_audit(desk, clinician, world):
    desk.accept()
    desk.sign()
    clinician.change(version=1)
    event = world.audited()[0]
    assert (str(event.kind), event.detail["permission"]) == (
        "smart_app:access:denied",
        "smart_app:report:sign",
    )


def test_a_withdrawn_report_says_to_disregard_the_model(desk, writable):
    desk.accept()
    desk.sign()
    desk.sign(act="withdraw", reason="wrong patient")
    assert "has taken the report back: disregard what the model said" in desk.text


def test_the_list_of_studies_says_that_a_report_was_withdrawn(desk, world, writable):
    desk.accept()
    desk.sign()
    desk.sign(act="withdraw", reason="wrong patient")
    assert "Report withdrawn by" in unescape(desk.browser.get(f"{world.base_url}/patient").text)


def test_the_list_of_studies_says_what_was_signed(desk, world, writable):
    desk.change()
    desk.sign()
    assert "In the signed report: Not seen" in unescape(desk.browser.get(f"{world.base_url}/patient").text)


def test_who_rejected_every_answer_is_told_what_signing_does(desk):
    desk.accept()
    assert "it goes to the EHR as final" in desk.text
    desk.post("/answers", finding=CODE, version=1, action="rejected", reason="artefact")
    assert "it goes to the EHR as final" not in desk.text
    assert "by signing you cancel the report at the EHR" in desk.text


def test_the_audit_tells_who_replaced_the_ehrs_copy(desk, world):
    desk.accept()
    desk.sign()
    desk.post("/report/delivery", replace="yes")
    parts = {event.detail.get("part") for event in world.audited()}
    assert "report to replace the EHR's copy with" in parts
