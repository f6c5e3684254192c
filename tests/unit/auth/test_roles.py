"""Each condition of a rule, and what the registry file may say of roles."""

import re
from pathlib import Path

import pytest

from rayhook.auth.registry import EHRRegistry, load_registry
from rayhook.auth.role_rules import EHRPerson, RoleRule, derive_roles
from rayhook.auth.roles import Permission, Role, permissions_of
from rayhook.auth.staff_provider import ClientAuthentication
from rayhook.fhir.errors import InvalidRequest

CLINICIAN = frozenset({Role.CLINICIAN})
RADIOLOGIST = frozenset({Role.RADIOLOGIST})
CODE = "http://snomed.info/sct|66862007"
PRACTITIONER = EHRPerson(
    fhir_user="Practitioner/1",
    claims={"groups": ["radiology"], "realm_access": {"roles": ["radiologist"]}, "department": "x-ray"},
    practitioner_roles=frozenset({CODE}),
)
EHR = """
[[ehr]]
id = "north"
name = "North"
fhir_base_urls = ["https://fhir.north.example/r4"]
{keys}

[ehr.cds_client]
issuer = "https://north.example"
jwks_url = "https://north.example/jwks"
{tables}
"""


@pytest.mark.parametrize(
    "rule",
    [
        {"fhir_user_type": "Practitioner"},
        {"fhir_user": "Practitioner/1"},
        {"claim": ("groups",), "value": "radiology"},
        {"claim": ("realm_access", "roles"), "value": "radiologist"},
        {"claim": ("department",), "value": "x-ray"},
        {"practitioner_role": CODE},
        {
            "fhir_user": "Practitioner/1",
            "claim": ("groups",),
            "value": "radiology",
            "practitioner_role": CODE,
        },
    ],
)
def test_a_rule_whose_conditions_hold_gives_its_role(rule):
    rules = [RoleRule(roles=RADIOLOGIST, **rule)]
    assert derive_roles(rules, PRACTITIONER, practitioner_roles=CLINICIAN) == CLINICIAN | RADIOLOGIST


@pytest.mark.parametrize(
    "rule",
    [
        {"fhir_user_type": "PractitionerRole"},
        {"fhir_user": "Practitioner/11"},
        {"fhir_user": "https://elsewhere.example/fhir/Practitioner/1"},
        {"claim": ("groups",), "value": "radio"},
        {"claim": ("realm_access",), "value": "radiologist"},
        {"claim": ("department", "deeper"), "value": "x-ray"},
        {"practitioner_role": "http://snomed.info/sct|1"},
        {"fhir_user": "Practitioner/1", "claim": ("groups",), "value": "surgery"},
    ],
)
def test_a_rule_of_which_one_condition_fails_gives_nothing(rule):
    rules = [RoleRule(roles=RADIOLOGIST, **rule)]
    assert derive_roles(rules, PRACTITIONER, practitioner_roles=CLINICIAN) == CLINICIAN


def test_who_is_not_named_has_what_the_claims_give_and_no_more():
    nameless = EHRPerson(fhir_user=None, claims={"groups": ["radiology"]})
    rules = [RoleRule(roles=RADIOLOGIST, claim=("groups",), value="radiology")]
    assert derive_roles(rules, nameless, practitioner_roles=CLINICIAN) == RADIOLOGIST


def test_an_absolute_fhir_user_has_the_type_of_its_path():
    assert EHRPerson(fhir_user="https://other.example/fhir/Patient/7").type == "Patient"


def test_only_a_radiologist_signs():
    may = {role for role in Role if Permission.SMART_APP_REPORT_SIGN in permissions_of([role])}
    assert may == {Role.RADIOLOGIST}


def load(tmp_path: Path, *, keys: str = "", tables: str = "") -> EHRRegistry:
    path = tmp_path / "ehrs.toml"
    path.write_text(EHR.format(keys=keys, tables=tables))
    return load_registry(path, development=False)


def rule(text: str) -> str:
    return f"[[ehr.role]]\n{text}"


def test_without_a_word_about_roles_practitioners_are_clinicians(tmp_path):
    (ehr,) = load(tmp_path)
    assert ehr.roles_of(PRACTITIONER) == CLINICIAN


