"""The input check: a linear rule that tells a model's own kind of image from anything else."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.preprocess import Float

_RIDGE = 0.1
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True, slots=True)
class LinearCheck:
    """kernel: (channels,).  bias: (1,).  threshold: of the rule's value, above which an image is foreign."""

    kernel: Float
    bias: Float
    threshold: float

    def values(self, averages: Float) -> NDArray[np.float64]:
        """Return the rule's values (n,) for inner averages (n, channels)."""
        return np.asarray(averages @ self.kernel + self.bias, np.float64)


def fit_input_check(own: Float, foreign: Mapping[str, Float], held: Float, *, share: float) -> LinearCheck:
    """Return the rule that tells own (n, channels) from each kind of foreign images, kinds weighing alike.

    Ridge regression on +1 and -1 of standardised channels.  held: the model's own images of other
    patients, of which that share lies at or below the threshold.
    Source: Hastie, Tibshirani and Friedman 2009, section 4.2 (linear regression of an indicator)
    """
    rows = np.concatenate([own, *foreign.values()]).astype(np.float64)
    target = np.concatenate([-np.ones(len(own)), *(np.ones(len(kind)) for kind in foreign.values())])
    kinds = [np.full(len(kind), 0.5 / len(kind) / len(foreign)) for kind in foreign.values()]
    weight = np.concatenate([np.full(len(own), 0.5 / len(own)), *kinds])
    mean = weight @ rows
    spread = np.sqrt(weight @ (rows - mean) ** 2) + _LEAST_SPREAD
    scaled = (rows - mean) / spread
    offset = float(weight @ target)
    curvature = (scaled * weight[:, np.newaxis]).T @ scaled + _RIDGE * np.eye(scaled.shape[1])
    slope = np.linalg.solve(curvature, scaled.T @ (weight * (target - offset)))
    kernel = (slope / spread).astype(np.float32)
    bias = np.array([offset - mean @ (slope / spread)], np.float32)
    unset = LinearCheck(kernel, bias, np.inf)
    return LinearCheck(kernel, bias, float(np.quantile(unset.values(held), share)))
