import ast
import re
from pathlib import Path

import pytest

import rayhook.inference.scope
from rayhook.inference.predict import AbstainReason
from rayhook.smart_app.i18n import Language, speaking
from rayhook.smart_app.reason_texts import TEMPLATES, reason_text

SHAPES = {re.sub(r"%\(\w+\)s", "*", template) for template in TEMPLATES}


def told_by_the_scope() -> list[str]:
    """Every reason of the rules, with a star for each value put in."""
    tree = ast.parse(Path(rayhook.inference.scope.__file__).read_text())
    texts = [
        "".join(part.value if isinstance(part, ast.Constant) else "*" for part in node.values)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
    ]
    return [text for text in texts if " is " in text or " say " in text or " says " in text]


@pytest.mark.parametrize("shape", told_by_the_scope())
def test_every_reason_of_the_scope_has_a_translation(shape):
    assert shape in SHAPES or shape == "a description says that the series is not * *"


@pytest.mark.parametrize("code", AbstainReason)
def test_every_reason_to_abstain_is_told_in_words(code):
    with speaking(Language(chosen="es")):
        assert code not in reason_text(f"the model gave no answer: {code} (3 of 9 images)")


@pytest.mark.parametrize(
    ("reason", "spanish"),
    [
        ("Modality is not CT or MR, which the model is meant for (2 of 2 images)", "CT or MR"),
        ("too few images could be used: decoding took too long (4 of 5 images)", "4 de 5"),
        ("the study holds no images", "el estudio no contiene imágenes"),
    ],
)
def test_values_and_counts_stay(reason, spanish):
    with speaking(Language(chosen="es")):
        told = reason_text(reason)
    assert spanish in told
    assert told != reason


def test_reason_that_is_not_known_stays_as_it_is():
    with speaking(Language(chosen="fr")):
        assert reason_text("a <reason> of (another) version %s; and more") == (
            "a <reason> of (another) version %s; and more"
        )


@pytest.mark.parametrize("template", TEMPLATES)
def test_english_is_what_was_stored(template):
    reason = re.sub(r"%\(\w+\)s", "7", template)
    assert reason_text(f"{reason} (3 of 9 images)") == f"{reason} (3 of 9 images)"
