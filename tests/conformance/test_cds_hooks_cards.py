"""What cards say, for each way in which an analysis can end.

Spec: CDS Hooks 2.0.1, "CDS Service Response"
"""

import json
import uuid
from dataclasses import replace

import pytest

from rayhook.cds_hooks.answers import StudyAnswer, Topic
from rayhook.cds_hooks.cards import CardWriter
from rayhook.cds_hooks.models import Card, Coding, Link, Source
from rayhook.fhir.r4 import read_imaging_study
from rayhook.inference.registry import ModelStatus
from rayhook.inference.statement import EXPERIMENTAL, INVESTIGATIONAL
from rayhook.inference.study import AnalysisStatus, Finding

NO_ANSWER = "says nothing about whether a finding is present"


@pytest.fixture
def ask(service, make):
    """Return the one card of a call about one study."""

    def one_card(*studies, **how):
        cards = service.cards(make.body(*studies), **how)
        assert len(cards) == 1
        return cards[0]

    return one_card


def topic(card):
    return card["source"]["topic"]["code"]


def test_a_finding_is_told_with_its_probability(ask):
    card = ask()
    assert topic(card) == "finding"
    assert "glioma, probability 0.871" in card["summary"]
    assert "| Glioma | 0.871 | 0.500 | possible |" in card["detail"]


def test_no_finding_says_its_limits(service, make, ask):
    service.analysis.result = lambda uid: make.result(uid, probability=0.03)
    card = ask()
    assert topic(card) == "no-finding"
    assert "does not exclude disease" in card["summary"]
    assert "| Glioma | 0.030 | 0.500 | below threshold |" in card["detail"]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (AnalysisStatus.ABSTAINED, "abstained"),
        (AnalysisStatus.OUT_OF_SCOPE, "out-of-scope"),
        (AnalysisStatus.REFUSED, "refused"),
    ],
)
def test_a_result_without_an_answer_says_so(service, make, ask, status, expected):
    service.analysis.result = lambda uid: make.result(uid, status=status, reason="the reason")
    card = ask()
    assert topic(card) == expected
    assert NO_ANSWER in card["detail"]
    assert "Reason: the reason" in card["detail"]


def test_an_abstention_shows_no_probability(service, make, ask):
    findings = (Finding("1", "urn:x", "Glioma", 0.9, 0.5, True),)
    service.analysis.result = lambda uid: make.result(uid, status=AnalysisStatus.ABSTAINED, findings=findings)
    assert "0.9" not in ask()["detail"]


@pytest.mark.parametrize(
    ("code", "expected"), [("truncated_pixel_data", "refused"), ("out_of_scope", "out-of-scope")]
)
def test_a_refused_job_names_its_code(service, ask, code, expected):
    service.analysis.refusal = code
    card = ask()
    assert topic(card) == expected
    assert f"Reason: {code}".replace("_", "\\_") in card["detail"]


@pytest.mark.parametrize("retryable", [True, False])
def test_a_failure_is_not_a_finding(service, ask, retryable):
    service.analysis.failure = ("upstream_timeout", retryable)
    card = ask()
    assert topic(card) == "failed"
    assert NO_ANSWER in card["detail"]


def test_an_analysis_under_way_says_so(service, ask):
    service.analysis.delay_s = 0.8
    card = ask(client=service.in_time)
    assert topic(card) == "in-progress"
    assert "in progress" in card["summary"]
    assert "links" not in card


