from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from rayhook.fhir.errors import ModelIntegrityError
from rayhook.inference.registry import SourceAttribute
from rayhook.inference.statement import INVESTIGATIONAL
from rayhook.inference.training.evaluation_report import read_report
from rayhook.inference.training.figure_text import interval
from rayhook.inference.training.model_card import model_card
from tests.unit.inference.training.evaluations import make_report


@pytest.fixture(scope="module")
def report(flair):
    return make_report(flair.manifest.weights_sha256)


@pytest.fixture(scope="module")
def card(flair, report):
    return model_card(flair.manifest, report)


def test_card_is_the_same_each_time(flair, report, card):
    assert model_card(flair.manifest, report) == card


def test_card_of_the_document_read_back_is_the_same(flair, report, card):
    assert model_card(flair.manifest, read_report(report.to_json())) == card


def test_card_has_all_source_attributes(card):
    table = card.split("## Source attributes")[1].split("##")[0]
    numbers = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert numbers[2:] == [str(number) for number in range(1, 32)]


@pytest.mark.parametrize(
    "name", ["auc", "sensitivity", "specificity", "ece", "abstention", "accuracy_answered"]
)
def test_card_gives_figures_with_intervals(card, report, name):
    assert interval(report.estimates[name]) in card


def test_card_states_the_limits_of_model_and_data(flair, card, report):
    assert all(f"- {limit}\n" in card for limit in (*flair.manifest.limits, *report.limits))


@pytest.mark.parametrize(
    "words",
    [INVESTIGATIONAL, "site DU", "mean intensity", "series", "Pointing game", "## Licence", "126952004"],
)
def test_card_has_every_part(card, words):
    assert words in card


def test_card_is_refused_for_other_weights(flair):
    with pytest.raises(ModelIntegrityError, match="not of the weights"):
        model_card(flair.manifest, make_report())


def test_bar_and_line_break_do_not_end_a_cell(flair, report):
    attribute = SourceAttribute(1, "Developer", "one | two\nthree")
    text = model_card(replace(flair.manifest, card=(attribute,)), report)
    assert r"| 1 | Developer | one \| two three |" in text


def test_tables_are_tables(card):
    html = MarkdownIt("commonmark").enable("table").render(card)
    assert html.count("<table>") == card.count("| --- |\n") > 5
