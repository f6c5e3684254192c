"""From the engine's numbers to an answer: calibrated, thresholded, or none at all."""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.engine import EngineOutput, InferenceEngine
from rayhook.inference.preprocess import Float
from rayhook.inference.registry import Calibration, Label, ModelPackage, unit_rows

_FLAT_STD = 0.05


class AbstainReason(StrEnum):
    """Why a model gives no answer."""

    CONSTANT_IMAGE = "constant_image"
    NOT_THE_INTENDED_IMAGE = "not_the_intended_image"
    NON_FINITE_OUTPUT = "non_finite_output"
    OUT_OF_DISTRIBUTION = "out_of_distribution"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One label's answer for one image.

    logit and probability stand even when abstained, and are NaN for non_finite_output only.
    positive: probability at or above threshold, and not abstained.
    distance: of the features from the training images', see feature_distance.
    cam: (h, w), class activation map in logits; its average is the logit.
    """

    label: str
    logit: float
    probability: float
    threshold: float
    positive: bool
    abstained: bool
    reason: AbstainReason | None
    distance: float
    cam: Float


def predict(
    package: ModelPackage, engine: InferenceEngine, images: Float, *, timeout_s: float = 30.0
) -> list[Prediction]:
    """Return the answers for an image (s, s, 3) or a batch (n, s, s, 3), image by image, label by label.

    Raises EngineUnavailable if the engine does not answer in time, ModelIntegrityError if it or the
    weights are not what the manifest pins.
    """
    batch = images[np.newaxis] if images.ndim == 3 else images  # noqa: PLR2004
    output = engine.run(batch, timeout_s)
    distances, is_far = _far(package, output.features)
    is_other = _other(package, output)
    predictions = []
    for index, image in enumerate(batch):
        reason = _reason(image, output, index, is_far=is_far[index], is_other=is_other[index])
        predictions += [
            _answer(label, output.logits[index, k], output.cam[index, :, :, k], distances[index], reason)
            for k, label in enumerate(package.manifest.labels)
        ]
    return predictions


def calibrate(logit: float, calibration: Calibration) -> float:
    """Return the calibrated probability of a logit."""
    return 0.5 * (1.0 + math.tanh((calibration.a * logit + calibration.b) / 2))


def feature_distance(features: Float, reference: Float, *, neighbour: int) -> NDArray[np.float64]:
    """Return how far each of the features (n, 2048) is from its neighbour-th nearest reference row.

    Both on the unit sphere, so 0 is the same direction and 2 the opposite one.
    Source: Sun et al. 2022, arXiv:2204.06507, algorithm 1
    """
    cosine = unit_rows(features) @ reference.T
    nearest = np.partition(cosine, -neighbour, axis=1)[:, -neighbour].astype(np.float64)
    distance: NDArray[np.float64] = np.sqrt(np.maximum(0.0, 2.0 - 2.0 * nearest))
    return distance


def _far(package: ModelPackage, features: Float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the distances of features (n, channels), and which of them are too far for an answer."""
    ood = package.manifest.ood
    if ood is None:
        return np.zeros(len(features)), np.zeros(len(features), np.bool_)
    distances = feature_distance(features, package.reference, neighbour=ood.neighbour)
    return distances, distances > ood.threshold


def _other(package: ModelPackage, output: EngineOutput) -> NDArray[np.bool_]:
    """Return which images the input check tells to be something else than the model is meant for."""
    check = package.manifest.check
    if check is None:
        return np.zeros(len(output.features), np.bool_)
    kernel, bias = package.check
    values = inner_averages(output.early, output.features) @ kernel + bias
    return np.asarray(values > check.threshold)


def inner_averages(early: Float, features: Float) -> Float:
    """Return what the input check looks at (n, early_count + feature_count), on a scale that tames peaks."""
    averages: Float = np.sqrt(np.maximum(np.concatenate([early, features], axis=1), 0.0))
    return averages


def _reason(
    image: Float, output: EngineOutput, index: int, *, is_far: np.bool_, is_other: np.bool_
) -> AbstainReason | None:
    if not (np.isfinite(output.logits[index]).all() and np.isfinite(output.features[index]).all()):
        return AbstainReason.NON_FINITE_OUTPUT
    if image[..., 0].std() < _FLAT_STD:
        return AbstainReason.CONSTANT_IMAGE
    if is_other:
        return AbstainReason.NOT_THE_INTENDED_IMAGE
    return AbstainReason.OUT_OF_DISTRIBUTION if is_far else None


def _answer(
    label: Label, logit: np.float32, cam: Float, distance: np.float64, reason: AbstainReason | None
) -> Prediction:
    finite = reason is not AbstainReason.NON_FINITE_OUTPUT
    probability = calibrate(float(logit), label.calibration) if finite else float("nan")
    return Prediction(
        label=label.name,
        logit=float(logit) if finite else float("nan"),
        probability=probability,
        threshold=label.threshold,
        positive=reason is None and probability >= label.threshold,
        abstained=reason is not None,
        reason=reason,
        distance=float(distance),
        cam=cam,
    )
