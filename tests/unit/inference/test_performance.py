import itertools
import json

import pytest
from typer.testing import CliRunner

from rayhook.auth.keys import Keyring
from rayhook.deploy.cli import app
from rayhook.deploy.database import create_database, migrate
from rayhook.inference import jobs
from rayhook.inference.answers import (
    AnswerAction,
    AnswerDraft,
    AnswerReason,
    FindingValue,
    Person,
    record_answer,
)
from rayhook.inference.held_out import HeldOut, ReliabilityBin
from rayhook.inference.performance import FEWEST, measure, score_shifts, stability_index, wilson
from rayhook.inference.registry import Estimate
from tests.unit.inference.samples import MODEL, analysed, reference

CODE = "126952004"
ANNA = Person(fhir_user="Practitioner/anna")
YES, NO = 0.9, 0.1
ACCEPT = {"action": AnswerAction.ACCEPTED}
ABSENT = {
    "action": AnswerAction.EDITED,
    "value": FindingValue.ABSENT,
    "reason": AnswerReason.FALSE_POSITIVE,
}
PRESENT = {
    "action": AnswerAction.EDITED,
    "value": FindingValue.PRESENT,
    "reason": AnswerReason.FALSE_NEGATIVE,
}
REJECT = {"action": AnswerAction.REJECTED, "reason": AnswerReason.ARTEFACT}
WEEK_S = 7 * 24 * 3600.0


class Clinic:
    """Results, each answered once by one person."""

    def __init__(self, folder):
        url = f"sqlite:///{folder / 'rayhook.sqlite3'}"
        migrate(url)
        self.database = create_database(url)
        self.keyring = Keyring.load_or_create(folder / "keyring.json")
        self.numbers = itertools.count()

    def answered(self, count, probability, answer, *, week=0, ehr="ehr"):
        for _ in range(count):
            stored = self.store(probability, ehr=ehr)
            self.answer(stored, answer, week=week)

    def store(self, probability, *, ehr="ehr"):
        at, key = reference(ehr_id=ehr), f"k{next(self.numbers)}"
        with self.database.sessions() as session:
            row, _ = jobs.enqueue(session, self.keyring, at, None, key=key, request_id="r")
            claimed = jobs.claim(session, self.keyring, row.id, lease_s=60)
            result_id = jobs.complete(session, self.keyring, claimed, analysed(probability), [])
            session.commit()
            return jobs.load_result(session, self.keyring, result_id)

    def answer(self, stored, answer, *, version=0, week=0):
        draft = AnswerDraft(finding=CODE, **answer)
        with self.database.sessions() as session:
            record_answer(
                session,
                self.keyring,
                stored,
                draft,
                expected_version=version,
                by=ANNA,
                clock=lambda: 1_790_000_000.0 + week * WEEK_S,
            )
            session.commit()

    def measure(self):
        with self.database.reading() as session:
            (found,) = measure(session)
        return found


@pytest.fixture
def clinic(tmp_path):
    clinic = Clinic(tmp_path)
    yield clinic
    clinic.database.close()


def test_agreement_overrides_and_misses_are_counted(clinic):
    clinic.answered(6, YES, ACCEPT)
    clinic.answered(2, YES, ABSENT)
    clinic.answered(5, NO, ACCEPT)
    clinic.answered(1, NO, PRESENT)
    clinic.answered(1, YES, REJECT)
    total = clinic.measure().total
    assert (total.answered, total.agreed, total.overridden, total.missed, total.rejected) == (15, 11, 2, 1, 1)


def test_the_predictive_value_is_of_those_a_person_judged(clinic):
    clinic.answered(6, YES, ACCEPT)
    clinic.answered(2, YES, ABSENT)
    clinic.answered(3, YES, REJECT)
    assert clinic.measure().total.ppv == wilson(6, 8)


def test_the_newest_answer_counts(clinic):
    clinic.answered(5, YES, ACCEPT)
    stored = clinic.store(YES)
    clinic.answer(stored, ACCEPT)
    clinic.answer(stored, ABSENT, version=1)
    total = clinic.measure().total
    assert (total.answered, total.overridden) == (6, 1)


@pytest.mark.parametrize(("count", "suppressed"), [(FEWEST - 1, True), (FEWEST, False)])
def test_few_answers_are_not_shown(clinic, count, suppressed):
    clinic.answered(count, YES, ACCEPT)
    assert clinic.measure().total.is_suppressed is suppressed


def test_a_predictive_value_of_few_is_not_shown(clinic):
    clinic.answered(FEWEST, YES, ACCEPT)
    clinic.answered(FEWEST - 1, NO, ACCEPT)
    total = clinic.measure().total
    assert (total.ppv is None, total.npv is None) == (False, True)


def test_a_week_that_is_hidden_cannot_be_had_by_subtraction(clinic):
    clinic.answered(8, YES, ACCEPT, week=0)
    clinic.answered(6, YES, ACCEPT, week=1)
    clinic.answered(2, YES, ACCEPT, week=2)
    assert [week.is_suppressed for week in clinic.measure().weeks] == [False, True, True]


def test_answers_are_told_by_ehr(clinic):
    clinic.answered(5, YES, ACCEPT, ehr="north")
    clinic.answered(6, YES, ACCEPT, ehr="south")
    assert [(t.key, t.answered) for t in clinic.measure().ehrs] == [(("north",), 5), (("south",), 6)]


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (5, 5), (3, 10)])
def test_an_interval_holds_its_share(hits, count):
    found = wilson(hits, count)
    assert 0 <= found.low <= found.value <= found.high <= 1


BINS = HeldOut(
    MODEL.id,
    MODEL.weights_sha256,
    "tumour",
    "slice",
    5,
    100,
    50,
    reliability=tuple(
        ReliabilityBin(low, low + 0.4, 50, low + 0.2, Estimate(0.5, 0.4, 0.6)) for low in (0.0, 0.6)
    ),
)


def test_scores_like_the_evaluations_are_no_shift():
    assert stability_index(BINS, [0.1] * 50 + [0.9] * 50) == pytest.approx(0.0)


def test_scores_at_one_end_are_a_shift():
    assert stability_index(BINS, [0.9] * 100) > 1.0


def test_few_scores_tell_of_no_shift(clinic):
    clinic.store(YES)
    with clinic.database.reading() as session:
        assert score_shifts(session, clinic.keyring, {MODEL.weights_sha256: BINS}) == ()


def test_shift_is_measured_on_what_the_model_scores(clinic):
    for _ in range(17):
        clinic.store(YES)
    with clinic.database.reading() as session:
        (shift,) = score_shifts(session, clinic.keyring, {MODEL.weights_sha256: BINS})
    assert (shift.scores, shift.psi > 1.0) == (51, True)


def test_the_command_prints_one_object(clinic, tmp_path):
    clinic.answered(FEWEST, YES, ACCEPT)
    run = CliRunner().invoke(app, ["model", "performance", "--json", "--data-dir", str(tmp_path)])
    told = json.loads(run.stdout[run.stdout.index("{") :])
    assert (told["models"][0]["total"]["answered"], told["suppressed_below"]) == (FEWEST, FEWEST)
