import pytest

from rayhook.fhir import codes
from rayhook.fhir.codes import Coding

CODINGS = {name: value for name, value in vars(codes).items() if isinstance(value, Coding)}


def test_json_is_a_coding():
    assert Coding("s", "c", "d").json() == {"system": "s", "code": "c", "display": "d"}


@pytest.mark.parametrize(("text", "expected"), [(None, {}), ("t", {"text": "t"})])
def test_concept_holds_the_coding(text, expected):
    coding = Coding("s", "c", "d")
    assert coding.concept(text) == {"coding": [coding.json()]} | expected


@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
def test_system_is_a_url_and_nothing_is_blank(coding):
    assert coding.system.startswith("http")
    assert coding.code.strip() == coding.code != ""
    assert coding.display.strip() == coding.display != ""


def test_no_coding_is_there_twice():
    assert len(set(CODINGS.values())) == len(CODINGS)


@pytest.mark.parametrize(
    "coding", [c for c in CODINGS.values() if c.system == codes.DCM], ids=lambda c: c.code
)
def test_dicom_displays_are_the_standards(coding):
    from pydicom.sr._concepts_dict import concepts

    meanings = {code: meaning for entry in concepts["DCM"].values() for code, (meaning, _) in entry.items()}
    assert meanings[coding.code] == coding.display
