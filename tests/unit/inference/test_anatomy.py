import pytest

from rayhook.fhir.codes import DCM, SNOMED
from rayhook.inference.anatomy import DIAGNOSTIC_SERVICE, Region, modality_of, regions_of, usual


@pytest.mark.parametrize(
    ("text", "modality"),
    [
        ("MRI of brain without contrast", "MR"),
        ("Magnetic resonance angiography", "MR"),
        ("CT chest", "CT"),
        ("CTA head", "CT"),
        ("Computerised tomography of abdomen", "CT"),
        ("PET/CT whole body", "PT"),
        ("Chest x-ray, 2 views", "DX"),
        ("Plain radiograph of the knee", "DX"),
        ("US abdomen", "US"),
        ("Ultrasound of the kidneys", "US"),
        ("Screening mammogram", "MG"),
        ("please tell us", None),
        ("direct access", None),
        ("Blood count", None),
        ("", None),
    ],
)
def test_words_name_a_modality(text, modality):
    assert modality_of((), [text]) == modality


@pytest.mark.parametrize(
    ("system", "code", "modality"),
    [
        (DCM, "CR", "DX"),
        (DCM, "MR", "MR"),
        (DCM, "121071", None),
        (DIAGNOSTIC_SERVICE, "NMR", "MR"),
        (DIAGNOSTIC_SERVICE, "RAD", None),
        ("http://example.org", "CT", None),
        (None, None, None),
    ],
)
def test_codes_name_a_modality(system, code, modality):
    assert modality_of([(system, code)], ()) == modality


def test_a_code_counts_for_more_than_words():
    assert modality_of([(DCM, "CT")], ["MRI"]) == "CT"


@pytest.mark.parametrize(
    ("code", "same"), [("CR", "DX"), ("DX", "DX"), ("PET", "PT"), ("SR", None), (None, None)]
)
def test_what_is_the_same_to_whoever_orders(code, same):
    assert usual(code) == same


@pytest.mark.parametrize(
    ("text", "regions"),
    [
        ("MRI of brain", {Region.HEAD}),
        ("CT thorax", {Region.CHEST}),
        ("CT head and neck", {Region.HEAD, Region.NECK}),
        ("MR thoracic spine", {Region.SPINE}),
        ("CT chest, abdomen and pelvis", {Region.CHEST, Region.ABDOMEN, Region.PELVIS}),
        ("x-ray of the left hand", {Region.LIMB}),
        ("headache", set()),
        ("", set()),
    ],
)
def test_words_name_parts_of_the_body(text, regions):
    assert regions_of((), [text]) == regions


def test_codes_name_parts_of_the_body():
    codes = [(SNOMED, "12738006"), (SNOMED, "1"), ("http://example.org", "39607008"), (SNOMED, None)]
    assert regions_of(codes, ()) == {Region.HEAD}
