from hypothesis import given
from hypothesis import strategies as st

from rayhook.auth.scopes import ScopeSet

contexts = st.sampled_from(["patient", "user", "system"])
types = st.sampled_from(["*", "Observation", "Patient", "DiagnosticReport", "ImagingStudy"])
letters = st.sets(st.sampled_from("cruds"), min_size=1).map(lambda s: "".join(c for c in "cruds" if c in s))
queries = st.sampled_from(["", "?category=imaging", "?status=final&category=http://x|y"])
v2 = st.builds(lambda c, t, p, q: f"{c}/{t}.{p}{q}", contexts, types, letters, queries)
v1 = st.builds(lambda c, t, p: f"{c}/{t}.{p}", contexts, types, st.sampled_from(["read", "write", "*"]))
other = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='"\\'), min_size=1)
scope_lists = st.lists(st.one_of(v1, v2, other), max_size=6).map(" ".join)


@given(scope_lists)
def test_writing_and_reading_again_changes_nothing(text: str) -> None:
    scopes = ScopeSet.parse(text)
    assert ScopeSet.parse(str(scopes)) == scopes


@given(scope_lists, contexts, types, letters)
def test_several_letters_need_each_of_them(text: str, context: str, kind: str, wanted: str) -> None:
    scopes = ScopeSet.parse(text)
    each = all(scopes.permits(context, kind, letter) for letter in wanted)
    assert scopes.permits(context, kind, wanted) == each


@given(scope_lists, scope_lists, contexts, types, letters)
def test_more_scopes_never_grant_less(one: str, two: str, context: str, kind: str, wanted: str) -> None:
    if ScopeSet.parse(one).permits(context, kind, wanted):
        assert ScopeSet.parse(f"{one} {two}").permits(context, kind, wanted)


@given(contexts, types, letters, st.text(min_size=1).filter(lambda q: not set(q) & set(" \t\n")))
def test_a_query_never_grants(context: str, kind: str, granted: str, query: str) -> None:
    assert not ScopeSet.parse(f"{context}/{kind}.{granted}?{query.split()[0:1]}").permits(None, kind, granted)


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    ScopeSet.parse(text)


@given(st.permutations("cruds"), st.integers(2, 5))
def test_letters_out_of_order_grant_nothing(order: list[str], length: int) -> None:
    granted = "".join(order[:length])
    in_order = "".join(sorted(granted, key="cruds".index))
    assert ScopeSet.parse(f"user/Patient.{granted}").permits("user", "Patient", granted[0]) == (
        granted == in_order
    )
