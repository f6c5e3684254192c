"""The catalogues against the code: nothing missing, nothing left over, every placeholder kept."""

import re
import subprocess
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po

from rayhook.smart_app.i18n import LANGUAGES, LOCALES, SOURCE

ROOT = Path(__file__).resolve().parents[3]
PLACEHOLDER = re.compile(r"%(?:\([a-z_]+\))?[sd%]")
TARGETS = sorted(set(LANGUAGES) - {SOURCE})


def catalogue(path: Path) -> Catalog:
    with path.open("rb") as file:
        return read_po(file)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory) -> Catalog:
    template = tmp_path_factory.mktemp("extracted") / "rayhook.pot"
    subprocess.run(["make", "-s", "-o", "setup", "texts", f"TEMPLATE={template}"], cwd=ROOT, check=True)
    return catalogue(template)


@pytest.fixture(params=TARGETS)
def translated(request) -> Catalog:
    return catalogue(LOCALES / request.param / "LC_MESSAGES" / "rayhook.po")


def ids(texts: Catalog) -> set[object]:
    return {message.id for message in texts if message.id}


def forms(text: object) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text)


def test_catalogue_has_the_texts_of_the_code(extracted, translated):
    assert ids(translated) == ids(extracted)


def test_every_text_is_translated(translated):
    assert [message.id for message in translated if message.id and not all(forms(message.string))] == []


def test_no_translation_is_a_guess(translated):
    assert [message.id for message in translated if message.id and message.fuzzy] == []


def test_translations_keep_the_placeholders(translated):
    for message in translated:
        if message.id:
            wanted = {frozenset(PLACEHOLDER.findall(form)) for form in forms(message.id)}
            for form in forms(message.string):
                assert frozenset(PLACEHOLDER.findall(form)) in wanted, message.id


def test_every_locale_folder_is_a_language_served():
    assert sorted(folder.name for folder in LOCALES.iterdir()) == TARGETS


# Names are the same in every language.
UNTRANSLATED = re.compile(
    r"Rayhook|SHA-256|MRN|UTC|Rayhook's|X-Request-Id|CSV|NDJSON|PDF|FHIR|rayhook audit [a-z-]+"
)
TEMPLATES = sorted((ROOT / "smart_app" / "templates").glob("*.html"))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_template_has_no_text_of_its_own(template):
    text = re.sub(r"\{% trans.*?\{% endtrans %\}", " ", template.read_text(), flags=re.DOTALL)
    text = re.sub(r"\{#.*?#\}|\{\{.*?\}\}|\{%.*?%\}", " ", text, flags=re.DOTALL)
    attributes = re.findall(r'\s(?:aria-label|alt|title|placeholder)="([^"]*)"', text)
    words = re.sub(r"<[^>]*>", " ", text) + " ".join(attributes)
    assert re.findall(r"[A-Za-z]{2,}", UNTRANSLATED.sub("", words)) == []
