"""Which resources a token's scopes cover, and what a search finds, against the plainest reading of the texts."""

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayhook.auth.scopes import ScopeSet
from rayhook.fhir.errors import InvalidRequest
from rayhook.smart_app.fhir_access import Grant, limits_of
from rayhook.smart_app.fhir_parameters import PARAMETERS, date_period, matches, read_filter

CONTEXTS = ("patient", "user", "system")
TYPES = ("DiagnosticReport", "Observation", "Device", "Patient")
SYSTEM = "http://terminology.hl7.org/CodeSystem/observation-category"
V1 = {"read": set("rs"), "write": set("cud"), "*": set("cruds")}

contexts = st.sampled_from(CONTEXTS)
types = st.sampled_from(TYPES)
letters = st.sets(st.sampled_from("cruds"), min_size=1).map(lambda s: "".join(c for c in "cruds" if c in s))
permissions = st.one_of(letters, st.sampled_from(sorted(V1)))
queries = st.sampled_from(
    [
        "",
        "?category=imaging",
        f"?category={SYSTEM}|imaging",
        "?category=laboratory",
        "?status=final",
        "?category=imaging&status=final",
        "?patient=p1",
        "?colour=red",
        "?status:above=final",
        "?status=",
        "?nonsense",
    ]
)
scopes = st.tuples(contexts, st.one_of(types, st.just("*")), permissions, queries).filter(
    lambda scope: not (scope[2] in V1 and scope[3])
)
observations = st.builds(
    lambda status, category: {
        "resourceType": "Observation",
        "id": "1",
        "status": status,
        "category": [{"coding": [{"system": SYSTEM, "code": category}]}],
    },
    st.sampled_from(["final", "preliminary"]),
    st.sampled_from(["imaging", "laboratory"]),
)


def told(resource, query):
    """What a query says of an Observation, read word by word; None where it says nothing that we know."""
    if not query:
        return True
    facts = {
        "category=imaging": resource["category"][0]["coding"][0]["code"] == "imaging",
        f"category={SYSTEM}|imaging": resource["category"][0]["coding"][0]["code"] == "imaging",
        "category=laboratory": resource["category"][0]["coding"][0]["code"] == "laboratory",
        "status=final": resource["status"] == "final",
    }
    return all(facts.get(part, False) for part in query[1:].split("&"))


@given(st.lists(scopes, max_size=5), st.sets(contexts), st.sampled_from("rs"), observations)
def test_a_resource_is_shown_if_one_scope_covers_it(granted, asked_in, interaction, resource):
    text = " ".join(f"{context}/{kind}.{permission}{query}" for context, kind, permission, query in granted)
    found = ScopeSet.parse(text).granting("Observation", interaction, contexts=asked_in)
    oracle = any(
        context in asked_in
        and kind in ("*", "Observation")
        and interaction in V1.get(permission, set(permission))
        and told(resource, query)
        for context, kind, permission, query in granted
    )
    assert Grant(found).allows(resource) == oracle


@given(st.lists(scopes, max_size=4), contexts, types, st.sampled_from("cruds"))
def test_what_is_permitted_without_a_limit_is_granted(granted, context, kind, letter):
    text = " ".join(f"{c}/{k}.{p}{q}" for c, k, p, q in granted)
    parsed = ScopeSet.parse(text)
    unlimited = [s for s in parsed.granting(kind, letter, contexts=(context,)) if s.query is None]
    assert parsed.permits(context, kind, letter) == bool(unlimited)


@given(st.text(max_size=40))
def test_a_limit_is_read_whole_or_grants_nothing(query):
    limits = limits_of("Observation", query)
    assert limits is None or limits


moments = st.integers(-(2**31), 2**32).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
WIDTHS = {
    "%Y-%m-%d": timedelta(days=1),
    "%Y-%m-%dT%H:%MZ": timedelta(minutes=1),
    "%Y-%m-%dT%H:%M:%SZ": timedelta(seconds=1),
}


@given(moments, st.sampled_from(sorted(WIDTHS)))
def test_a_date_stands_for_the_time_it_may_mean(moment, form):
    _, low, high = date_period(moment.strftime(form), "date")
    assert low <= moment < high
    assert high - low == WIDTHS[form]


@given(moments, moments, st.sampled_from(["eq", "ne", "gt", "ge", "lt", "le", "sa", "eb"]))
def test_prefixes_compare_as_numbers_do(one, other, prefix):
    """Both to the second: two periods of the same width are the same, or do not meet."""
    form = "%Y-%m-%dT%H:%M:%SZ"
    resource = {"resourceType": "Observation", "id": "1", "effectiveDateTime": one.strftime(form)}
    one, other = one.replace(microsecond=0), other.replace(microsecond=0)
    oracle = {
        "eq": one == other,
        "ne": one != other,
        "gt": one > other,
        "sa": one > other,
        "ge": one >= other,
        "lt": one < other,
        "eb": one < other,
        "le": one <= other,
    }[prefix]
    found = read_filter("Observation", "date", f"{prefix}{other.strftime(form)}")
    assert matches(resource, found) == oracle


codes = st.sampled_from(["a", "b", "c"])
systems = st.sampled_from(["", "http://x", "http://y"])


@given(
    st.lists(st.tuples(systems, codes), min_size=1, max_size=3),
    st.sampled_from(["{c}", "{s}|{c}", "|{c}", "{s}|"]),
    systems.filter(bool),
    codes,
    st.booleans(),
)
def test_tokens_fit_by_code_by_system_or_by_both(held, form, system, code, negated):
    coding = [{"code": c} | ({"system": s} if s else {}) for s, c in held]
    resource = {"resourceType": "Observation", "id": "1", "code": {"coding": coding}}
    oracle = {
        "{c}": any(c == code for _, c in held),
        "{s}|{c}": (system, code) in held,
        "|{c}": ("", code) in held,
        "{s}|": any(s == system for s, _ in held),
    }[form]
    name = "code:not" if negated else "code"
    found = read_filter("Observation", name, form.format(s=system, c=code))
    assert matches(resource, found) == (oracle != negated)


@given(st.sampled_from(sorted(PARAMETERS)), st.text(max_size=20), st.text(max_size=30))
def test_any_parameter_is_read_or_refused(kind, name, value):
    with contextlib.suppress(InvalidRequest):
        found = read_filter(kind, name, value)
        if found is not None:
            matches({"resourceType": kind, "id": "1"}, found)


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ("r1", True),
        ("DiagnosticReport/r1", True),
        ("https://us.example/fhir/R4/DiagnosticReport/r1", True),
        ("https://other.example/fhir/R4/DiagnosticReport/r1", False),
        ("Observation/r1", False),
        ("r2,r1", True),
        ("1", False),
        ("r1/", False),
    ],
)
def test_references_fit_by_id_by_type_or_by_url(value, fits):
    resource = {"resourceType": "Provenance", "id": "1", "target": [{"reference": "DiagnosticReport/r1"}]}
    found = read_filter("Provenance", "target", value)
    assert matches(resource, found, base_url="https://us.example/fhir/R4") is fits
