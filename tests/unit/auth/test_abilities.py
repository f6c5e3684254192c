import pytest

from rayhook.auth.abilities import Abilities, Ability, missing_scopes
from rayhook.auth.scopes import ScopeSet, as_version_1


def test_everything_is_granted_by_a_scope_for_all():
    assert Abilities.of(ScopeSet.parse("patient/*.cruds")).missing == ()


def test_nothing_is_granted_without_a_clinical_scope():
    assert Abilities.of(ScopeSet.parse("openid launch")).granted == frozenset()


def test_a_page_can_ask_for_one():
    abilities = Abilities.of(ScopeSet.parse("patient/Patient.r patient/ImagingStudy.r"))
    assert (Ability.READ_PATIENT in abilities, Ability.SEARCH_STUDIES in abilities) == (True, False)


def test_what_is_missing_is_named():
    scopes = ScopeSet.parse("patient/DiagnosticReport.cr patient/Observation.r patient/Device.c")
    assert missing_scopes(scopes, Ability.WRITE_RESULTS) == ("Observation.c", "Provenance.c")


def test_a_scope_limited_by_a_query_is_no_leave():
    scopes = ScopeSet.parse("patient/ImagingStudy.rs?status=available")
    assert Ability.SEARCH_STUDIES not in Abilities.of(scopes)


@pytest.mark.parametrize(
    ("granted", "limit", "kept"),
    [
        ("patient/Patient.r openid", "patient/Patient.r openid", "patient/Patient.r openid"),
        ("patient/Patient.cruds", "patient/Patient.rs", "patient/Patient.rs"),
        ("patient/Observation.rs", "patient/*.r", "patient/Observation.r"),
        ("patient/*.r", "patient/Patient.r", ""),
        ("user/Patient.r", "patient/Patient.r", ""),
        ("patient/Patient.r offline_access", "patient/Patient.r", "patient/Patient.r"),
        ("patient/Observation.rs?category=imaging", "patient/Observation.rs", None),
    ],
)
def test_a_renewed_grant_is_never_wider(granted, limit, kept):
    expected = granted if kept is None else kept
    assert ScopeSet.parse(granted).within(ScopeSet.parse(limit)) == ScopeSet.parse(expected)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("patient/Patient.r", "patient/Patient.read"),
        ("patient/ImagingStudy.rs", "patient/ImagingStudy.read"),
        ("system/Observation.cu", "system/Observation.write"),
        ("patient/*.cruds", "patient/*.*"),
        ("openid", "openid"),
        ("patient/Observation.rs?category=imaging", "patient/Observation.rs?category=imaging"),
    ],
)
def test_a_server_of_version_1_is_asked_in_its_words(scope, expected):
    assert as_version_1(scope) == expected
