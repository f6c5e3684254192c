from dataclasses import dataclass

import numpy as np
import pytest

from rayhook.inference.engine import EngineOutput
from rayhook.inference.predict import AbstainReason, calibrate, feature_distance, predict
from rayhook.inference.preprocess import prepare
from rayhook.inference.registry import Calibration, unit_rows


@dataclass
class FixedEngine:
    """Answers any image with given numbers, as a faulty engine could."""

    output: EngineOutput
    ready: bool = True

    def run(self, batch, timeout_s):
        return self.output

    def close(self):
        pass


def _prepared(package, pixels):
    return prepare(
        pixels.astype(np.float32), pixel_spacing_mm=None, recipe=package.manifest.preprocessing
    ).image


def test_a_single_image_and_a_batch_of_one_are_the_same(flair, local_engine):
    image = _prepared(flair, np.random.default_rng(0).normal(size=(64, 64)))
    (alone,), (batched,) = (
        predict(flair, local_engine, image),
        predict(flair, local_engine, image[np.newaxis]),
    )
    assert alone.probability == batched.probability
    assert alone.label == "tumour"


def test_constant_image_is_declined(flair, local_engine):
    (answer,) = predict(flair, local_engine, _prepared(flair, np.full((64, 64), 7.0)))
    assert answer.reason is AbstainReason.CONSTANT_IMAGE
    assert not answer.positive


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_declined(flair, local_engine, seed):
    (answer,) = predict(
        flair, local_engine, _prepared(flair, np.random.default_rng(seed).normal(size=(256, 256)))
    )
    assert answer.abstained
    assert answer.reason is AbstainReason.NOT_THE_INTENDED_IMAGE


def test_non_finite_output_is_declined(flair):
    features = np.ones((1, 2048), np.float32)
    early = np.ones((1, 1792), np.float32)
    output = EngineOutput(
        np.full((1, 1), np.nan, np.float32), features, early, np.zeros((1, 8, 8, 1), np.float32)
    )
    (answer,) = predict(flair, FixedEngine(output), np.ones((1, 128, 128, 3), np.float32))
    assert answer.reason is AbstainReason.NON_FINITE_OUTPUT
    assert not answer.positive


def test_features_of_a_training_image_are_near():
    reference = unit_rows(np.random.default_rng(0).random((50, 2048), np.float32))
    near = feature_distance(reference[:3] * 5, reference, neighbour=1)
    np.testing.assert_allclose(near, 0.0, atol=2e-3)
    assert feature_distance(-reference[:1], reference, neighbour=5)[0] > 1.4


@pytest.mark.parametrize(
    ("logit", "probability"), [(0.0, 0.5), (2.0, 0.9525741), (-1000.0, 0.0), (1000.0, 1.0)]
)
def test_platt_scaling(logit, probability):
    assert calibrate(logit, Calibration(a=1.5, b=0.0)) == pytest.approx(probability, abs=1e-6)


@pytest.mark.dataset
def test_held_out_slices_are_answered_as_the_manifest_says(flair, local_engine, mri_lgg):
    from rayhook.inference.training.dataset import load_cohort, read_samples
    from rayhook.inference.training.evaluate import score
    from rayhook.inference.training.metrics import auc

    samples = [sample for sample in read_samples(mri_lgg) if sample.split == "val"][::8]
    cohort = load_cohort(samples, mri_lgg, flair.manifest.preprocessing)
    scores = score(flair, local_engine, cohort.planes)
    interval = flair.manifest.evaluations[0].estimates["auc"]
    assert auc(cohort.labels, scores.probabilities) > interval.low - 0.02
    assert scores.abstained.mean() < 0.1
