from dataclasses import replace

import pytest

from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database, migrate
from rayhook.fhir import codes
from rayhook.fhir.errors import Conflict, Forbidden, InvalidRequest
from rayhook.inference import jobs
from rayhook.inference.answers import (
    AnswerAction,
    AnswerDraft,
    AnswerReason,
    FindingValue,
    Laterality,
    Person,
    load_answers,
    record_answer,
)
from rayhook.inference.report import build_resources
from rayhook.inference.sign_off import SignRequest, seen_state, sign
from rayhook.inference.signature import SignAct, current_resources, load_signatures
from rayhook.inference.study import AnalysisStatus
from tests.unit.inference.samples import analysed, manifest, nothing_to_rate, reference, unanswered

CODE = "126952004"
ANNA = Person(fhir_user="Practitioner/anna", name="Anna Ito")
ACCEPT = AnswerDraft(finding=CODE, action=AnswerAction.ACCEPTED)
ABSENT = AnswerDraft(
    finding=CODE,
    action=AnswerAction.EDITED,
    value=FindingValue.ABSENT,
    reason=AnswerReason.FALSE_POSITIVE,
    text="artefact of the coil",
)
REJECT = AnswerDraft(finding=CODE, action=AnswerAction.REJECTED, reason=AnswerReason.ARTEFACT)
ADD = AnswerDraft(
    finding="",
    action=AnswerAction.ADDED,
    value=FindingValue.PRESENT,
    reason=AnswerReason.NOT_LOOKED_FOR,
    display="Midline shift",
    site="Septum pellucidum",
    laterality=Laterality.RIGHT,
    size_mm=7.5,
)


class Desk:
    """One result, and the people who answer and sign it."""

    def __init__(self, database, keyring, result):
        self.database, self.keyring = database, keyring
        with database.sessions() as session:
            row, _ = jobs.enqueue(session, keyring, reference(), None, key="k", request_id="r")
            claimed = jobs.claim(session, keyring, row.id, lease_s=60)
            resources = build_resources(reference(), result, manifest(), organization="Site")
            result_id = jobs.complete(session, keyring, claimed, result, resources)
            session.commit()
            self.stored = jobs.load_result(session, keyring, result_id)

    def answer(self, draft, expected=0):
        with self.database.sessions() as session:
            given = record_answer(
                session, self.keyring, self.stored, draft, expected_version=expected, by=ANNA
            )
            session.commit()
        return given

    @property
    def answers(self):
        with self.database.reading() as session:
            return load_answers(session, self.keyring, self.stored.id)

    @property
    def signatures(self):
        with self.database.reading() as session:
            return load_signatures(session, self.keyring, self.stored.id)

    def sign(self, act=SignAct.SIGN, *, reason="", by=ANNA, seen=None):
        request = SignRequest(
            act=act, by=by, reason=reason, seen=seen or seen_state(self.answers, self.signatures)
        )
        with self.database.sessions() as session:
            sign(session, self.keyring, self.stored, request, manifest=manifest(), authorization=None)
            session.commit()
        return self.signatures[-1]

    def current(self, resource_type, ending=""):
        return next(
            one
            for one in current_resources(self.stored, self.signatures)
            if one["resourceType"] == resource_type
            and one.get("identifier", [{}])[0].get("value", "").endswith(ending)
        )

    @property
    def finding(self):
        return self.current("Observation", f".finding.{CODE}")

    @property
    def report(self):
        return self.current("DiagnosticReport")


@pytest.fixture
def desk_of(tmp_path):
    url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    migrate(url)
    database = create_database(url)
    yield lambda result: Desk(database, Keyring.load_or_create(tmp_path / "keyring.json"), result)
    database.close()


@pytest.fixture
def desk(desk_of):
    return desk_of(analysed())


def provenance(signature):
    return next(one for one in signature.resources if one["resourceType"] == "Provenance")


def labels(resource):
    return {label["code"] for label in resource["meta"]["security"]}


