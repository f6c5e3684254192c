import json

import pytest

from rayhook.inference.inventory import describe_model
from rayhook.inference.registry import ModelPackage
from tests.unit.inference.samples import manifest


def test_a_model_is_described_in_json(flair):
    described = describe_model(flair)
    assert json.loads(json.dumps(described, allow_nan=False)) == described


@pytest.mark.parametrize(
    "field",
    [
        "id",
        "version",
        "modality",
        "body_part",
        "status",
        "labels",
        "threshold",
        "weights_sha256",
        "metrics",
    ],
)
def test_a_model_is_described_in_full(flair, field):
    assert describe_model(flair)[field]


def test_a_label_is_coded(flair):
    (label,) = describe_model(flair)["labels"]
    assert label["finding"] == {
        "system": "http://snomed.info/sct",
        "code": "126952004",
        "display": "Neoplasm of brain",
    }


def test_the_threshold_is_that_of_the_leading_label(flair):
    described = describe_model(flair)
    assert described["threshold"] == described["labels"][0]["threshold"]


def test_every_figure_has_its_interval(flair):
    figures = describe_model(flair)["metrics"].values()
    assert {frozenset(figure) for figure in figures} == {frozenset(("value", "low", "high"))}


def test_the_figures_name_their_data(flair):
    assert describe_model(flair)["evaluated_on"]["dataset"] == flair.manifest.evaluations[0].dataset


def test_a_model_without_figures_has_none(tmp_path):
    assert describe_model(ModelPackage(tmp_path, manifest()))["metrics"] == {}
