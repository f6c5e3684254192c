import pytest

from rayhook.inference.registry import Estimate
from rayhook.inference.training.figure_text import interval, ordered, p_value, shown, title

FOUND = Estimate(0.97041, 0.92118, 0.99266)


@pytest.mark.parametrize(("found", "text"), [(FOUND, "0.970 (0.921 to 0.993)"), (None, "not estimable")])
def test_figure_with_its_interval(found, text):
    assert interval(found) == text


@pytest.mark.parametrize(
    ("p", "text"), [(0.0312, "0.031"), (1e-9, "below 0.001"), (0.0, "below 0.001"), (None, "not testable")]
)
def test_p_value(p, text):
    assert p_value(p) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("auc", "AUC"),
        (
            "sensitivity_at_specificity_0.96",
            "Sensitivity where specificity is 96 %, threshold chosen on these rows",
        ),
        ("pointing_game", "Pointing game"),
    ],
)
def test_title_of_a_figure(name, text):
    assert title(name) == text


def test_known_figures_come_first():
    assert [name for name, _ in ordered({"zeta": FOUND, "brier": FOUND, "auc": FOUND})] == [
        "AUC",
        "Brier score",
        "Zeta",
    ]


def test_absent_figure_is_a_dash():
    assert shown({"auc": FOUND}, ("auc", "ece")) == [interval(FOUND), "-"]