def test_an_answer_alone_leaves_the_report_preliminary(desk):
    desk.answer(ACCEPT)
    assert (desk.report["status"], desk.finding["status"]) == ("preliminary", "preliminary")


def test_nothing_is_signed_while_a_finding_has_no_answer(desk):
    with pytest.raises(Conflict) as raised:
        desk.sign()
    assert raised.value.code == "findings_unanswered"


def test_signing_makes_report_and_findings_final(desk):
    desk.answer(ACCEPT)
    desk.sign()
    assert (desk.report["status"], desk.finding["status"]) == ("final", "final")


def test_the_signer_interprets_the_results(desk):
    desk.answer(ACCEPT)
    desk.sign()
    assert desk.report["resultsInterpreter"] == [{"reference": "Practitioner/anna", "display": "Anna Ito"}]


def test_the_signer_verifies_and_the_model_stays_the_author(desk):
    desk.answer(ACCEPT)
    agents = provenance(desk.sign())["agent"]
    assert [(a["type"]["coding"][0]["code"], a["who"]["reference"].partition("/")[0]) for a in agents] == [
        ("author", "Device"),
        ("verifier", "Practitioner"),
    ]


def test_the_provenance_names_the_version_that_was_revised(desk):
    desk.answer(ACCEPT)
    entities = provenance(desk.sign())["entity"]
    revised = [e["what"]["reference"] for e in entities if e["role"] == "revision"]
    assert f"DiagnosticReport/{desk.report['id']}/_history/1" in revised


def test_the_models_own_version_is_left_as_it_was(desk):
    before = desk.stored.resources
    desk.answer(ABSENT)
    desk.sign()
    with desk.database.reading() as session:
        assert jobs.load_result(session, desk.keyring, desk.stored.id).resources == before


def test_an_accepted_finding_keeps_its_value_and_its_label(desk):
    made = desk.finding
    desk.answer(ACCEPT)
    desk.sign()
    assert desk.finding["valueCodeableConcept"] == made["valueCodeableConcept"]
    assert labels(desk.finding) == {"AIAST", "CLINAST"}


def test_an_edited_finding_has_the_persons_value(desk):
    desk.answer(ABSENT)
    desk.sign()
    value = desk.finding["valueCodeableConcept"]["coding"][0]["code"]
    assert (value, desk.finding["status"]) == (codes.ABSENT.code, "final")


def test_an_edited_finding_is_no_conclusion_any_more(desk):
    desk.answer(ABSENT)
    desk.sign()
    assert "conclusionCode" not in desk.report


def test_the_conclusion_says_who_edited_what_and_why(desk):
    desk.answer(ABSENT)
    desk.sign()
    said = desk.report["conclusion"]
    assert "Neoplasm of brain: not seen, as edited by Anna Ito (false positive: artefact of the coil)" in said


def test_a_rejected_finding_states_nothing(desk):
    desk.answer(REJECT)
    desk.answer(ADD)
    desk.sign()
    assert desk.finding["status"] == "cancelled"
    assert not {"valueCodeableConcept", "interpretation", "extension"} & desk.finding.keys()


def test_where_all_was_rejected_the_report_is_cancelled(desk):
    desk.answer(REJECT)
    desk.sign()
    assert desk.report["status"] == "cancelled"


def test_an_added_finding_is_a_persons_alone(desk):
    desk.answer(ACCEPT)
    added = desk.answer(ADD)
    desk.sign()
    observation = desk.current("Observation", f".finding.{added.finding}")
    assert (labels(observation), "device" in observation) == ({"CLINAST"}, False)


def test_an_added_finding_has_its_side_and_size(desk):
    desk.answer(ACCEPT)
    added = desk.answer(ADD)
    desk.sign()
    parts = {
        part["code"]["coding"][0]["code"]: part
        for part in desk.current("Observation", f".finding.{added.finding}")["component"]
    }
    assert parts[codes.LATERALITY.code]["valueCodeableConcept"]["coding"][0]["code"] == codes.RIGHT.code
    assert float(parts[codes.LONG_AXIS.code]["valueQuantity"]["value"]) == 7.5


