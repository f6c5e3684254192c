from urllib.parse import urljoin, urlsplit

from hypothesis import given
from hypothesis import strategies as st

from rayhook.smart_app.chart import slice_chart
from rayhook.smart_app.launch import landing
from rayhook.smart_app.numbers import percent

PROBABILITY = st.floats(0, 1)


@given(st.none() | st.text() | st.dictionaries(st.text(), st.text()).map(str))
def test_no_app_context_leads_elsewhere(context):
    assert (
        urlsplit(urljoin("https://rayhook.example/smart/callback", landing(context))).netloc
        == "rayhook.example"
    )


@given(PROBABILITY)
def test_no_probability_reads_as_certainty(probability):
    assert percent(probability) not in {"0.0%", "100.0%"}


@given(st.lists(PROBABILITY, min_size=2, max_size=400), PROBABILITY)
def test_bars_stay_within_the_chart(probabilities, threshold):
    chart = slice_chart(probabilities, threshold=threshold, key_index=0)
    for bar in chart.bars:
        assert chart.left <= bar.x <= bar.x + bar.width <= chart.right + 0.1
        assert 0 <= bar.y <= bar.y + bar.height <= chart.height
