import cv2
import matplotlib as mpl
import numpy as np
import pytest

from rayhook.inference.registry import Estimate
from rayhook.inference.training import plots
from rayhook.inference.training.bootstrap import Answers, roc_band
from rayhook.inference.training.contact_sheet import Example, contact_sheet, draw_examples, side_by_side
from rayhook.inference.training.metrics import reliability_bins
from tests.unit.inference.training.evaluations import make_answers

ANSWERS = make_answers()
ROWS = (
    plots.ForestRow("all", 24, 240, {"auc": Estimate(0.9, 0.8, 0.95), "sensitivity": Estimate(0.9, 0.8, 1)}),
    plots.ForestRow("site HT", 3, 30, {"auc": Estimate(0.9, float("nan"), float("nan"))}),
)


def _example(*, mask: bool = True) -> Example:
    grid = np.zeros((16, 16), np.float32)
    lesion = grid.copy()
    lesion[4:8, 4:8] = 1
    return Example("P01, 0.912", grid + 0.5, lesion, lesion if mask else None)


DRAWINGS = {
    "roc": lambda: plots.roc_plot(
        ANSWERS,
        band=roc_band(ANSWERS.labels, ANSWERS.probabilities, ANSWERS.patients, rounds=20),
        baselines={"mean intensity": np.arange(240.0)},
    ),
    "reliability": lambda: plots.reliability_plot(
        ANSWERS, reliability_bins(ANSWERS.labels, ANSWERS.probabilities)
    ),
    "risk": lambda: plots.risk_coverage_plot(ANSWERS, plots.confidence_of(ANSWERS.probabilities, 0.45)),
    "scores": lambda: plots.score_plot(ANSWERS),
    "forest": lambda: plots.forest_plot(ROWS),
    "sheet": lambda: contact_sheet({"true positive": [_example()], "false negative": []}),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_same_figures_give_the_same_bytes(name):
    assert DRAWINGS[name]() == DRAWINGS[name]()


@pytest.mark.parametrize("name", DRAWINGS)
def test_plot_is_a_picture_with_something_on_it(name):
    image = cv2.imdecode(np.frombuffer(DRAWINGS[name](), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[1] > 500
    assert image.std() > 5


def test_user_settings_neither_matter_nor_change():
    plain = DRAWINGS["scores"]()
    with mpl.rc_context({"font.size": 20.0}):
        assert DRAWINGS["scores"]() == plain
        assert mpl.rcParams["font.size"] == 20.0


def test_confidence_is_least_at_the_threshold():
    assert plots.confidence_of(np.array([0.0, 0.3, 0.45, 1.0]), 0.45).argmin() == 2


def test_examples_are_of_their_outcome():
    drawn = draw_examples(ANSWERS)["false negative"]
    assert ANSWERS.labels[drawn].all()
    assert not ANSWERS.positive[drawn].any()


def test_examples_are_at_most_one_a_patient():
    drawn = draw_examples(ANSWERS, each=50)["true positive"]
    assert np.unique(ANSWERS.patients[drawn]).size == drawn.size


def test_examples_of_an_outcome_that_did_not_happen_are_none():
    none = Answers(np.ones(2, int), np.ones(2), np.array(["a", "b"]), np.ones(2, bool), 0.5)
    assert draw_examples(none)["false positive"].size == 0


def test_example_shows_the_image_beside_the_overlay():
    image = side_by_side(_example())
    left, right = np.split(image, 2, axis=1)
    assert (left == 128).all()
    assert (right != 128).any()


def test_outline_is_drawn_where_there_is_a_mask():
    assert not np.array_equal(side_by_side(_example()), side_by_side(_example(mask=False)))
