import pytest

from rayhook.smart_app.i18n import Language, speaking
from rayhook.smart_app.patient import age_text, banner_of


@pytest.mark.parametrize(
    ("born", "today", "age"),
    [
        ("1972-05-02", "2026-05-01", "53 years"),
        ("1972-05-01", "2026-05-01", "54 years"),
        ("2024-05-02", "2026-05-01", "23 months"),
        ("2026-04-20", "2026-05-01", "11 days"),
        ("2026-05-01", "2026-05-01", "0 days"),
        ("2024-02-29", "2026-02-28", "23 months"),
        ("1972", "2026-05-01", ""),
        ("2027-01-01", "2026-05-01", ""),
    ],
)
def test_age_is_counted_in_the_unit_that_matters(born, today, age):
    assert age_text(born, today) == age


def test_banner_says_who_it_is():
    banner = banner_of(
        {
            "name": [{"text": "Ana Osler"}],
            "birthDate": "1900",
            "gender": "female",
            "identifier": [
                {"value": "X1", "type": {"text": "Insurance"}},
                {"value": "4711", "type": {"coding": [{"code": "MR"}]}},
            ],
        }
    )
    assert (banner.name, banner.facts) == ("Ana Osler", ("Born 1900", "Female", "MRN 4711"))


def test_identifier_without_a_kind_is_a_number():
    assert banner_of({"identifier": [{"value": "7"}]}).facts == ("No. 7",)


@pytest.mark.parametrize(
    ("patient", "alert"),
    [
        ({"deceasedBoolean": True}, "Deceased"),
        ({"deceasedBoolean": False}, ""),
        ({"deceasedDateTime": "2026-03-01"}, "Died Mar 1, 2026"),
    ],
)
def test_death_is_not_overlooked(patient, alert):
    assert banner_of(patient).alert == alert


def test_age_of_who_has_died_is_that_at_death():
    facts = banner_of({"birthDate": "1950-01-01", "deceasedDateTime": "2000-01-01T08:00:00Z"}).facts
    assert facts == ("Born Jan 1, 1950, 50 years",)


def test_banner_is_written_in_the_readers_language():
    with speaking(Language(chosen="fr")):
        banner = banner_of({"gender": "male", "birthDate": "1950-03-01", "deceasedDateTime": "2000-03-02"})
    assert banner.facts == ("Né(e) le 1 mars 1950, 50 ans", "Homme")


def test_values_of_a_wrong_form_leave_gaps():
    assert banner_of({"birthDate": 7, "gender": "?", "identifier": ["x"]}).facts == ()
