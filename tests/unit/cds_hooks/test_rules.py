"""The clinical rules on orders. Spec: the sources that rayhook.cds_hooks.guidelines cites."""

from datetime import UTC, datetime, timedelta

import pytest

from rayhook.cds_hooks.answers import StudyAnswer, Topic, topic_of
from rayhook.cds_hooks.guidelines import DUPLICATE_DAYS, GUIDELINES, guideline_for
from rayhook.cds_hooks.orders import ImagingOrder
from rayhook.cds_hooks.rules import Duplicate, FollowUp, History, Misfit, advice_on, follow_ups
from rayhook.fhir.r4 import ImagingStudySummary
from rayhook.inference.anatomy import Region
from rayhook.inference.registry import load_models
from rayhook.inference.study import AnalysisStatus, Finding, StudyResult

SNOMED = "http://snomed.info/sct"
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
BRAIN, NODULE, FILM_NODULE, PNEUMONIA = "126952004", "162573006", "427359005", "233604007"


def study(id_="s1", *, days=10, modality="MR", description="MR head", **members):
    started = None if days is None else (NOW - timedelta(days=days)).isoformat()
    content = {
        "id": id_,
        "patient_id": "p1",
        "study_instance_uid": "1.2.3",
        "started": started,
        "status": "available",
        "modalities": (modality,),
        "description": description,
        "endpoint_references": (),
        "contained_endpoints": (),
        "number_of_instances": None,
        "source_version": "1",
        "body_sites": (),
        "based_on": None,
    }
    return ImagingStudySummary(**(content | members))


def answer(of, code=BRAIN, *, positive=True):
    found = Finding(code, SNOMED, "Something", 0.9 if positive else 0.1, 0.5, positive)
    result = StudyResult(
        "1.2.3", None, AnalysisStatus.ANALYSED, None, (found,), None, None, (), (), None, NOW, 1.0
    )
    return StudyAnswer(study=of, topic=topic_of(result), result_id="r1", result=result)


def order(modality="MR", region=Region.HEAD, reference="ServiceRequest/o1"):
    return ImagingOrder(reference, "what was ordered", modality, frozenset({region} if region else ()))


def history(*studies, answers=()):
    return History(studies=studies, answers=tuple(answers), now=NOW)


def kinds(advice):
    return [type(one) for one in advice]


class TestDuplicate:
    def test_the_same_kind_and_part_a_short_time_ago(self):
        (found,) = advice_on([order()], history(study(days=10)))
        assert (type(found), found.days) == (Duplicate, 10)

    @pytest.mark.parametrize(
        "other",
        [
            {"days": DUPLICATE_DAYS + 1},
            {"days": -1},
            {"days": None},
            {"modality": "CT"},
            {"description": "MR knee"},
            {"description": None},
            {"based_on": "ServiceRequest/o1"},
        ],
    )
    def test_anything_else_is_none(self, other):
        assert advice_on([order()], history(study(**other))) == ()

    @pytest.mark.parametrize("unclear", [order(modality=None), order(region=None)])
    def test_an_order_that_does_not_say_enough_is_compared_with_nothing(self, unclear):
        assert advice_on([unclear], history(study())) == ()

    def test_a_radiograph_is_one_whatever_its_device(self):
        film = study(modality="CR", description="Chest PA")
        assert kinds(advice_on([order("DX", Region.CHEST)], history(film))) == [Duplicate]

    def test_one_study_is_told_once(self):
        drafts = [order(reference="ServiceRequest/o1"), order(reference="ServiceRequest/o2")]
        assert kinds(advice_on(drafts, history(study()))) == [Duplicate]

    def test_the_last_day_counts(self):
        assert kinds(advice_on([order()], history(study(days=DUPLICATE_DAYS)))) == [Duplicate]

    def test_what_a_guideline_asks_for_is_no_repetition(self):
        found_on = study()
        assert advice_on([order()], history(found_on, answers=[answer(found_on)])) == ()


