import pytest

from rayhook.auth.launch_context import ContextItem, read_context


def test_what_the_answer_says_is_kept():
    context = read_context(
        {"encounter": "e1", "intent": "review", "tenant": "t", "smart_style_url": "s.json"}
    )
    assert (context.encounter_id, context.intent, context.tenant, context.style_url) == (
        "e1",
        "review",
        "t",
        "s.json",
    )


def test_an_absent_role_means_launch():
    assert read_context({"fhirContext": [{"reference": "ImagingStudy/1"}]}).items == (
        ContextItem(reference="ImagingStudy/1", role="launch"),
    )


@pytest.mark.parametrize(
    "value",
    [None, "ImagingStudy/1", {}, [None], ["ImagingStudy/1"], [{"reference": 7}], [{"role": "launch"}], [{}]],
)
def test_what_is_malformed_is_left_out(value):
    assert read_context({"fhirContext": value}).items == ()


@pytest.mark.parametrize("encounter", [7, "", "..", "a/b", "x" * 65])
def test_an_encounter_is_a_fhir_id(encounter):
    assert read_context({"encounter": encounter}).encounter_id is None


def test_a_list_without_end_is_cut():
    items = [{"reference": f"ImagingStudy/{n}"} for n in range(1000)]
    assert len(read_context({"fhirContext": items}).items) == 50
