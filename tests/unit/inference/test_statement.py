from dataclasses import replace

import pytest

from rayhook.inference import aggregate
from rayhook.inference.statement import (
    EXPERIMENTAL,
    INVESTIGATIONAL,
    aggregation_text,
    cautions,
    marked,
    model_words,
)
from tests.unit.inference.samples import MODEL

VALIDATED = replace(MODEL, experimental=False)


@pytest.mark.parametrize(
    ("model", "said"),
    [(MODEL, (EXPERIMENTAL, INVESTIGATIONAL)), (VALIDATED, (INVESTIGATIONAL,)), (None, (INVESTIGATIONAL,))],
    ids=["experimental", "validated", "none"],
)
def test_every_answer_is_cautioned(model, said):
    assert cautions(model) == said


@pytest.mark.parametrize(("model", "name"), [(MODEL, "m (experimental)"), (VALIDATED, "m"), (None, "m")])
def test_an_experimental_model_is_marked(model, name):
    assert marked("m", model) == name


@pytest.mark.parametrize(("model", "words"), [(MODEL, "experimental model"), (VALIDATED, "model")])
def test_an_unnamed_model_says_what_it_is(model, words):
    assert model_words(model) == words


@pytest.mark.parametrize("name", [aggregate.MAX_OF_MEDIAN3, aggregate.MEAN_OF_CENTRAL])
def test_every_aggregation_has_words(name):
    assert name not in aggregation_text(name)


def test_an_unknown_aggregation_is_told_by_its_name():
    assert aggregation_text("mode") == "mode"
