import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from rayhook.inference.statement import INVESTIGATIONAL
from rayhook.inference.training.report_page import Picture, render_page
from tests.unit.inference.training.evaluations import make_report

VOID = {"meta", "img", "link", "br"}


class _Nesting(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report():
    return make_report()


@pytest.fixture(scope="module")
def page(report):
    return render_page(report, [Picture("ROC curve", b"\x89PNG")])


def test_page_carries_the_investigational_statement(page):
    assert INVESTIGATIONAL in page


def test_page_says_what_the_data_set_cannot_show_escaped(page):
    assert "Every patient has a tumour &amp; none is healthy &lt;at all&gt;." in page


def test_page_needs_nothing_beside_it(page):
    assert set(re.findall(r'(?:src|href)="([a-z/+]*:?)', page)) == {"data:"}
    assert "<script" not in page


def test_page_is_nested_rightly(page):
    parser = _Nesting()
    parser.feed(page)
    assert parser.open == []


@pytest.mark.parametrize(
    "words", ["mean intensity", "site HT", "Pointing game", "Figures by series", "Not sure", "1 %"]
)
def test_page_has_every_part(page, words):
    assert words in page


def test_picture_is_inline(page):
    assert 'alt="ROC curve" src="data:image/png;base64,iVBORw=="' in page


def test_parts_that_were_not_evaluated_are_left_out(report):
    bare = render_page(
        replace(report, subgroups=(), baselines=(), selection=None, explanation=None, other_units=())
    )
    headings = re.findall("<h2>(.*?)</h2>", bare)
    assert headings == [
        "What these figures do not show",
        "Figures by slice",
        "Predictive values at other prevalences",
        "Calibration",
        "Digests and environment",
    ]
