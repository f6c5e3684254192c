"""Foreign text in a card's Markdown: shown as it is, never obeyed.

Spec: GitHub Flavored Markdown 0.29, 6.1 (backslash escapes), 6.9 (autolinks extension), 6.10 (raw HTML)
"""

import re
import unicodedata

_SPECIAL = re.compile(r"([\\`*_\[\](){}#!|~:$^=])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# The word joiner is not seen, and no renderer takes what it divides for an address.
_ADDRESS = re.compile(r"(?<=[@.])(?=[^\W\d_])|(?<=/)(?=/)")
_WORD_JOINER = "\u2060"
_MAX_LENGTH = 200


def one_line(text: str) -> str:
    """Return `text` on one line, without what cannot be seen."""
    visible = text if text.isprintable() else "".join(map(_visible, text))
    return " ".join(visible.split())


def escape(text: str) -> str:
    """Return one line of GFM that shows `text`: no markup, no HTML, no link; at most 200 characters of it."""
    line = one_line(text)
    if len(line) > _MAX_LENGTH:
        line = line[: _MAX_LENGTH - 1] + "…"
    line = _ADDRESS.sub(_WORD_JOINER, line)
    line = "".join(_ENTITIES.get(character, character) for character in line)
    return _SPECIAL.sub(r"\\\1", line)


def _visible(character: str) -> str:
    """Controls, and marks that turn the direction of reading, become spaces."""
    return " " if unicodedata.category(character)[0] in "CZ" else character
