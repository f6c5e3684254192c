import json
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayhook.cds_hooks.answers import StudyAnswer, Topic, topic_of
from rayhook.cds_hooks.cards import CardWriter
from rayhook.cds_hooks.markdown import one_line
from rayhook.cds_hooks.review_words import in_sentence
from rayhook.fhir.r4 import ImagingStudySummary
from rayhook.inference.statement import INVESTIGATIONAL
from rayhook.inference.study import AnalysisStatus, Finding, ModelIdentity, StudyResult

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
WRITER = CardWriter(manifests=(), launch_url="https://rayhook.example.org/smart/launch")

studies = st.builds(
    ImagingStudySummary,
    id=st.just("s"),
    patient_id=st.just("p"),
    study_instance_uid=st.just("1.2"),
    started=st.none() | TEXT | st.just("2026-03-01T10:00:00+02:00"),
    status=st.just("available"),
    modalities=st.lists(TEXT | st.text("ABCDEFGHIJKLMNOP", min_size=2, max_size=20), max_size=5).map(tuple),
    description=st.none() | TEXT,
    endpoint_references=st.just(()),
    contained_endpoints=st.just(()),
    number_of_instances=st.none(),
    source_version=st.just("1"),
    body_sites=st.just(()),
    based_on=st.none(),
)
findings = st.builds(
    Finding,
    code=st.just("1"),
    system=st.just("urn:x"),
    display=TEXT.filter(one_line),
    probability=st.floats(0, 1),
    threshold=st.floats(0, 1),
    positive=st.booleans(),
)
results = st.builds(
    StudyResult,
    study_instance_uid=st.just("1.2"),
    series_instance_uid=st.just("1.2.3"),
    status=st.sampled_from(AnalysisStatus),
    reason=st.none() | TEXT,
    findings=st.lists(findings, max_size=4).map(tuple),
    model=st.none() | st.just(ModelIdentity("m", "1", "ab" * 32)),
    aggregation=st.none(),
    instances=st.just(()),
    slice_probabilities=st.just(()),
    key_image=st.none(),
    analysed_at=st.just(datetime(2026, 3, 1, tzinfo=UTC)),
    elapsed_ms=st.just(1.0),
)
unfinished = st.sampled_from(
    [Topic.FAILED, Topic.IN_PROGRESS, Topic.OUT_OF_SCOPE, Topic.REFUSED, Topic.UNREACHABLE]
)


def check(card):
    wire = json.loads(msgspec.json.encode(card))
    assert 0 < len(wire["summary"]) < 140
    assert "\n" not in wire["summary"]
    assert INVESTIGATIONAL in wire["detail"]
    assert "<" not in wire["detail"]
    assert all(value not in (None, "", [], {}) for value in wire.values())


@pytest.mark.parametrize(
    ("display", "said"),
    [
        ("Neoplasm of brain", "neoplasm of brain"),
        ("MRI finding", "MRI finding"),
        ("Mass\n in the left\u2028lobe\n", "mass in the left lobe"),
        ("0\n", "0"),
        ("Mass\u202e of lung", "mass of lung"),
    ],
)
def test_a_findings_name_is_one_line_of_a_sentence(display, said):
    assert in_sentence(display) == said


@given(studies, results)
def test_every_result_makes_a_valid_card(study, result):
    check(WRITER.card(StudyAnswer(study=study, topic=topic_of(result), result_id="r", result=result)))


@given(studies, unfinished, st.none() | TEXT)
def test_every_want_of_a_result_makes_a_valid_card(study, topic, code):
    card = WRITER.card(StudyAnswer(study=study, topic=topic, code=code))
    check(card)
    assert "probability" not in (card.detail or "")
