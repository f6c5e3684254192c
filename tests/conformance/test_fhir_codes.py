"""The displays that we send are the terminologies' own: R4's packages, DICOM PS3.16 as pydicom has it."""

import json
from collections import defaultdict

import pytest
from pydicom.sr._concepts_dict import concepts

from rayhook.fhir import codes
from rayhook.fhir.codes import Coding
from rayhook.inference import report_observation
from rayhook.inference.registry import load_models

# Neither R4 nor PS3.16 tells their display, or PS3.16 has its own shorter word.
NOT_IN_THE_SNAPSHOTS = {
    "126952004",
    "12738006",  # SNOMED CT "Brain structure"; PS3.16: "Brain"
    "162573006",
    "233604007",
    "2667000",
    "260528009",
    "39607008",  # SNOMED CT "Lung structure"; PS3.16: "Lung"
    "427359005",
    "LP29684-5",  # a LOINC part, which US Core asks for
    "PROCESSINLINELABEL",  # newer than R4
}


def sent():
    """Every Coding of the code table, of the reports, and of the bundled models."""
    tables = {**vars(codes), **vars(report_observation)}
    yield from (value for value in tables.values() if isinstance(value, Coding))
    for package in load_models():
        for label in package.manifest.labels:
            for one in (label.finding, label.body_site):
                yield Coding(one.system, one.code, one.display)


@pytest.fixture(scope="module")
def displays(judges):
    known = defaultdict(set)

    def add(system, members):
        for member in members:
            texts = [member.get("display"), *(one["value"] for one in member.get("designation", ()))]
            known[system, member["code"]].update(filter(None, texts))
            add(system, member.get("concept", ()))

    for folder in judges.packages:
        for path in folder.glob("CodeSystem-*.json"):
            system = json.loads(path.read_bytes())
            add(system["url"], system.get("concept", ()))
        for path in folder.glob("ValueSet-*.json"):
            for part in json.loads(path.read_bytes()).get("compose", {}).get("include", ()):
                add(part.get("system"), part.get("concept", ()))
    for scheme, system in (("DCM", codes.DCM), ("SCT", codes.SNOMED)):
        for keyword in concepts[scheme].values():
            for code, (meaning, *_) in keyword.items():
                known[system, code].add(meaning)
    return known


@pytest.mark.parametrize(
    "coding",
    [
        one
        for one in sorted(set(sent()), key=lambda coding: (coding.system, coding.code))
        if one.code not in NOT_IN_THE_SNAPSHOTS and not one.system.startswith("urn:rayhook:")
    ],
    ids=lambda coding: coding.code,
)
def test_a_display_is_the_terminologys_own(displays, coding):
    assert coding.display in displays[coding.system, coding.code]


def test_one_code_has_one_display():
    said = defaultdict(set)
    for coding in sent():
        said[coding.system, coding.code].add(coding.display)
    assert [found for found in said.items() if len(found[1]) > 1] == []
