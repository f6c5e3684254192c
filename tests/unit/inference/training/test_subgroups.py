import numpy as np
import pytest

from rayhook.inference.registry import Estimate
from rayhook.inference.training.bootstrap import Answers
from rayhook.inference.training.dataset import Sample
from rayhook.inference.training.subgroups import RATING, measured, of_classes, subgroups


def _samples(**columns):
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [Sample("a", None, 0, "p", "", 0, "val", attributes=row) for row in rows]


def _names(samples, **options):
    return {f"{name}: {value}": rows.tolist() for name, value, rows in subgroups(samples, **options)}


@pytest.mark.parametrize(
    ("column", "texts", "named"),
    [
        ("site", ["DU", "HT"], ["site: DU", "site: HT"]),
        ("gender", ["male", "Female"], ["sex: Female", "sex: Male"]),
        ("age", ["39", "60"], ["age: 60 to 79", "age: below 40"]),
        ("diameter_mm_median", ["5.9", "6"], ["diameter: 6 to below 8 mm", "diameter: below 6 mm"]),
        ("size_mm", ["15", "15.5"], ["diameter: 8 to 15 mm", "diameter: above 15 mm"]),
        ("n_readers", ["2", "3"], ["readers: 3 or more", "readers: fewer than 3"]),
        ("subtlety", ["1", "5"], ["subtlety: 1", "subtlety: 5"]),
    ],
)
def test_a_column_tells_subgroups_apart(column, texts, named):
    assert sorted(_names(_samples(**{column: texts}))) == named


@pytest.mark.parametrize("texts", [["A", "A"], ["", ""], ["A", ""]])
def test_a_column_of_one_value_tells_nothing(texts):
    assert _names(_samples(site=texts)) == {}


def test_rows_without_a_value_are_in_no_subgroup():
    assert _names(_samples(age=["", "30", "70"]))["age: below 40"] == [False, True, False]


def test_lesions_are_parted_in_thirds_without_the_rows_that_have_none():
    found = _names(_samples(mask_px=["0", "1", "2", "3", "4", "5", "6"]))
    assert [sum(rows) for rows in found.values()] == [2, 2, 2]


def test_sites_of_training_are_told_from_others():
    found = _names(_samples(site=["DU", "CS", "HT"]), known_sites=frozenset({"DU", "HT"}))
    assert found["sites: unseen"] == [False, True, False]


def test_a_finder_is_told_by_the_rating_as_well():
    assert "rating: indeterminate" in _names(_samples(label=["-1", "1"]), rules=(RATING,))


def _answers(labels, patients):
    count = len(labels)
    return Answers(
        np.array(labels), np.full(count, 0.5), np.array(patients), np.ones(count, np.bool_), threshold=0.5
    )


def _figures(_rows):
    return {name: Estimate(1.0, 1.0, 1.0) for name in ("auc", "ppv", "sensitivity", "pointing")}


def test_a_subgroup_of_few_patients_is_counted_without_figures():
    answers = _answers([0, 1, 0], ["a", "b", "b"])
    (found,) = measured(answers, iter([("site", "A", np.ones(3, np.bool_))]), _figures)
    assert (found.patients, found.count, found.estimates) == (2, 3, {})


def test_a_subgroup_of_one_class_has_only_that_classes_figures():
    assert set(of_classes(_answers([1, 1], ["a", "b"]), _figures(None))) == {"sensitivity", "pointing"}


def test_a_subgroup_of_both_classes_has_all_figures():
    assert "ppv" in of_classes(_answers([0, 1], ["a", "b"]), _figures(None))
