from dataclasses import replace

import pytest

from rayhook.inference.held_out import AtPrevalence, HeldOut, ReliabilityBin
from rayhook.inference.registry import Estimate
from rayhook.inference.study import AnalysisStatus, Mark
from rayhook.smart_app.chart import slice_chart
from rayhook.smart_app.figures import model_view
from rayhook.smart_app.finding_view import finding_view
from rayhook.smart_app.marks import mark_table
from rayhook.smart_app.numbers import percent, plural
from tests.unit.smart_app.conftest import MANIFEST, rated_result, study_result

STRONG, WEAK = Mark(10, 20, 0.9, 0.8, positive=True), Mark(30, 40, 0.5, 0.1, positive=False)
DECLINED = Mark(50, 60, 0.95, None, positive=False)


@pytest.mark.parametrize(
    ("probability", "shown"),
    [(0.0, "< 0.1%"), (0.0009, "< 0.1%"), (0.05, "5.0%"), (0.874, "87.4%"), (0.9999, "> 99.9%")],
)
def test_percent_is_never_certain(probability, shown):
    assert percent(probability).replace("\N{NO-BREAK SPACE}", " ") == shown


def test_chart_marks_what_reaches_the_threshold():
    chart = slice_chart([0.1, 0.4, 0.39], threshold=0.4, key_index=1)
    assert [bar.above for bar in chart.bars] == [False, True, False]


def test_chart_outlines_the_image_shown():
    chart = slice_chart([0.1, 0.9, 0.2], threshold=0.5, key_index=1)
    assert [bar.key for bar in chart.bars] == [False, True, False]


def test_chart_is_told_to_who_cannot_see_it():
    chart = slice_chart([0.1, 0.9], threshold=0.5, key_index=1)
    assert "1 at or above the threshold of 50%" in chart.alternative
    assert "number 2" in chart.alternative


@pytest.mark.parametrize(
    ("unit", "count", "words"),
    [
        ("slice", 2, "slices"),
        ("series", 2, "series"),
        ("nodule", 1, "nodule"),
        ("nodule", 2, "nodules"),
        ("film", 2, "films"),
        ("crop", 2, "nodule cross-sections"),
    ],
)
def test_units_have_their_plural(unit, count, words):
    assert plural(unit, count) == words


def described(**changes):
    evaluation = replace(MANIFEST.evaluations[0], **changes)
    return model_view(replace(MANIFEST, evaluations=(evaluation,)))


def test_figures_name_their_unit():
    told = described(unit="nodule", patients=1, count=30, positives=12).evaluated_on
    assert ": 1 patient, 30 nodules, 12 with the finding. Figures count nodules;" in told


@pytest.mark.parametrize("name", ["accuracy_answered", "iou", "npv_at_prevalence_0.01"])
def test_every_figure_has_words(name):
    (figure,) = described(estimates={name: Estimate(0.5, 0.4, 0.6)}).figures
    assert figure.meaning


def test_a_predictive_value_names_its_prevalence():
    (figure,) = described(estimates={"ppv_at_prevalence_0.05": Estimate(0.5, 0.4, 0.6)}).figures
    assert figure.name == "Positive predictive value at a prevalence of 5.0%"


def test_points_are_listed_the_strongest_first():
    table = mark_table(rated_result("1.2", (0, WEAK), (1, DECLINED), (2, STRONG)))
    assert [mark.row for mark in table.marks] == [10, 30, 50]


def test_a_point_names_its_slice_in_anatomical_order():
    (mark,) = mark_table(rated_result("1.2", (0, STRONG))).marks
    assert mark.slice_number == "5"


def test_a_point_without_an_answer_says_so():
    (mark,) = mark_table(rated_result("1.2", (0, DECLINED))).marks
    assert (mark.probability, mark.answer) == ("no answer", "not rated")


def test_a_point_on_the_image_of_the_page_is_told():
    table = mark_table(rated_result("1.2", (2, STRONG), (3, WEAK)))
    assert [mark.shown for mark in table.marks] == [True, False]


def test_only_the_strongest_points_are_listed():
    table = mark_table(rated_result("1.2", *[(n % 5, WEAK) for n in range(30)]))
    assert (len(table.marks), table.caption) == (10, "The 10 strongest of 30 points rated")


@pytest.mark.parametrize(
    "result",
    [
        rated_result("1.2"),
        rated_result("1.2", (0, STRONG), status=AnalysisStatus.ABSTAINED),
        rated_result("1.2", (0, STRONG), series_instance_uid="9.9"),
    ],
    ids=["no points", "no answer", "another series"],
)
def test_without_points_of_the_answer_there_is_no_table(result):
    assert mark_table(result) is None


def held_out(*, seen=0.998, count=500, ppv=(0.998, 0.97, 0.999)):
    at = AtPrevalence(0.05, ppv=Estimate(*ppv), npv=Estimate(*ppv))
    near = ReliabilityBin(0.9, 1.0, count, 0.95, Estimate(seen, 0.985, 0.9996))
    return HeldOut("m", "0" * 64, "finding", "slice", 60, 900, 500, (near,), (at,))


def shown(evaluation):
    finding = study_result("1.2.3", probability=0.95).findings[0]
    return finding_view(finding, evaluation, unit="slice", is_aggregated=False)


def test_no_measured_share_is_rounded_to_certainty():
    text = shown(held_out()).interval.text
    assert "99.8% (95% Wilson interval 98.5% to >\N{NO-BREAK SPACE}99.9%)" in text


def test_a_share_that_was_all_of_them_is_told_as_it_was_counted():
    assert "20 had the finding: 100.0%" in shown(held_out(seen=1.0, count=20)).interval.text


def test_no_predictive_value_is_a_hundred_of_a_hundred():
    (sentence,) = shown(held_out()).frequencies
    assert "more than 99 of 100" in sentence
    assert "(95% interval 97 to more than 99)" in sentence


def test_an_area_that_is_not_perfect_is_not_rounded_to_it():
    (figure,) = described(estimates={"auc": Estimate(0.9996, 0.998, 1.0)}).figures
    assert (figure.value, figure.interval) == (">\N{NO-BREAK SPACE}0.999", "0.998 to 1.000")
