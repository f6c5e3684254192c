import json
from dataclasses import replace

import pytest

from rayhook.fhir.errors import ModelIntegrityError
from rayhook.inference.held_out import EVALUATION, HeldOut, ReliabilityBin, load_held_out
from rayhook.inference.registry import Estimate, ModelPackage, load_models

SHARE = Estimate(0.5, 0.3, 0.7)
PAIR = HeldOut(
    "m",
    "ab",
    "tumour",
    "slice",
    3,
    10,
    4,
    reliability=(ReliabilityBin(0.1, 0.4, 5, 0.2, SHARE), ReliabilityBin(0.6, 0.9, 5, 0.8, SHARE)),
)


def test_every_installed_model_with_an_evaluation_has_it_of_its_own_weights():
    packages = load_models()
    held_out = load_held_out(packages)
    assert set(held_out) == {package.manifest.weights_sha256 for package in packages}


@pytest.mark.parametrize(
    ("probability", "low"), [(0.0, 0.1), (0.3, 0.1), (0.45, 0.1), (0.55, 0.6), (1.0, 0.6)]
)
def test_a_probability_belongs_to_the_nearest_bin(probability, low):
    assert PAIR.bin_of(probability).low == low


def test_without_bins_there_is_none():
    assert replace(PAIR, reliability=()).bin_of(0.5) is None


def test_the_shipped_bins_hold_wilson_intervals():
    """A share of n has the same interval wherever it is computed."""
    for held_out in load_held_out(load_models()).values():
        for one in held_out.reliability:
            assert one.observed.low == pytest.approx(wilson(one)[0], abs=1e-4)
            assert one.observed.high == pytest.approx(wilson(one)[1], abs=1e-4)


def wilson(one, z=1.959964):
    n, p = one.count, one.observed.value
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5 / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def test_an_evaluation_of_other_weights_is_refused(tmp_path):
    package = load_models()[0]
    data = json.loads((package.folder / EVALUATION).read_text()) | {"weights_sha256": "00" * 32}
    (tmp_path / EVALUATION).write_text(json.dumps(data))
    with pytest.raises(ModelIntegrityError):
        load_held_out([ModelPackage(tmp_path, package.manifest)])


def test_a_package_without_an_evaluation_has_none(tmp_path):
    assert load_held_out([ModelPackage(tmp_path, load_models()[0].manifest)]) == {}
