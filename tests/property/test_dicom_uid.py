"""UIDs of DICOM results: valid, the same for the same input, never the same for another."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from rayhook.fhir.references import is_uid
from rayhook.inference.dicom_uid import ObjectKind, derived_uid, object_uid
from tests.unit.inference.samples import analysed

kinds = st.sampled_from(ObjectKind)
parts = st.text(min_size=1, max_size=30)
digests = st.text("0123456789abcdef", min_size=8, max_size=8)


def result(digest: str, weights: str):
    plain = analysed()
    images = tuple(replace(one, sha256=digest) for one in plain.instances)
    return replace(plain, instances=images, model=replace(plain.model, weights_sha256=weights))


@given(kinds, parts, digests, digests)
def test_a_uid_is_valid_and_derived_from_a_uuid(kind, part, digest, weights):
    uid = object_uid(result(digest, weights), kind, part)
    assert is_uid(uid)
    number = int(uid.removeprefix("2.25."))
    assert (number >> 76) & 0xF == 8
    assert (number >> 62) & 0x3 == 2


@given(st.lists(st.tuples(kinds, parts, digests, digests), min_size=2, max_size=12, unique=True))
def test_another_kind_part_image_or_model_has_another_uid(inputs):
    uids = {object_uid(result(digest, weights), kind, part) for kind, part, digest, weights in inputs}
    assert len(uids) == len(inputs)


@given(kinds, parts, digests, st.randoms())
def test_the_order_of_the_images_does_not_count(kind, part, digest, random):
    one = result(digest, "w")
    images = list(one.instances)
    random.shuffle(images)
    assert object_uid(replace(one, instances=tuple(images)), kind, part) == object_uid(one, kind, part)


@given(
    st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
)
def test_equal_content_and_only_that_has_the_same_uid(one, other):
    assert (derived_uid(one) == derived_uid(other)) == (one == other)
