from dataclasses import replace

import pytest

from rayhook.fhir.codes import DiagnosticReportStatus
from rayhook.inference.answers import FindingValue
from rayhook.inference.jobs import JobState, jobs_for_patient
from rayhook.inference.review import AnswerState
from rayhook.smart_app.i18n import Language, speaking
from rayhook.smart_app.job_words import job_words
from rayhook.smart_app.trend import Prior
from rayhook.smart_app.worklist import STAGE_MEANINGS, STAGE_TITLES, finding_line, review_text
from rayhook.smart_app.worklist_order import Stage
from tests.unit.smart_app.conftest import study_result

FINDING = study_result("1.2.3", probability=0.5).findings[0]
POSITIVE = replace(FINDING, probability=0.9, positive=True)


def prior(probability: float, *, same_model: bool = True) -> Prior:
    return Prior("r", "2025-05-01", probability, same_model)


@pytest.mark.parametrize(
    ("before", "change"),
    [(0.3, "up by 20.0 points"), (0.8, "down by 30.0 points"), (0.5, "unchanged"), (0.5003, "unchanged")],
)
def test_trend_says_the_difference_in_words(before, change):
    assert finding_line(FINDING, prior(before)).trend.change == change


def test_trend_over_two_models_has_no_difference():
    trend = finding_line(FINDING, prior(0.3, same_model=False)).trend
    assert (trend.change, trend.caveat) == ("", "by another model or version: not comparable")


def test_trend_is_written_in_the_readers_language():
    with speaking(Language(chosen="es")):
        trend = finding_line(FINDING, prior(0.3)).trend
    assert (trend.when, trend.change) == ("1 may 2025", "20,0 puntos más")


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (None, ""),
        (AnswerState(), ""),
        (AnswerState(answered=1), "1 of 2 findings answered"),
        (AnswerState(status=DiagnosticReportStatus.FINAL, by="Dr A"), "Signed by Dr A"),
        (AnswerState(status=DiagnosticReportStatus.FINAL), "Signed"),
        (
            AnswerState(status=DiagnosticReportStatus.FINAL, by="Dr A", added=1),
            "Signed by Dr A, 1 finding added",
        ),
        (
            AnswerState(status=DiagnosticReportStatus.CANCELLED, by="Dr A", answered=1),
            "Rejected by Dr A: the model's answer does not count",
        ),
        (
            AnswerState(status=DiagnosticReportStatus.ENTERED_IN_ERROR, by="Dr A", answered=1),
            "Report withdrawn by Dr A: disregard what it said",
        ),
    ],
)
def test_row_says_what_people_did(state, told):
    assert review_text(state, 2) == told


@pytest.mark.parametrize(
    ("value", "tone", "said"),
    [
        (FindingValue.ABSENT, "neutral", "In the signed report: Not seen"),
        (FindingValue.UNCERTAIN, "neutral", "In the signed report: Uncertain"),
        (FindingValue.PRESENT, "positive", "In the signed report: Present"),
        (None, "neutral", "In the signed report: No statement"),
    ],
)
def test_a_signed_finding_is_told_as_it_was_signed(value, tone, said):
    signed = AnswerState(status=DiagnosticReportStatus.FINAL, by="Dr A", at=1.0, said={POSITIVE.code: value})
    line = finding_line(POSITIVE, None, signed)
    assert (line.tone, line.said) == (tone, said)


def test_a_finding_of_a_withdrawn_report_is_not_coloured_as_one():
    withdrawn = AnswerState(status=DiagnosticReportStatus.ENTERED_IN_ERROR, by="Dr A", at=1.0)
    line = finding_line(POSITIVE, None, withdrawn)
    assert (line.tone, line.said) == ("neutral", "")


@pytest.mark.parametrize("state", JobState)
def test_every_state_of_a_job_has_words(state, world):
    world.enqueue("phantom-a")
    with world.database.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE analysis_job SET state = '{state}'")
    with world.database.sessions() as session:
        (job,) = jobs_for_patient(session, world.keyring, "demo-ehr", "phantom-a")
    assert job_words(job).headline


def test_every_stage_has_a_title_and_a_meaning():
    assert set(STAGE_TITLES) == set(STAGE_MEANINGS) == set(Stage)
