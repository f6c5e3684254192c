"""Roles: nobody gets more than the rules give, and more roles never allow less."""

from hypothesis import given
from hypothesis import strategies as st

from rayhook.auth.role_rules import EHR_ROLES, EHRPerson, RoleRule, derive_roles
from rayhook.auth.roles import (
    PERMISSIONS,
    STAFF_ROLES,
    Permission,
    Role,
    permissions_of,
    read_roles,
    written_roles,
)

TYPES = ("Practitioner", "PractitionerRole", "Patient", "RelatedPerson", "Person")
WORDS = st.sampled_from(["a", "b", "c", "radiology", "admin"])
ROLES = st.frozensets(st.sampled_from(Role))

rules = st.builds(
    RoleRule,
    roles=ROLES,
    fhir_user_type=st.none() | st.sampled_from(TYPES),
    fhir_user=st.none() | st.builds("{}/{}".format, st.sampled_from(TYPES), WORDS),
    claim=st.sampled_from([(), ("groups",), ("realm_access", "roles")]),
    value=st.none() | WORDS,
    practitioner_role=st.none() | WORDS,
)
texts = st.none() | WORDS | st.lists(WORDS | st.integers()) | st.integers()
persons = st.builds(
    EHRPerson,
    fhir_user=st.none() | st.builds("{}/{}".format, st.sampled_from(TYPES), WORDS),
    claims=st.fixed_dictionaries(
        {"groups": texts, "realm_access": st.fixed_dictionaries({"roles": texts}) | texts}
    ),
    practitioner_roles=st.frozensets(WORDS),
)


@given(st.lists(rules), persons, ROLES)
def test_a_person_gets_no_role_that_neither_a_rule_nor_the_default_gives(rules, person, default):
    given_roles = frozenset().union(default, *(rule.roles for rule in rules if rule.holds(person)))
    assert derive_roles(rules, person, practitioner_roles=default) <= given_roles


@given(st.lists(rules), persons, ROLES)
def test_an_ehr_never_gives_a_role_of_the_staff(rules, person, default):
    assert derive_roles(rules, person, practitioner_roles=default) <= EHR_ROLES


@given(st.lists(rules), persons.filter(lambda one: one.type in {"Patient", "RelatedPerson", "Person"}), ROLES)
def test_patients_and_relatives_have_no_role_whatever_the_rules(rules, person, default):
    assert derive_roles(rules, person, practitioner_roles=default) == frozenset()


@given(st.lists(rules), rules, persons, ROLES)
def test_one_more_rule_never_takes_a_role_away(rules, more, person, default):
    before = derive_roles(rules, person, practitioner_roles=default)
    assert before <= derive_roles([*rules, more], person, practitioner_roles=default)


@given(st.lists(rules), persons)
def test_radiologist_is_nobody_without_a_rule_that_says_so(rules, person):
    explicit = any(Role.RADIOLOGIST in rule.roles and rule.holds(person) for rule in rules)
    derived = derive_roles(rules, person, practitioner_roles=frozenset({Role.CLINICIAN}))
    assert explicit or Role.RADIOLOGIST not in derived


@given(persons, ROLES)
def test_a_rule_without_a_condition_never_holds(person, roles):
    assert not RoleRule(roles=roles).holds(person)


@given(rules, persons, WORDS)
def test_one_more_condition_never_makes_a_rule_hold(rule, person, word):
    narrower = RoleRule(
        roles=rule.roles,
        fhir_user_type=rule.fhir_user_type,
        fhir_user=rule.fhir_user,
        claim=rule.claim,
        value=rule.value,
        practitioner_role=rule.practitioner_role or word,
    )
    anything = rule.fhir_user_type or rule.fhir_user or rule.claim or rule.practitioner_role
    assert not anything or rule.holds(person) or not narrower.holds(person)


@given(ROLES, ROLES)
def test_more_roles_never_allow_less(some, more):
    assert permissions_of(some) <= permissions_of(some | more)


@given(ROLES)
def test_roles_together_allow_what_each_allows_and_nothing_else(roles):
    each = {permission for role in roles for permission in PERMISSIONS[role]}
    assert permissions_of(roles) == each


@given(ROLES)
def test_roles_are_read_as_they_were_written(roles):
    assert read_roles(written_roles(roles)) == roles


@given(st.text())
def test_any_text_reads_as_known_roles_only(written):
    assert read_roles(written) <= set(Role)


def test_no_one_role_may_do_everything():
    assert all(PERMISSIONS[role] != set(Permission) for role in Role)


def test_who_keeps_accounts_sees_neither_patients_nor_the_audit():
    seen = {one for one in PERMISSIONS[Role.ADMINISTRATOR] if one.startswith(("smart_app:", "audit:"))}
    assert seen == set()


def test_the_staff_sees_no_patients_images_or_results():
    assert not any(one.startswith("smart_app:") for one in permissions_of(STAFF_ROLES))
