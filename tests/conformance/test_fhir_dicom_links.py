"""The links to DICOM objects before validators that are not ours."""

import json

import pytest

from rayhook.fhir.r4 import encode_json
from rayhook.inference.dicom_links import LINKED, build_links
from rayhook.inference.dicom_table import ObjectNames
from rayhook.inference.dicom_uid import ObjectKind
from tests.unit.inference.samples import STUDY_UID, analysed, reference

NAMES = ObjectNames(
    "1.2.840.10008.5.1.4.1.1.88.34", "2.25.11", "2.25.12", STUDY_UID, "https://pacs.example/dicom-web"
)
WRITTEN = ("Device/1", "DiagnosticReport/2", "Observation/3", "Provenance/4")


def links(**changes):
    return build_links(
        reference(),
        analysed(),
        [(kind.value, NAMES) for kind in sorted(LINKED)],
        written=WRITTEN,
        organization="Demo hospital",
        **changes,
    )


@pytest.mark.parametrize("is_withdrawn", [False, True])
def test_no_judge_finds_an_error(judges, is_withdrawn):
    for link in links(is_withdrawn=is_withdrawn):
        assert judges.errors(json.loads(encode_json(link))) == []


def test_a_link_names_the_object_by_uid_and_by_address():
    link = links()[0]
    assert link["masterIdentifier"]["value"] == "urn:oid:2.25.11"
    assert link["content"][0]["attachment"]["url"] == (
        f"https://pacs.example/dicom-web/studies/{STUDY_UID}/series/2.25.12/instances/2.25.11"
    )


def test_a_link_is_related_to_the_report_and_its_findings_alone():
    related = [one["reference"] for one in links()[0]["context"]["related"]]
    assert related == ["ImagingStudy/study-1", "DiagnosticReport/2", "Observation/3"]


def test_only_a_signed_report_is_final():
    status = {link["description"].partition(",")[0]: link["docStatus"] for link in links()}
    assert [name for name, one in status.items() if one == "final"] == ["AI report signed by a radiologist"]


def test_a_link_to_what_was_taken_back_says_so():
    assert {link["status"] for link in links(is_withdrawn=True)} == {"entered-in-error"}


def test_of_a_note_that_takes_objects_back_there_is_no_link():
    assert frozenset(ObjectKind) - LINKED == {ObjectKind.REJECTION_NOTE}


def test_each_object_has_a_link_of_its_own():
    assert len({link["id"] for link in links()}) == len(LINKED)
