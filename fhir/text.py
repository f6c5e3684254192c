"""Texts that a page may show in another language; everywhere else they stay English."""

from collections.abc import Mapping
from dataclasses import dataclass, field


def translatable(text: str) -> str:
    """Return `text` as it is: the call tells the extraction that this literal belongs in the catalogues."""
    return text


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence with values in it: `str()` is its English, a page may fill the template's translation.

    template: with placeholders such as `%(count)s`.
    """

    template: str
    values: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.template % self.values if self.values else self.template
