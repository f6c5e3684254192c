import numpy as np
import pytest

from rayhook.inference.training.dataset import Cohort, Sample
from rayhook.inference.training.evaluation_rows import open_package
from rayhook.inference.training.explanation_check import (
    HEAD,
    HEAD_AND_LAST_STAGE,
    explain,
    point,
    random_cams,
    redrawn,
    similarity,
)


def _cohort(labels, masks):
    samples = tuple(Sample(f"{k}.png", None, v, f"p{k}", "", 0, "val") for k, v in enumerate(labels))
    return Cohort(samples, np.random.default_rng(0).random(masks.shape).astype(np.float32), masks)


@pytest.fixture
def pointed():
    """Figures of maps whose heat is right, wrong, and of a lesion without the finding."""
    masks, cams = np.zeros((3, 32, 32), np.float32), np.zeros((3, 4, 4), np.float32)
    masks[:, 10:14, 18:22] = 1.0
    cams[0, 1, 2] = cams[1, 3, 3] = cams[2, 1, 2] = 1.0
    return point(_cohort([1, 1, 0], masks), cams)


def test_heat_points_at_input_geometry(pointed):
    np.testing.assert_array_equal(pointed.pointing, [1.0, 0.0, np.nan])


def test_heat_points_by_cell(pointed):
    np.testing.assert_array_equal(pointed.pointing_by_cell, [1.0, 0.0, np.nan])


def test_chance_is_the_masks_share(pointed):
    assert pointed.by_chance[0] == pytest.approx(16 / 1024)


def test_a_map_is_like_itself_and_its_negative():
    maps = np.random.default_rng(0).random((2, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(similarity(maps, maps * np.array([1, -1])[:, None, None]), [1.0, 1.0])


def test_a_flat_map_is_like_nothing():
    maps = np.random.default_rng(0).random((1, 4, 4)).astype(np.float32)
    assert np.isnan(similarity(maps, np.ones_like(maps))).all()


def test_only_the_layers_named_are_redrawn():
    weights = {"layer2.0.conv1.kernel": np.ones((3, 3)), "layer1.0.conv1.kernel": np.ones((3, 3))}
    drawn = redrawn(weights, ("layer2.",))
    assert [(drawn[name] == weights[name]).all() for name in weights] == [False, True]


def test_redrawn_weights_are_the_same_each_time():
    weights = {"head.kernel": np.arange(9.0).reshape(3, 3)}
    np.testing.assert_array_equal(*(redrawn(weights, ("head",))["head.kernel"] for _ in range(2)))


def test_redrawn_biases_are_zero():
    assert not redrawn({"head.bias": np.ones(3)}, ("head",))["head.bias"].any()


@pytest.fixture(scope="module")
def rater(models):
    return open_package("ct-lung-nodule", models)


def test_networks_with_random_parts_have_maps_of_the_models_size(rater):
    found = random_cams(rater, np.random.default_rng(0).random((3, 32, 32)).astype(np.float32))
    assert {part: draws[0].shape for part, draws in found.items()} == {
        HEAD: (3, 4, 4),
        HEAD_AND_LAST_STAGE: (3, 4, 4),
    }


def test_without_masks_the_sanity_test_stands_alone(rater):
    cohort = _cohort([0, 1] * 3, np.zeros((6, 32, 32), np.float32))
    cams = np.random.default_rng(1).random((6, 4, 4)).astype(np.float32)
    found = explain(rater, cohort, cams, point(cohort, cams), rounds=20)
    assert (found.pointing, [one.part for one in found.randomised]) == (None, [HEAD, HEAD_AND_LAST_STAGE])