class TestFollowUp:
    @pytest.mark.parametrize(
        ("code", "days", "is_due"),
        [
            (BRAIN, 0, True),
            (NODULE, 89, False),
            (NODULE, 90, True),
            (FILM_NODULE, 0, True),
            (PNEUMONIA, 41, False),
            (PNEUMONIA, 42, True),
        ],
    )
    def test_it_is_due_from_the_day_that_the_guideline_names(self, code, days, is_due):
        found_on = study(days=days)
        advice = advice_on([order("US", Region.ABDOMEN)], history(found_on, answers=[answer(found_on, code)]))
        assert kinds(advice) == ([FollowUp] if is_due else [])

    @pytest.mark.parametrize(
        ("later", "is_due"),
        [
            ({"modality": "CT", "description": "CT chest"}, False),
            ({"modality": "PT", "description": "PET/CT lung"}, False),
            ({"modality": "CT", "description": "CT abdomen"}, True),
            ({"modality": "MR", "description": "MR chest"}, True),
            ({"modality": "CT", "description": "CT chest", "days": 200}, True),
            ({"modality": "CT", "description": "CT chest", "days": None}, True),
        ],
    )
    def test_a_later_study_of_the_kind_ends_it(self, later, is_due):
        found_on = study(days=150, modality="CT", description="CT chest")
        other = study("s2", **({"days": 5} | later))
        found = list(follow_ups(history(other, found_on, answers=[answer(found_on, NODULE)])))
        assert bool(found) is is_due

    def test_an_order_of_the_kind_ends_it(self):
        found_on = study(days=150, modality="CT", description="CT chest")
        assert (
            advice_on([order("CT", Region.CHEST)], history(found_on, answers=[answer(found_on, NODULE)]))
            == ()
        )

    def test_a_study_without_a_date_is_of_today(self):
        found_on = study(days=None)
        (found,) = follow_ups(history(found_on, answers=[answer(found_on, NODULE)]))
        assert found.due == NOW + timedelta(days=90)

    @pytest.mark.parametrize("started", ["9999-12-31", "0001", "2026-13-40", "soon"])
    def test_a_date_at_the_end_of_time_does_no_harm(self, started):
        found_on = study(started=started)
        assert len(list(follow_ups(history(found_on, answers=[answer(found_on)])))) == 1

    @pytest.mark.parametrize("said", [answer(study(), positive=False), answer(study(), code="1")])
    def test_without_a_finding_or_a_guideline_nothing_is_due(self, said):
        assert list(follow_ups(history(said.study, answers=[said]))) == []

    def test_an_answer_without_a_result_asks_for_nothing(self):
        said = StudyAnswer(study=study(), topic=Topic.IN_PROGRESS)
        assert list(follow_ups(history(said.study, answers=[said]))) == []

    def test_the_newest_finding_speaks_for_older_ones_of_the_guideline(self):
        newer, older = study("s2", days=5, modality="CT"), study("s1", days=50, modality="CT")
        found = list(follow_ups(history(newer, older, answers=[answer(newer), answer(older)])))
        assert [one.answer.study.id for one in found] == ["s2"]


class TestModality:
    def test_another_modality_for_the_same_part(self):
        found_on = study()
        advice = advice_on([order("CT")], history(found_on, answers=[answer(found_on)]))
        assert kinds(advice) == [Misfit]

    @pytest.mark.parametrize("other", [order("CT", Region.CHEST), order(None), order("CT", None)])
    def test_an_order_for_another_part_or_of_no_modality_is_none(self, other):
        found_on = study()
        advice = advice_on([other], history(found_on, answers=[answer(found_on)]))
        assert kinds(advice) == [FollowUp]

    def test_with_the_right_order_beside_it_there_is_none(self):
        found_on = study()
        drafts = [order("CT"), order("MR", reference="ServiceRequest/o2")]
        assert advice_on(drafts, history(found_on, answers=[answer(found_on)])) == ()


def test_every_guideline_has_a_source_that_can_be_looked_up():
    for guideline in GUIDELINES:
        assert guideline.citation.title
        assert guideline.citation.url.startswith("https://")
        assert guideline.procedure.modality in guideline.modalities


def test_every_finding_of_the_bundled_raters_has_a_guideline():
    for package in load_models():
        if package.manifest.role == "classifier":
            for label in package.manifest.labels:
                assert guideline_for(label.finding.system, label.finding.code) is not None