def test_an_added_finding_is_among_the_reports_results(desk):
    desk.answer(ACCEPT)
    added = desk.answer(ADD)
    desk.sign()
    observation = desk.current("Observation", f".finding.{added.finding}")
    assert {"reference": f"Observation/{observation['id']}"} in desk.report["result"]


def test_nothing_to_rate_can_be_signed(desk_of):
    desk = desk_of(nothing_to_rate())
    desk.sign()
    assert desk.report["status"] == "final"


def test_a_correction_is_a_version_of_its_own(desk):
    desk.answer(ACCEPT)
    desk.sign()
    desk.answer(ABSENT, expected=1)
    desk.sign(SignAct.CORRECT, reason="wrong patient position")
    assert (desk.report["status"], desk.finding["status"]) == ("corrected", "corrected")
    assert [s.version for s in desk.signatures] == [2, 3]


def test_an_amendment_leaves_what_did_not_change_final(desk):
    desk.answer(ACCEPT)
    desk.sign()
    desk.answer(ADD)
    desk.sign(SignAct.AMEND, reason="seen on the prior")
    assert (desk.report["status"], desk.finding["status"]) == ("amended", "final")


def test_an_added_finding_taken_back_after_signing_was_an_error(desk):
    desk.answer(ACCEPT)
    added = desk.answer(ADD)
    desk.sign()
    back = AnswerDraft(finding=added.finding, action=AnswerAction.WITHDRAWN, reason=AnswerReason.TAKEN_BACK)
    desk.answer(back, expected=1)
    desk.sign(SignAct.CORRECT, reason="other patient")
    observation = desk.current("Observation", f".finding.{added.finding}")
    assert (observation["status"], observation["code"]["text"]) == ("entered-in-error", "Midline shift")


def test_a_signed_report_is_withdrawn_as_an_error(desk):
    desk.answer(ACCEPT)
    desk.sign()
    desk.sign(SignAct.WITHDRAW, reason="other patient's images")
    assert (desk.report["status"], desk.finding["status"]) == ("entered-in-error", "entered-in-error")


def test_an_unsigned_report_is_withdrawn_without_an_answer(desk):
    desk.sign(SignAct.WITHDRAW, reason="not for this patient")
    assert (desk.report["status"], desk.finding["status"]) == ("cancelled", "cancelled")


@pytest.mark.parametrize("act", [SignAct.AMEND, SignAct.CORRECT, SignAct.WITHDRAW])
def test_a_change_needs_its_reason(desk, act):
    desk.answer(ACCEPT)
    desk.sign()
    with pytest.raises(InvalidRequest):
        desk.sign(act, reason=" ")


def test_who_signs_what_has_changed_since_is_told(desk):
    desk.answer(ACCEPT)
    seen = seen_state(desk.answers, desk.signatures)
    desk.answer(ABSENT, expected=1)
    with pytest.raises(Conflict) as raised:
        desk.sign(seen=seen)
    assert raised.value.code == "signature_overtaken"


def test_the_second_to_sign_is_told(desk):
    desk.answer(ACCEPT)
    seen = seen_state(desk.answers, desk.signatures)
    desk.sign(seen=seen)
    with pytest.raises(Conflict):
        desk.sign(seen=seen)


@pytest.mark.parametrize("user", ["Patient/1", "RelatedPerson/1", "rayhook"])
def test_who_is_no_practitioner_cannot_sign(desk, user):
    desk.answer(ACCEPT)
    with pytest.raises(Forbidden):
        desk.sign(by=replace(ANNA, fhir_user=user))


def test_where_no_model_answered_there_is_nothing_to_sign(desk_of):
    with pytest.raises(Conflict):
        desk_of(unanswered(AnalysisStatus.ABSTAINED)).sign()


def test_the_page_in_the_report_holds_no_markup_of_people(desk):
    import base64

    desk.answer(replace(ABSENT, text="<script>alert(1)</script>"))
    desk.sign()
    page = base64.b64decode(desk.report["presentedForm"][0]["data"]).decode()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
