"""The language of a request: negotiated once, then bound to everything that is written for people.

English is the source: a text without a translation is shown as it stands in the code.

Spec: RFC 9110 section 12.5.4 (Accept-Language); RFC 4647 section 3.4 (lookup); Unicode CLDR
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from gettext import GNUTranslations, NullTranslations
from pathlib import Path
from typing import Final

from babel import Locale
from babel.dates import format_date, format_datetime
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_decimal
from babel.units import format_unit
from starlette.requests import HTTPConnection

from rayhook.fhir.text import Sentence, translatable

__all__ = [
    "LANGUAGES",
    "Language",
    "day_text",
    "decimal_text",
    "gettext",
    "language",
    "language_of",
    "moment_text",
    "ngettext",
    "percent_text",
    "prefer",
    "speaking",
    "tell",
    "translatable",
    "unit_text",
]

DOMAIN: Final = "rayhook"
LOCALES: Final = Path(__file__).parent / "locales"
# What each language calls itself: the menu is for who cannot read the page's present language.
LANGUAGES: Final = {"en": "English", "es": "Español", "fr": "Français"}
SOURCE: Final = "en"
COOKIES: Final = ("__Host-rayhook-language", "rayhook-development-language")
_MAX_HEADER = 1000
_YEAR_LENGTH, _MONTH_LENGTH = 4, 7


@dataclass(slots=True)
class Language:
    """What is known of the wishes of one request's reader, by rank; `tag` is what the page is written in.

    registered: the EHR's, noted when it is known who asks.
    """

    chosen: str | None = None
    registered: str | None = None
    accepted: str | None = None

    @property
    def tag(self) -> str:
        return self.chosen or self.registered or self.accepted or SOURCE

    @property
    def locale(self) -> Locale:
        return _locale(self.tag)


_reading: ContextVar[Language | None] = ContextVar("language", default=None)


def language() -> Language:
    """Return the language of the present request; English outside of one."""
    return _reading.get() or Language()


def language_of(request: HTTPConnection) -> Language:
    """Return what the browser says: the choice made in the menu, and the languages it accepts."""
    chosen = next((request.cookies[name] for name in COOKIES if name in request.cookies), None)
    return Language(chosen=_served(chosen), accepted=accepted(request.headers.get("Accept-Language", "")))


@contextmanager
def speaking(spoken: Language) -> Iterator[Language]:
    """Bind the language for what runs inside, threads that are given this context included."""
    token = _reading.set(spoken)
    try:
        yield spoken
    finally:
        _reading.reset(token)


def prefer(registered: str | None) -> None:
    """Note the EHR's language: it ranks below the reader's own choice, and above the browser's wishes."""
    spoken = _reading.get()
    if spoken is not None:
        spoken.registered = _served(registered)


def accepted(header: str) -> str | None:
    """Return the first language of an Accept-Language header that is served here, by weight, then by place."""
    wishes = [_wish(part) for part in header[:_MAX_HEADER].split(",")]
    ranked = sorted((wish for wish in wishes if wish[1] > 0), key=lambda wish: -wish[1])
    return next((served for tag, _ in ranked if (served := _served(tag)) is not None), None)


def _wish(part: str) -> tuple[str, float]:
    tag, _, parameter = part.partition(";")
    name, _, weight = parameter.strip().partition("=")
    try:
        return tag.strip(), float(weight) if name.strip().lower() == "q" else 1.0
    except ValueError:
        return tag.strip(), 0.0


def _served(tag: str | None) -> str | None:
    """Return the language of ours that a tag asks for: `es-MX` is served Spanish."""
    primary = (tag or "").replace("_", "-").partition("-")[0].lower()
    return primary if primary in LANGUAGES else None


@cache
def _locale(tag: str) -> Locale:
    return Locale.parse(tag)


@cache
def _translations(tag: str) -> NullTranslations:
    """Compile the catalogue in memory: nothing built lies beside the source."""
    if tag == SOURCE:
        return NullTranslations()
    source = LOCALES / tag / "LC_MESSAGES" / f"{DOMAIN}.po"
    compiled = io.BytesIO()
    with source.open("rb") as file:
        write_mo(compiled, read_po(file, locale=tag, domain=DOMAIN))
    compiled.seek(0)
    return GNUTranslations(compiled)


def gettext(message: str, /, **values: object) -> str:
    """Return `message` in the reader's language, its `%(name)s` placeholders filled where values are given."""
    told = _translations(language().tag).gettext(message) if message else ""
    return told % values if values else told


def ngettext(singular: str, plural: str, number: int, /, **values: object) -> str:
    """Return the form for `number`; like `gettext`, it fills placeholders only where values are given."""
    told = _translations(language().tag).ngettext(singular, plural, number)
    return told % values if values else told


def tell(sentence: Sentence | str) -> str:
    """Return a sentence that another package made, in the reader's language."""
    if isinstance(sentence, str):
        return gettext(sentence)
    return gettext(sentence.template, **sentence.values)


def decimal_text(number: float, digits: int = 0) -> str:
    """Return a number with so many digits after the reader's own decimal mark."""
    return format_decimal(number, format=f"#,##0.{'0' * digits}".rstrip("."), locale=language().locale)


def percent_text(share: float, digits: int = 1) -> str:
    """Return a share (0..1) in percent."""
    locale = language().locale
    whole = locale.percent_formats[None].pattern
    pattern = whole.replace("##0", f"##0.{'0' * digits}") if digits else whole
    return format_decimal(share, format=pattern, locale=locale)


def day_text(instant: str | None) -> str:
    """Return the day of a FHIR date or dateTime as the reader writes it; a part of a date stays a part.

    Spec: FHIR R4 datatypes.html#dateTime
    """
    if not instant:
        return ""
    locale = language().locale
    try:
        if len(instant) == _YEAR_LENGTH:
            return str(int(instant))
        if len(instant) == _MONTH_LENGTH:
            return format_date(date.fromisoformat(f"{instant}-01"), "LLLL y", locale=locale)
        return format_date(date.fromisoformat(instant[:10]), "medium", locale=locale)
    except ValueError:
        return ""


def unit_text(count: int, unit: str) -> str:
    """Return a count with its unit, as "54 years"; `unit` is one of CLDR's, as `duration-year`."""
    return format_unit(count, unit, locale=language().locale)


def moment_text(instant: datetime) -> str:
    """Return an instant in UTC, which the text says."""
    return f"{format_datetime(instant, 'medium', locale=language().locale)} UTC"
