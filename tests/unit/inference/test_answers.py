import threading
from dataclasses import replace

import pytest

from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database
from rayhook.fhir.codes import DiagnosticReportStatus
from rayhook.fhir.errors import Conflict, InvalidRequest
from rayhook.inference import jobs
from rayhook.inference.answers import (
    MAX_TEXT,
    REASONS,
    AnswerAction,
    AnswerDraft,
    AnswerReason,
    FindingValue,
    Person,
    load_answers,
    record_answer,
)
from rayhook.inference.report import build_resources
from rayhook.inference.review import answer_summary
from rayhook.inference.signature import Act, SignAct, add_signature
from rayhook.inference.study import AnalysisStatus
from tests.unit.inference.samples import analysed, manifest, reference, unanswered

CODE = "126952004"
ANNA = Person(fhir_user="Practitioner/anna", name="Anna Ito")
BEN = Person(fhir_user="Practitioner/ben")
ACCEPT = AnswerDraft(finding=CODE, action=AnswerAction.ACCEPTED)
EDIT = AnswerDraft(
    finding=CODE,
    action=AnswerAction.EDITED,
    value=FindingValue.ABSENT,
    reason=AnswerReason.FALSE_POSITIVE,
)
ADD = AnswerDraft(
    finding="",
    action=AnswerAction.ADDED,
    value=FindingValue.PRESENT,
    reason=AnswerReason.NOT_LOOKED_FOR,
    display="Midline shift",
)


@pytest.fixture
def keyring(tmp_path):
    return Keyring.load_or_create(tmp_path / "keyring.json")


@pytest.fixture
def database(both):
    database = create_database(both.url)
    yield database
    database.close()


@pytest.fixture
def store(database, keyring):
    """Store a result and return it as it is read back."""

    def stored(result=None):
        result = result or analysed()
        with database.sessions() as session:
            row, _ = jobs.enqueue(session, keyring, reference(), None, key="k", request_id="r")
            claimed = jobs.claim(session, keyring, row.id, lease_s=60)
            resources = build_resources(reference(), result, manifest(), organization="Site")
            result_id = jobs.complete(session, keyring, claimed, result, resources)
            session.commit()
            return jobs.load_result(session, keyring, result_id)

    return stored


@pytest.fixture
def answer(database, keyring):
    def recorded(stored, draft, *, expected=0, by=ANNA):
        with database.sessions() as session:
            found = record_answer(session, keyring, stored, draft, expected_version=expected, by=by)
            session.commit()
        return found

    return recorded


@pytest.fixture
def answers(database, keyring):
    def loaded(stored):
        with database.reading() as session:
            return load_answers(session, keyring, stored.id)

    return loaded


def test_an_answer_is_read_back_as_it_was_given(store, answer, answers):
    stored = store()
    draft = replace(EDIT, text="two readers", comment="see prior", site="left temporal lobe", size_mm=12.5)
    given = answer(stored, draft)
    assert answers(stored).latest[CODE] == given


def test_an_answer_stands_beside_the_one_before(store, answer, answers):
    stored = store()
    answer(stored, ACCEPT)
    answer(stored, EDIT, expected=1, by=BEN)
    assert [(a.version, a.action, a.by.fhir_user) for a in answers(stored).of(CODE)] == [
        (1, AnswerAction.ACCEPTED, "Practitioner/anna"),
        (2, AnswerAction.EDITED, "Practitioner/ben"),
    ]


def test_who_answers_what_another_has_answered_since_is_told(store, answer):
    stored = store()
    answer(stored, ACCEPT)
    with pytest.raises(Conflict) as raised:
        answer(stored, EDIT, by=BEN)
    assert raised.value.code == "answer_overtaken"


def test_of_two_at_the_same_moment_one_answer_counts(store, answer, answers):
    stored = store()
    ends, start = [], threading.Barrier(2)

    def give(draft, by):
        start.wait()
        try:
            answer(stored, draft, by=by)
            ends.append("stored")
        except Conflict:
            ends.append("told")

    threads = [threading.Thread(target=give, args=pair) for pair in ((ACCEPT, ANNA), (EDIT, BEN))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sorted(ends), len(answers(stored).history)) == (["stored", "told"], 1)


def test_an_added_finding_gets_a_key_of_its_own(store, answer, answers):
    stored = store()
    first, second = answer(stored, ADD), answer(stored, ADD)
    assert {a.finding for a in answers(stored).added} == {first.finding, second.finding}


def test_an_added_finding_taken_back_does_not_count(store, answer, answers):
    stored = store()
    added = answer(stored, ADD)
    back = AnswerDraft(finding=added.finding, action=AnswerAction.WITHDRAWN, reason=AnswerReason.TAKEN_BACK)
    answer(stored, back, expected=1)
    assert (answers(stored).added, len(answers(stored).history)) == ((), 2)


def test_a_finding_of_the_model_cannot_be_taken_back(store, answer):
    draft = AnswerDraft(finding=CODE, action=AnswerAction.WITHDRAWN, reason=AnswerReason.TAKEN_BACK)
    with pytest.raises(InvalidRequest):
        answer(store(), draft)


