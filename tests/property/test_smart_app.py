import json

from hypothesis import given
from hypothesis import strategies as st

from rayhook.smart_app.chart import slice_chart
from rayhook.smart_app.landing import named_result
from rayhook.smart_app.numbers import percent

PROBABILITY = st.floats(0, 1)


CONTEXTS = st.none() | st.text() | st.dictionaries(st.just("result") | st.text(), st.text()).map(json.dumps)


@given(CONTEXTS)
def test_no_app_context_names_anything_but_a_result(context):
    named = named_result(context)
    assert named is None or (len(named) == 32 and set(named) <= set("0123456789abcdef"))


@given(PROBABILITY)
def test_no_probability_reads_as_certainty(probability):
    assert percent(probability) not in {"0.0%", "100.0%"}


@given(st.lists(PROBABILITY, min_size=2, max_size=400), PROBABILITY)
def test_bars_stay_within_the_chart(probabilities, threshold):
    chart = slice_chart(probabilities, threshold=threshold, key_index=0)
    for bar in chart.bars:
        assert chart.left <= bar.x <= bar.x + bar.width <= chart.right + 0.1
        assert 0 <= bar.y <= bar.y + bar.height <= chart.height
