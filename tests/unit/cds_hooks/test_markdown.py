import pytest

from rayhook.cds_hooks.markdown import escape


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("MR head FLAIR", "MR head FLAIR"),
        ("a\r\nb\x1b[31m\x00c", "a b \\[31m c"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert\\(1\\)&lt;/script&gt;"),
        ("*bold* _it_ `code`", "\\*bold\\* \\_it\\_ \\`code\\`"),
        ("a|b", "a\\|b"),
        ("&lt;", "&amp;lt;"),
        ("\u202eevil\u2028x", "evil x"),
        ("", ""),
    ],
)
def test_foreign_text_is_shown_as_it_is(text, shown):
    assert escape(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "[x](javascript:alert(1))",
        "![x](http://evil.example/x.png)",
        "http://evil.example",
        "www.evil.example",
        "ftp://evil.example",
        "me@evil.example",
        "<https://evil.example>",
        "[ref]: http://evil.example",
    ],
)
def test_no_address_survives(text):
    shown = escape(text)
    assert not any(
        word in shown for word in ("javascript:", "http:", "https:", "ftp:", "](", "www.e", "@e", "//")
    )


def test_long_text_is_cut():
    assert len(escape("x" * 1000)) == 200