def test_the_result_replaces_the_card_of_an_analysis_under_way(service, make):
    service.analysis.delay_s = 0.6
    body = make.body()
    topics = [topic(service.cards(body, client=client)[0]) for client in (service.in_time, service.client)]
    assert topics == ["in-progress", "finding"]
    assert len(service.analysis.claimed) == 1


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"endpoint": []}, "no_dicomweb_endpoint"),
        ({"endpoint": [{"reference": "https://elsewhere.example/Endpoint/1"}]}, "no_dicomweb_endpoint"),
        ({"identifier": []}, "no_study_instance_uid"),
    ],
)
def test_images_that_cannot_be_reached_are_told(make, ask, members, code):
    card = ask(make.study(**members))
    assert topic(card) == "unreachable"
    assert code.replace("_", "\\_") in card["detail"]


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/dicomweb",
        "http://127.0.0.1:90/dicomweb",
        "http://127.0.0.1:9@evil.example/",
        "http://127.0.0.1:9.evil.example/",
        "file:///etc/passwd",
        "nonsense",
    ],
)
def test_an_address_that_is_not_registered_is_refused_and_audited(service, make, address):
    body = make.body()
    body["prefetch"]["imagingStudies"] = make.bundle(make.study(), make.endpoint(address=address))
    card = service.cards(body)[0]
    assert topic(card) == "unreachable"
    assert len(service.audit("transport:address:refused")) == 1
    assert service.analysis.claimed == []


def test_every_card_is_investigational_dated_and_complete(ask):
    detail = ask()["detail"]
    assert INVESTIGATIONAL in detail
    for fact in (
        "Acquired: 2026-03-01T10:00:00Z",
        "Analysed: 2026-03-13T08:30:00Z",
        "Model: test-model, version 1.2.0, weights SHA-256 abababababab",
        "Intended use: Adult brain MR, axial FLAIR.",
    ):
        assert f"- {fact}" in detail
    assert "Trained on one data set." in detail


def test_the_smart_link_carries_the_result(service, ask):
    link = ask()["links"][0]
    assert (link["type"], link["url"]) == ("smart", "https://rayhook.example.org/smart/launch")
    assert set(json.loads(link["appContext"])) == {"result"}


@pytest.fixture
def write(service, make):
    """Return the card on a result whose model was and is as told."""

    def card(result, topic=Topic.FINDING, *, status=ModelStatus.EXPERIMENTAL, experimental=True):
        manifest = replace(service.dependencies.manifests[0], status=status)
        model = replace(result.model, experimental=experimental)
        study = read_imaging_study(make.study())
        answer = StudyAnswer(study=study, topic=topic, result_id="r", result=replace(result, model=model))
        return CardWriter(manifests=(manifest,), launch_url=None).card(answer)

    return card


@pytest.mark.parametrize(
    ("status", "experimental", "indicator"),
    [
        (ModelStatus.EXPERIMENTAL, True, "info"),
        (ModelStatus.EXPERIMENTAL, False, "info"),
        (ModelStatus.VALIDATED, True, "info"),
        (ModelStatus.VALIDATED, False, "warning"),
    ],
)
def test_only_a_model_that_was_and_is_validated_may_warn(make, write, status, experimental, indicator):
    card = write(make.result("1.2"), status=status, experimental=experimental)
    assert card.indicator == indicator


@pytest.mark.parametrize(
    ("topic", "probability"), [(Topic.FINDING, 0.87), (Topic.NO_FINDING, 0.03), (Topic.NOTHING_TO_RATE, 0.0)]
)
def test_the_summary_of_an_experimental_answer_says_so(make, write, topic, probability):
    assert write(make.result("1.2", probability=probability), topic).summary.startswith("Experimental AI: ")


@pytest.mark.parametrize("topic", [Topic.FINDING, Topic.NO_FINDING, Topic.ABSTAINED])
def test_the_detail_of_a_card_on_an_experimental_model_says_so(make, write, topic):
    assert EXPERIMENTAL in write(make.result("1.2"), topic).detail


def test_a_card_on_a_validated_model_does_not_say_experimental(make, write):
    card = write(make.result("1.2"), status=ModelStatus.VALIDATED, experimental=False)
    assert "experimental" not in f"{card.summary} {card.detail}".lower()


