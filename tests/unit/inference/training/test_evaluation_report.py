import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from rayhook.inference.registry import Estimate
from rayhook.inference.training.evaluation_report import (
    baseline,
    environment,
    file_sha256,
    finite,
    prevalence_table,
    read_report,
    without_prevalences,
)
from tests.unit.inference.training.evaluations import make_answers, make_report

NAN = float("nan")


@pytest.fixture(scope="module")
def report():
    return make_report()


@pytest.mark.parametrize(
    "name",
    [
        "auc",
        "sensitivity",
        "specificity",
        "ppv",
        "npv",
        "ece",
        "brier",
        "accuracy",
        "abstention",
        "accuracy_answered",
    ],
)
def test_figures_stand_at_the_top_of_the_document(report, name):
    assert set(json.loads(report.to_json())[name]) == {"value", "low", "high"}


def test_document_states_the_prevalence(report):
    assert json.loads(report.to_json())["prevalence"] == report.positives / 240


def test_document_is_read_back_as_it_was(report):
    assert read_report(report.to_json()) == report


def test_document_is_the_same_each_time(report):
    assert make_report().to_json() == report.to_json()


def test_figure_named_as_a_field_is_refused(report):
    with pytest.raises(ValueError, match="patients"):
        replace(report, estimates={"patients": Estimate(1, 1, 1)}).to_json()


def test_document_of_another_kind_is_refused():
    with pytest.raises(msgspec.ValidationError):
        read_report(b'{"auc": {"value": 1, "low": 1, "high": 1}}')


def test_what_could_not_be_estimated_is_left_out():
    assert finite({"a": Estimate(1, 0, 1), "b": Estimate(1, NAN, NAN)}).keys() == {"a"}


def test_predictive_values_stand_in_their_own_table():
    known = Estimate(0.5, 0.4, 0.6)
    assert without_prevalences({"ppv": known, "ppv_at_prevalence_0.1": known}).keys() == {"ppv"}


def test_unknown_predictive_value_is_none():
    found = {"ppv_at_prevalence_0.1": Estimate(NAN, NAN, NAN), "npv_at_prevalence_0.1": Estimate(1, 1, 1)}
    row = prevalence_table(found, (0.1,))[0]
    assert (row.ppv, row.npv) == (None, Estimate(1, 1, 1))


def test_baseline_has_the_difference_of_both_areas(report):
    other = report.baselines[0]
    assert other.difference.value == pytest.approx(report.estimates["auc"].value - other.auc.value)


def test_baseline_of_one_class_cannot_be_tested():
    answers = make_answers()
    part = answers.chosen(answers.labels == 1)
    found = baseline("constant", np.zeros(part.labels.size), part, rounds=5)
    assert (found.auc, found.difference, found.delong_p, found.clustered_p) == (None,) * 4


def test_digest_of_a_file(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"")
    assert file_sha256(tmp_path / "labels.csv").startswith("e3b0c442")


def test_environment_names_the_libraries():
    assert environment(("numpy",)).libraries == {"numpy": np.__version__}
