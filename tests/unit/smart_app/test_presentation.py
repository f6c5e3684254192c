import pytest

from rayhook.smart_app.chart import slice_chart
from rayhook.smart_app.presentation import percent


@pytest.mark.parametrize(
    ("probability", "shown"),
    [(0.0, "< 0.1 %"), (0.0009, "< 0.1 %"), (0.05, "5.0 %"), (0.874, "87.4 %"), (0.9999, "> 99.9 %")],
)
def test_percent_is_never_certain(probability, shown):
    assert percent(probability).replace("\N{NO-BREAK SPACE}", " ") == shown


def test_chart_marks_what_reaches_the_threshold():
    chart = slice_chart([0.1, 0.4, 0.39], threshold=0.4, key_index=1)
    assert [bar.above for bar in chart.bars] == [False, True, False]


def test_chart_outlines_the_image_shown():
    chart = slice_chart([0.1, 0.9, 0.2], threshold=0.5, key_index=1)
    assert [bar.key for bar in chart.bars] == [False, True, False]


def test_chart_is_told_to_who_cannot_see_it():
    chart = slice_chart([0.1, 0.9], threshold=0.5, key_index=1)
    assert "1 at or above the threshold of 50%" in chart.alternative
    assert "number 2" in chart.alternative
