import pytest

from rayhook.auth.scopes import ScopeSet


@pytest.mark.parametrize(
    ("granted", "context", "resource_type", "interaction"),
    [
        ("patient/Observation.rs", "patient", "Observation", "r"),
        ("patient/Observation.rs", None, "Observation", "rs"),
        ("patient/*.cruds", "patient", "Provenance", "cruds"),
        ("patient/Observation.r patient/Observation.s", "patient", "Observation", "rs"),
        ("user/Patient.read", "user", "Patient", "rs"),
        ("system/DiagnosticReport.write", "system", "DiagnosticReport", "cud"),
        ("system/*.*", "system", "Device", "cruds"),
        ("openid  launch\tpatient/Patient.r", "patient", "Patient", "r"),
    ],
)
def test_granted(granted: str, context: str | None, resource_type: str, interaction: str) -> None:
    assert ScopeSet.parse(granted).permits(context, resource_type, interaction)


@pytest.mark.parametrize(
    ("granted", "context", "resource_type", "interaction"),
    [
        ("", None, "Observation", "r"),
        ("patient/Observation.rs", "user", "Observation", "r"),
        ("patient/Observation.rs", "patient", "Patient", "r"),
        ("patient/Observation.rs", "patient", "Observation", "c"),
        ("patient/Observation.read", "patient", "Observation", "c"),
        ("patient/Observation.write", "patient", "Observation", "r"),
        ("patient/Observation.rs?category=imaging", "patient", "Observation", "r"),
        ("patient/Observation.sr", "patient", "Observation", "r"),
        ("patient/Observation.", "patient", "Observation", "r"),
        ("patient/Observation.rr", "patient", "Observation", "r"),
        ("patient/observation.rs", "patient", "observation", "r"),
        ("patient/Obs*.rs", "patient", "Observation", "r"),
        ("Patient/Observation.rs", "patient", "Observation", "r"),
        ("patient/Observation.rs", "patient", "Observation", ""),
        ("patient/*.cruds", "patient", "Observation", "x"),
        ("patient/Observation.read?category=imaging", "patient", "Observation", "r"),
        ("xpatient/Observation.rs", "patient", "Observation", "r"),
    ],
)
def test_not_granted(granted: str, context: str | None, resource_type: str, interaction: str) -> None:
    assert not ScopeSet.parse(granted).permits(context, resource_type, interaction)


def test_a_limited_scope_does_not_spoil_an_unlimited_one() -> None:
    granted = ScopeSet.parse("patient/Observation.rs?category=imaging patient/Observation.r")
    assert granted.permits("patient", "Observation", "r")
    assert not granted.permits("patient", "Observation", "s")


def test_other_scopes_are_kept() -> None:
    assert "openid" in ScopeSet.parse("openid patient/Patient.r")


def test_clinical_scopes_are_not_among_the_others() -> None:
    assert ScopeSet.parse("openid patient/Patient.r").others == {"openid"}


def test_equal_sets_have_equal_hashes() -> None:
    one, two = ScopeSet.parse("openid patient/Patient.rs"), ScopeSet.parse("patient/Patient.read openid")
    assert hash(one) == hash(two)
