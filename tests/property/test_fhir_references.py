import contextlib
import re

from hypothesis import given
from hypothesis import strategies as st

from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.references import is_uid, oid_uri, parse_reference, uid_from_oid

ids = st.from_regex(r"\A[A-Za-z0-9\-.]{1,64}\Z").filter(lambda text: set(text) != {"."})
types = st.sampled_from(["Patient", "ImagingStudy", "ServiceRequest"])
bases = st.from_regex(r"\Ahttps?://[a-z]{1,10}(\.[a-z]{1,5}){0,2}(:[0-9]{2,5})?(/[a-z0-9]{1,8}){0,3}\Z")
components = st.integers(0, 10**12).map(str)
uids = st.lists(components, min_size=2, max_size=8).map(".".join).filter(lambda uid: len(uid) <= 64)


@given(types, ids, st.none() | bases)
def test_what_is_written_is_read(type_, id_, base):
    text = f"{type_}/{id_}" if base is None else f"{base}/{type_}/{id_}"
    assert str(parse_reference(text)) == text


@given(st.text())
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(InvalidRequest):
        parse_reference(text)


@given(st.text(alphabet="Patient/p1.:#?\\@ \nhtps-_"))
def test_what_is_accepted_cannot_change_a_url(text):
    with contextlib.suppress(InvalidRequest):
        reference = parse_reference(text)
        assert re.fullmatch(r"[A-Za-z]+/(?!\.+$)[A-Za-z0-9.-]+", f"{reference.type}/{reference.id}")


@given(uids)
def test_uids_survive_the_oid_form(uid):
    assert uid_from_oid(oid_uri(uid)) == uid


@given(st.text(alphabet="0123456789.a/ \n"))
def test_uid_form_is_that_of_the_standard(text):
    parts = text.split(".")
    by_hand = len(parts) > 1 and len(text) <= 64 and all(p.isdigit() and str(int(p)) == p for p in parts)
    assert is_uid(text) == by_hand
