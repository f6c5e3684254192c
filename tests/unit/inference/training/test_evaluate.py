from dataclasses import replace

import numpy as np
import pytest

from rayhook.inference.preprocess import Preprocessing
from rayhook.inference.training.dataset import Cohort, DatasetRefused, Sample
from rayhook.inference.training.evaluate import Scores, evaluate, measure, pointing_hits
from rayhook.inference.training.foreign import synthetic_planes

SAMPLES = tuple(
    Sample(f"{p}{i}.png", None, int(i >= 2), p, site, i, "val")
    for p, site in (("p1", "A"), ("p2", "A"), ("p3", "B"))
    for i in range(5)
)


def _cohort(masks: np.ndarray | None = None) -> Cohort:
    planes = np.zeros((len(SAMPLES), 16, 16), np.float32)
    return Cohort(SAMPLES, planes, planes if masks is None else masks)


def _scores(probabilities: list[float], abstained: list[bool] | None = None) -> Scores:
    values = np.array(probabilities)
    return Scores(
        probabilities=values,
        logits=values,
        abstained=np.array(abstained or [False] * values.size),
        cams=np.zeros((values.size, 4, 4), np.float32),
    )


def _figures(flair, scores):
    package = replace(
        flair,
        manifest=replace(flair.manifest, labels=(replace(flair.manifest.labels[0], threshold=0.5),)),
    )
    return {(e.unit, e.subset): e for e in measure(package, _cohort(), scores, name="made up")}


def test_figures_are_given_for_all_for_each_site_and_for_series(flair):
    figures = _figures(flair, _scores([0.1, 0.2, 0.9, 0.9, 0.9] * 3))
    assert set(figures) == {("slice", "all"), ("slice", "site A"), ("slice", "site B"), ("series", "all")}
    assert figures["slice", "all"].estimates["auc"].value == 1.0
    assert figures["slice", "site A"].patients == 2


def test_one_odd_slice_does_not_make_a_series_positive(flair):
    figures = _figures(flair, _scores([0.1, 0.1, 0.1, 0.9, 0.1, *[0.9] * 10]))
    assert figures["series", "all"].estimates["sensitivity"].value == pytest.approx(2 / 3)


def test_declined_slices_do_not_count_for_their_series(flair):
    declined = [False, False, True, True, True, *[False] * 10]
    figures = _figures(flair, _scores([0.1, 0.1, 0.9, 0.9, 0.9, *[0.9] * 10], declined))
    assert figures["series", "all"].estimates["sensitivity"].value == pytest.approx(2 / 3)
    assert figures["slice", "all"].estimates["abstention"].value == pytest.approx(3 / 15)


def test_pointing_hits_where_the_hottest_cell_meets_the_mask():
    masks = np.zeros((len(SAMPLES), 16, 16), np.float32)
    masks[:2, 5, 9] = 1.0
    cams = np.zeros((len(SAMPLES), 4, 4), np.float32)
    cams[0, 1, 2] = cams[1, 3, 3] = 1.0
    np.testing.assert_array_equal(pointing_hits(_cohort(masks), cams)[:3], [1.0, 0.0, np.nan])


def test_an_absent_split_is_refused(flair, labelled_folder, engine_cache):
    with pytest.raises(DatasetRefused, match="split-exists"):
        evaluate(flair, labelled_folder, "test", cache_dir=engine_cache)


def test_foreign_planes_are_inputs():
    planes = synthetic_planes(Preprocessing(input_size=32), np.random.default_rng(0).random((3, 32, 32)))
    assert {image.shape[1:] for image in planes.values()} == {(32, 32)}
    assert not planes["constant"].any()
