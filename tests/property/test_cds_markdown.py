import re

from hypothesis import given
from hypothesis import strategies as st

from rayhook.cds_hooks.markdown import escape

HOSTILE = st.text(
    st.sampled_from("<>&[]()!`*_~|#:/.@\\\n\r\t \u202eaw") | st.characters(exclude_categories=["Cs"])
)


@given(HOSTILE)
def test_what_is_escaped_is_one_line_without_markup(text):
    shown = escape(text)
    assert "\n" not in shown
    assert "<" not in shown
    assert ">" not in shown
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]()|~#!:]", shown)


@given(HOSTILE)
def test_nothing_readable_is_lost(text):
    shown = escape(text).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    letters = [c for c in text if c.isascii() and c.isalnum()]
    assert [c for c in shown if c.isascii() and c.isalnum()][:100] == letters[:100]