def test_nothing_to_rate_is_not_told_as_no_finding(service, make, ask):
    service.analysis.result = lambda uid: make.result(uid, findings=(), reason="no point was like it")
    card = ask()
    assert topic(card) == "nothing-to-rate"
    assert "nothing was found to rate" in card["summary"]
    assert "does not rule out what it looks for" in card["detail"]


def test_cards_have_uuids_of_their_own(service, make):
    cards = service.cards(make.body(make.study(1), make.study(2)))
    assert len({uuid.UUID(card["uuid"]) for card in cards}) == 2


def test_no_member_is_null_or_empty(service, make):
    def empty(value):
        if isinstance(value, dict | list):
            items = value.values() if isinstance(value, dict) else value
            return not value or any(empty(item) for item in items)
        return value is None or value == ""

    service.analysis.delay_s = 0.6
    cards = service.cards(make.body(make.study(1), make.study(2, identifier=[])), client=service.in_time)
    assert len(cards) == 2
    assert not empty(cards)


def test_without_studies_there_are_no_cards(service, make):
    body = make.body()
    body["prefetch"]["imagingStudies"] = make.bundle()
    assert service.cards(body) == []


def test_the_three_newest_studies_are_answered_newest_first(service, make):
    studies = [make.study(n) for n in (2, 5, 1, 4, 3)] + [make.study(9, started=None) | {"started": "2025"}]
    summaries = [card["summary"] for card in service.cards(make.body(*studies))]
    assert [summary.rsplit("of ", 1)[1] for summary in summaries] == [
        "2026-03-05",
        "2026-03-04",
        "2026-03-03",
    ]


@pytest.mark.parametrize("status", ["cancelled", "entered-in-error", "registered"])
def test_a_study_without_images_is_passed_over(service, make, status):
    assert service.cards(make.body(make.study(status=status))) == []


@pytest.mark.parametrize("status", [[], {}, ["cancelled"], None, 1])
def test_a_study_whose_status_is_not_a_word_is_told_as_unread(service, make, status):
    (card,) = service.cards(make.body(make.study(status=status)))
    assert topic(card) == "incomplete"


def test_a_changed_study_is_analysed_anew(service, make):
    for version in ("1", "2", "2"):
        service.cards(make.body(make.study(meta={"versionId": version})))
    assert len(service.analysis.claimed) == 2


def test_hostile_text_is_escaped(make, ask):
    description = "<img src=x onerror=alert(1)> [x](javascript:alert(1)) http://evil.example\n# title"
    detail = ask(make.study(description=description))["detail"]
    for forbidden in ("<img", "](", "javascript:", "http:", "\n#"):
        assert forbidden not in detail


def test_a_hostile_modality_or_date_does_not_reach_the_summary(make, ask):
    card = ask(make.study(modality=[{"code": "<b>"}], started="<i>2026"))
    assert "the imaging study of unknown date" in card["summary"]
    assert "Acquired: unknown" in card["detail"]


@pytest.mark.parametrize(
    "broken",
    [
        {"summary": "x" * 140},
        {"summary": ""},
        {"indicator": "success"},
        {"uuid": "1"},
        {"detail": ""},
    ],
)
def test_an_invalid_card_cannot_be_made(broken):
    source = Source(label="Rayhook", topic=Coding(code="a", system="urn:b"))
    content = {"uuid": str(uuid.uuid4()), "summary": "s", "indicator": "info", "source": source}
    Card(**content)
    with pytest.raises(ValueError):
        Card(**(content | broken))


@pytest.mark.parametrize(
    "broken",
    [{"type": "other"}, {"label": ""}, {"url": "javascript:x"}, {"type": "absolute", "app_context": "x"}],
)
def test_an_invalid_link_cannot_be_made(broken):
    content = {"label": "l", "url": "https://a.example", "type": "smart", "app_context": "{}"}
    Link(**content)
    with pytest.raises(ValueError):
        Link(**(content | broken))
