"""Every report that a person can sign, change or withdraw, before validators that are not ours."""

import json

import pytest

from rayhook.fhir.codes import DiagnosticReportStatus as Report
from rayhook.fhir.r4 import encode_json
from rayhook.inference.answers import (
    AnswerAction,
    AnswerDraft,
    AnswerReason,
    Answers,
    FindingAnswer,
    FindingValue,
    Laterality,
    Person,
)
from rayhook.inference.report import build_resources
from rayhook.inference.results import DeliveryState, StoredResult
from rayhook.inference.review_report import SignedReport
from rayhook.inference.review_text import ReviewedResult
from rayhook.inference.signature import Act, SignAct
from tests.unit.inference.samples import analysed, manifest, nothing_to_rate, reference

CODE = "126952004"
ANNA = Person(fhir_user="Practitioner/anna", name="Anna Ito")
DRAFTS = {
    "accepted": AnswerDraft(finding=CODE, action=AnswerAction.ACCEPTED),
    "edited": AnswerDraft(
        finding=CODE,
        action=AnswerAction.EDITED,
        value=FindingValue.ABSENT,
        reason=AnswerReason.FALSE_POSITIVE,
        text="a vessel",
        comment="See the prior.",
        site="Left temporal lobe",
        laterality=Laterality.LEFT,
        size_mm=12.5,
    ),
    "uncertain": AnswerDraft(
        finding=CODE,
        action=AnswerAction.EDITED,
        value=FindingValue.UNCERTAIN,
        reason=AnswerReason.NOT_ASSESSABLE,
    ),
    "rejected": AnswerDraft(finding=CODE, action=AnswerAction.REJECTED, reason=AnswerReason.ARTEFACT),
}
ADDED = AnswerDraft(
    finding="",
    action=AnswerAction.ADDED,
    value=FindingValue.PRESENT,
    reason=AnswerReason.NOT_LOOKED_FOR,
    display="Midline shift",
    laterality=Laterality.RIGHT,
    size_mm=7.0,
)
ACTS = {
    "signed": (SignAct.SIGN, Report.FINAL),
    "cancelled": (SignAct.SIGN, Report.CANCELLED),
    "amended": (SignAct.AMEND, Report.AMENDED),
    "corrected": (SignAct.CORRECT, Report.CORRECTED),
    "withdrawn": (SignAct.WITHDRAW, Report.ENTERED_IN_ERROR),
}


def answers_of(*named):
    return Answers(
        tuple(
            FindingAnswer(id="a", finding=finding, version=1, draft=draft, by=ANNA, at=1_790_000_000.0)
            for finding, draft in named
        )
    )


def build(answer="accepted", act="signed", result=None, person=ANNA):
    result = result or analysed()
    made = build_resources(reference(), result, manifest(), organization="Demo hospital")
    stored = StoredResult(
        "r", "j", "ehr", "patient-1", reference(), result, tuple(made), DeliveryState.PENDING, None, 0.0
    )
    named = [(CODE, DRAFTS[answer])] if result.findings else []
    answers = answers_of(*named, ("added-1", ADDED))
    kind, status = ACTS[act]
    reason = "" if kind is SignAct.SIGN else "other patient's images"
    done = Act(act=kind, status=status, by=person, answers=answers.state, reason=reason)
    reviewed = ReviewedResult(
        result=result, answers=answers, act=done, at=1_790_000_100.0, manifest=manifest()
    )
    report = SignedReport(stored, reviewed, current=made, signed_answers="", version=2)
    return [json.loads(encode_json(one)) for one in report.resources()]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("answer", DRAFTS)
def test_a_signed_report_has_no_error(judges, answer, act):
    for one in build(answer, act):
        assert judges.errors(one) == []


def test_a_signed_report_of_nothing_to_rate_has_no_error(judges):
    for one in build(result=nothing_to_rate()):
        assert judges.errors(one) == []


@pytest.mark.parametrize("user", ["PractitionerRole/7", "https://other.example/fhir/Practitioner/9"])
def test_a_signer_of_another_kind_or_place_has_no_error(judges, user):
    for one in build(person=Person(fhir_user=user)):
        assert judges.errors(one) == []


def test_the_provenance_of_a_signed_report_still_keeps_the_guides_profile(judges):
    provenance = build()[-1]
    assert provenance["meta"]["profile"] == [
        "http://hl7.org/fhir/uv/aitransparency/StructureDefinition/AI-Provenance"
    ]
    assert judges.errors(provenance) == []


def test_medplum_agrees_on_signed_reports(judges):
    from tests.conformance.fhir_judges import medplum

    every = [one for answer in DRAFTS for act in ACTS for one in build(answer, act)]
    assert [errors for errors in medplum(every) if errors] == []