def test_a_finding_that_the_result_has_not_cannot_be_answered(store, answer):
    with pytest.raises(InvalidRequest):
        answer(store(), replace(ACCEPT, finding="999"))


def test_where_no_model_answered_there_is_nothing_to_answer(store, answer):
    with pytest.raises(Conflict):
        answer(store(unanswered(AnalysisStatus.ABSTAINED)), ADD)


@pytest.mark.parametrize(
    ("draft", "field"),
    [
        (replace(EDIT, reason=None), "reason"),
        (replace(EDIT, reason=AnswerReason.ARTEFACT), "reason"),
        (replace(ACCEPT, reason=AnswerReason.OTHER), "reason"),
        (replace(EDIT, reason=AnswerReason.OTHER), "text"),
        (replace(EDIT, value=None), "value"),
        (replace(ACCEPT, value=FindingValue.PRESENT), "value"),
        (replace(ADD, value=FindingValue.ABSENT), "value"),
        (replace(ADD, display=" "), "display"),
        (replace(ADD, display="x" * 121), "display"),
        (replace(EDIT, text="x" * (MAX_TEXT + 1)), "text"),
        (replace(EDIT, comment="x" * (MAX_TEXT + 1)), "comment"),
        (replace(EDIT, size_mm=0.0), "size_mm"),
        (replace(EDIT, size_mm=float("nan")), "size_mm"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_field(draft, field):
    with pytest.raises(InvalidRequest) as raised:
        draft.check()
    assert raised.value.expression == field


@pytest.mark.parametrize("action", [*AnswerAction])
def test_every_action_has_its_list_of_reasons(action):
    assert action in REASONS


def test_words_are_sealed_at_rest(store, answer, database):
    stored = store()
    answer(stored, replace(EDIT, text="wanton haystack", comment="gullible otter"))
    with database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM finding_answer").fetchall()
    assert not any(word in repr(rows) for word in ("haystack", "otter", "anna"))


def test_nobody_touched_it_nothing_is_told(store, database, keyring):
    store()
    with database.reading() as session:
        assert answer_summary(session, keyring, "ehr", "patient-1") == {}


def test_the_summary_counts_answers_and_added_findings(store, answer, database, keyring):
    stored = store()
    answer(stored, ACCEPT)
    answer(stored, ADD)
    with database.reading() as session:
        state = answer_summary(session, keyring, "ehr", "patient-1")[stored.id]
    assert (state.answered, state.added, state.is_signed) == (1, 1, False)


def test_the_summary_tells_who_signed(store, database, keyring):
    stored = store()
    act = Act(act=SignAct.SIGN, status=DiagnosticReportStatus.FINAL, by=ANNA, answers="")
    with database.sessions() as session:
        add_signature(session, keyring, stored, act, [], version=2, authorization=None, clock=lambda: 99.0)
        session.commit()
    with database.reading() as session:
        state = answer_summary(session, keyring, "ehr", "patient-1")[stored.id]
    assert (state.is_signed, state.by, state.at) == (True, "Anna Ito", 99.0)


def test_another_patients_answers_are_not_in_the_summary(store, answer, database, keyring):
    answer(store(), ACCEPT)
    with database.reading() as session:
        assert answer_summary(session, keyring, "ehr", "patient-2") == {}


def test_the_newest_version_counts_whatever_the_clocks_say(store, database, keyring, answers):
    stored = store()
    for draft, version, now in ((ACCEPT, 0, 1_000_000.0), (EDIT, 1, 999_000.0)):
        with database.sessions() as session:
            record_answer(
                session, keyring, stored, draft, expected_version=version, by=ANNA, clock=lambda now=now: now
            )
            session.commit()
    assert (answers(stored).version(CODE), answers(stored).latest[CODE].action) == (2, AnswerAction.EDITED)


@pytest.mark.parametrize("name", ["added-0123456789ab", "added-a.b:c"])
@pytest.mark.parametrize("action", [AnswerAction.ADDED, AnswerAction.WITHDRAWN])
def test_nobody_names_an_added_finding_but_us(store, answer, name, action):
    draft = replace(ADD, finding=name)
    if action is AnswerAction.WITHDRAWN:
        draft = AnswerDraft(finding=name, action=action, reason=AnswerReason.TAKEN_BACK)
    with pytest.raises(InvalidRequest) as refused:
        answer(store(), draft)
    assert refused.value.expression == "finding"


def test_the_summary_says_what_was_signed_and_not_what_was_answered_since(store, answer, database, keyring):
    stored = store()
    answer(stored, EDIT)
    with database.sessions() as session:
        state = load_answers(session, keyring, stored.id).state
        act = Act(act=SignAct.SIGN, status=DiagnosticReportStatus.FINAL, by=ANNA, answers=state)
        add_signature(session, keyring, stored, act, [], version=2, authorization=None)
        session.commit()
    answer(stored, ACCEPT, expected=1, by=BEN)
    with database.reading() as session:
        told = answer_summary(session, keyring, "ehr", "patient-1")[stored.id]
    assert (told.said, told.says_present) == ({CODE: FindingValue.ABSENT}, False)