def test_a_registration_may_give_nothing_without_a_rule(tmp_path):
    (ehr,) = load(tmp_path, keys="practitioner_roles = []")
    assert ehr.roles_of(PRACTITIONER) == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        'role = "radiologist"\nfhir_user = "Practitioner/1"',
        'role = "radiologist"\nfhir_user = "https://fhir.north.example/r4/Practitioner/1"',
        'role = "radiologist"\nfhir_user_type = "Practitioner"',
        'role = "radiologist"\nclaim = "groups"\nvalue = "radiology"',
        'role = "radiologist"\nclaim = ["realm_access", "roles"]\nvalue = "radiologist"',
        f'role = "radiologist"\npractitioner_role = "{CODE}"',
    ],
)
def test_a_rule_of_the_file_gives_its_role(tmp_path, text):
    (ehr,) = load(tmp_path, tables=rule(text))
    assert ehr.roles_of(PRACTITIONER) == CLINICIAN | RADIOLOGIST


@pytest.mark.parametrize(
    ("text", "rule_broken"),
    [
        ('role = "radiologist"', "needs a condition"),
        ('role = "radiologist"\nclaim = "groups"', "claim and value together"),
        ('role = "radiologist"\nvalue = "x"\nfhir_user = "Practitioner/1"', "claim and value together"),
        (
            'role = "compliance_officer"\nfhir_user = "Practitioner/1"',
            "must be one of clinician, radiologist",
        ),
        ('role = "service"\nfhir_user_type = "Practitioner"', "must be one of clinician, radiologist"),
        ('role = "boss"\nfhir_user_type = "Practitioner"', "Invalid enum value"),
        ('role = "clinician"\nfhir_user_type = "Patient"', "must be one of Practitioner"),
        ('role = "clinician"\nfhir_user = "Patient/1"', "must be a reference to a"),
        ('role = "clinician"\nfhir_user = "nobody"', "must be a reference"),
        ('role = "clinician"\npractitioner_role = "66862007"', "must be system|code"),
        ('role = "clinician"\nclaim = ""\nvalue = "x"', "must not be blank"),
        ('role = "clinician"\ngroup = "x"', "unknown field"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_with_its_place(tmp_path, text, rule_broken):
    with pytest.raises(InvalidRequest, match=re.escape(rule_broken)) as refused:
        load(tmp_path, tables=rule(text))
    assert "role" in refused.value.message


def test_the_default_cannot_be_a_role_of_the_staff(tmp_path):
    with pytest.raises(InvalidRequest, match="must be one of clinician, radiologist"):
        load(tmp_path, keys='practitioner_roles = ["administrator"]')


PROVIDER = """
[[staff_oidc]]
id = "sso"
name = "Hospital sign-in"
issuer = "https://sso.north.example/realms/staff"
client_id = "rayhook"
"""


def test_a_provider_of_the_staff_is_read(tmp_path):
    (provider,) = load(tmp_path, tables=PROVIDER).staff_providers
    assert provider.client_authentication is ClientAuthentication.PRIVATE_KEY_JWT


def test_a_provider_always_asks_for_openid(tmp_path):
    (provider,) = load(tmp_path, tables=f'{PROVIDER}\nscopes = ["groups"]').staff_providers
    assert provider.scopes == ("openid", "groups")


def test_a_providers_claim_gives_a_role_of_the_staff(tmp_path):
    tables = f'{PROVIDER}\n[[staff_oidc.role]]\nrole = "model_manager"\nclaim = "groups"\nvalue = "models"'
    (provider,) = load(tmp_path, tables=tables).staff_providers
    assert provider.roles_of({"groups": ["models", "others"]}) == {Role.MODEL_MANAGER}


def test_without_a_rule_a_provider_gives_nothing(tmp_path):
    (provider,) = load(tmp_path, tables=PROVIDER).staff_providers
    assert provider.roles_of({"groups": ["administrator"], "role": "administrator"}) == frozenset()


def test_a_provider_cannot_make_a_radiologist(tmp_path):
    tables = f'{PROVIDER}\n[[staff_oidc.role]]\nrole = "radiologist"\nclaim = "groups"\nvalue = "x"'
    with pytest.raises(InvalidRequest, match="must be one of administrator"):
        load(tmp_path, tables=tables)


def test_two_providers_of_one_id_are_refused(tmp_path):
    with pytest.raises(InvalidRequest, match=r"staff_oidc\.id sso is registered twice"):
        load(tmp_path, tables=PROVIDER * 2)


def test_a_provider_in_the_hospital_may_have_a_private_address(tmp_path):
    registry = load(tmp_path, tables=f"{PROVIDER}\nprivate_network = true")
    assert registry.private_origins == {"https://sso.north.example"}
