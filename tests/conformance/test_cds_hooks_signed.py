"""Cards of a result that a radiologist has answered and signed: their word, not the model's."""

import time

import pytest

from rayhook.fhir.codes import DiagnosticReportStatus
from rayhook.inference.answers import (
    AnswerAction,
    AnswerDraft,
    AnswerReason,
    FindingValue,
    Person,
    load_answers,
    record_answer,
)
from rayhook.inference.jobs import load_result
from rayhook.inference.signature import Act, SignAct, add_signature

ANNA = Person(fhir_user="Practitioner/anna", name="Anna Ito")


@pytest.fixture
def signed(service, make):
    """Ask once, have the result answered and signed, and return the card of the next call."""

    def card(
        *,
        act=SignAct.SIGN,
        status=DiagnosticReportStatus.FINAL,
        sign=True,
        added="",
        elsewhere_s=None,
        **answer,
    ):
        body = make.body(make.study(1))
        first = service.cards(body)[0]
        result_id = _result_of(service)
        dependencies = service.dependencies
        with dependencies.sessions() as session:
            stored = load_result(session, dependencies.keyring, result_id)
            given = {"action": AnswerAction.ACCEPTED, **answer}
            drafts = [AnswerDraft(finding=stored.result.findings[0].code, **given)]
            if added:
                drafts.append(
                    AnswerDraft(
                        finding="",
                        action=AnswerAction.ADDED,
                        value=FindingValue.PRESENT,
                        reason=AnswerReason.NOT_LOOKED_FOR,
                        display=added,
                    )
                )
            for draft in drafts:
                record_answer(session, dependencies.keyring, stored, draft, expected_version=0, by=ANNA)
            answers = load_answers(session, dependencies.keyring, result_id)
            if sign:
                done = Act(act=act, status=status, by=ANNA, answers=answers.state)
                add_signature(
                    session,
                    dependencies.keyring,
                    stored,
                    done,
                    [],
                    version=2,
                    authorization=None,
                    clock=lambda: 1_795_600_000.0,
                )
            session.commit()
        if elsewhere_s is None:
            dependencies.results.forget_result(result_id)
        else:
            time.sleep(elsewhere_s)
        return first, service.cards(body)[0]

    return card


def _result_of(service):
    claimed = service.analysis.claimed[-1]
    from rayhook.inference.jobs import load_job

    with service.dependencies.reading() as session:
        return load_job(session, claimed.id).result_id


EDITED = {
    "action": AnswerAction.EDITED,
    "value": FindingValue.ABSENT,
    "reason": AnswerReason.FALSE_POSITIVE,
}
REJECTED = {"action": AnswerAction.REJECTED, "reason": AnswerReason.ARTEFACT}


def topic(card):
    return card["source"]["topic"]["code"]


def test_a_signature_in_another_process_is_seen_within_a_second(signed):
    first, second = signed(elsewhere_s=1.0, **EDITED)
    assert (topic(first), topic(second)) == ("finding", "no-finding")


def test_an_answer_that_nobody_signed_changes_nothing(signed):
    first, second = signed(sign=False, **EDITED)
    assert (second["summary"], second["detail"]) == (first["summary"], first["detail"])


def test_a_signed_finding_says_who_and_when(signed):
    _, card = signed()
    assert card["summary"].startswith("Signed by a radiologist on 2026-11-25: ")
    assert "Signed by Anna Ito, a radiologist, on 2026-11-25" in card["detail"]


def test_a_finding_that_the_radiologist_does_not_see_is_no_finding(signed):
    _, card = signed(**EDITED)
    assert topic(card) == "no-finding"
    assert "no finding confirmed" in card["summary"]


def test_a_rejected_finding_is_not_shown_as_positive(signed):
    _, card = signed(**REJECTED)
    assert topic(card) == "no-finding"
    assert "| possible |" not in card["detail"]
    assert "rejected" in card["detail"]


def test_advice_that_rests_on_a_rejected_finding_goes_with_it(signed):
    first, card = signed(**EDITED)
    assert len(card["links"]) <= len(first["links"])
    assert "guideline" not in card["detail"].lower()


def test_a_finding_that_was_added_is_told(signed):
    _, card = signed(added="Midline shift", **EDITED)
    assert topic(card) == "finding"
    assert "midline shift present" in card["summary"]


def test_a_withdrawn_report_tells_no_finding(signed):
    _, card = signed(act=SignAct.WITHDRAW, status=DiagnosticReportStatus.ENTERED_IN_ERROR)
    assert topic(card) == "withdrawn"
    assert "This says nothing about whether a finding is present." in card["detail"]


@pytest.mark.parametrize("answer", [{}, EDITED, REJECTED])
def test_a_signed_card_stays_investigational(signed, answer):
    _, card = signed(**answer)
    assert "Investigational software" in card["detail"]


def test_a_signed_summary_fits(signed):
    _, card = signed(added="x" * 120, **EDITED)
    assert len(card["summary"]) < 140


def test_a_finding_that_the_radiologist_is_not_certain_of_is_no_negative_card(signed):
    _, card = signed(
        action=AnswerAction.EDITED, value=FindingValue.UNCERTAIN, reason=AnswerReason.CLINICAL_CONTEXT
    )
    assert topic(card) == "finding"
    assert " uncertain, on " in card["summary"]
