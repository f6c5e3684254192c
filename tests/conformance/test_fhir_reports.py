"""Every report that the service can make, of every bundled model, before validators that are not ours."""

import json
from dataclasses import replace

import pytest

from rayhook.fhir.r4 import encode_json
from rayhook.inference.registry import Role, load_models
from rayhook.inference.report import build_resources, transaction
from rayhook.inference.study import AnalysisStatus, Finding, Mark, ModelIdentity
from tests.unit.inference.samples import analysed, nothing_to_rate, reference, unanswered

MODELS = {p.manifest.id: p.manifest for p in load_models() if p.manifest.role is Role.CLASSIFIER}
PROFILED = {"Device": "AI-Device", "Provenance": "AI-Provenance"}


def identity(manifest):
    finder = None
    if manifest.finder is not None:
        finder = ModelIdentity(manifest.finder, "1.0.0", "cd" * 32, manifest_sha256="ef" * 32)
    return ModelIdentity(
        manifest.id, manifest.version, manifest.weights_sha256, manifest_sha256="ab" * 32, finder=finder
    )


def findings(manifest, probability):
    return tuple(
        Finding(
            code=label.finding.code,
            system=label.finding.system,
            display=label.finding.display,
            probability=probability,
            threshold=label.threshold,
            positive=probability >= label.threshold,
            body_site_code=label.body_site.code,
            body_site_display=label.body_site.display,
        )
        for label in manifest.labels
    )


def answered(manifest, probability):
    return replace(analysed(), model=identity(manifest), findings=findings(manifest, probability))


def marked(manifest):
    result = answered(manifest, 0.91)
    marks = (Mark(10, 20, 0.8, 0.91, True), Mark(30, 40, 0.4, None, False))
    images = tuple(replace(one, marks=marks, sha256="12" * 32) for one in result.instances)
    return replace(result, instances=images, aggregation="mean_logit_of_4_slices")


STATES = {
    "positive": lambda manifest: answered(manifest, 0.91),
    "negative": lambda manifest: answered(manifest, 0.01),
    "almost certain": lambda manifest: answered(manifest, 0.99999),
    "marks": marked,
    "nothing to rate": lambda manifest: replace(nothing_to_rate(), model=identity(manifest)),
    "declined": lambda manifest: replace(unanswered(AnalysisStatus.ABSTAINED), model=identity(manifest)),
    "not sure": lambda manifest: replace(
        unanswered(AnalysisStatus.ABSTAINED), model=identity(manifest), reason="unsure (1 of 1 images)"
    ),
    "out of scope": lambda _: unanswered(AnalysisStatus.OUT_OF_SCOPE),
    "refused": lambda _: unanswered(AnalysisStatus.REFUSED),
}
REFERENCES = {
    "ordered": {},
    "without an order": {"service_request": None},
    "of an unknown date": {"started": None},
}


def build(state="positive", model="mri-flair-tumour", ordered="ordered"):
    manifest = MODELS[model]
    result = STATES[state](manifest)
    told = manifest if result.model is not None else None
    resources = build_resources(reference(**REFERENCES[ordered]), result, told, organization="Demo hospital")
    return [as_sent(one) for one in resources]


def as_sent(resource):
    return json.loads(encode_json(resource))


def of_type(resource_type, **how):
    return next(one for one in build(**how) if one["resourceType"] == resource_type)


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("state", STATES)
def test_a_report_has_no_error(judges, state, model):
    for one in build(state, model):
        assert judges.errors(one) == []


@pytest.mark.parametrize("ordered", REFERENCES)
@pytest.mark.parametrize("state", STATES)
def test_a_transaction_has_no_error(judges, state, ordered):
    assert judges.errors(as_sent(transaction(build(state, ordered=ordered)))) == []


def test_medplum_agrees(judges):
    from tests.conformance.fhir_judges import medplum

    reports = [one for model in MODELS for state in STATES for one in build(state, model)]
    assert [errors for errors in medplum(reports) if errors] == []


@pytest.mark.parametrize(("resource_type", "profile"), PROFILED.items())
def test_what_conforms_to_a_profile_says_so(resource_type, profile):
    (claimed,) = of_type(resource_type)["meta"]["profile"]
    assert claimed == f"http://hl7.org/fhir/uv/aitransparency/StructureDefinition/{profile}"


def test_the_model_card_that_a_device_contains_is_one(judges):
    (card,) = of_type("Device")["contained"]
    assert card["meta"]["profile"] == [
        "http://hl7.org/fhir/uv/aitransparency/StructureDefinition/AI-ModelCard"
    ]
    alone = {**card, "subject": {"reference": "Device/1"}}
    assert judges.errors(alone) == []


def put(path, value):
    """Return what sets, or with None removes, the element at `path`."""

    def change(resource):
        *parents, last = path
        place = resource
        for name in parents:
            place = place[name]
        if value is None:
            del place[last]
        else:
            place[last] = value
        return resource

    return change


SYSTEM = "http://terminology.hl7.org/CodeSystem"
BREAKS = {
    # name: (resource type, change, caught at run time)
    "no status": ("Observation", put(["status"], None), True),
    "status of no value set": ("Observation", put(["status"], "bogus"), True),
    "no code": ("Observation", put(["code"], None), True),
    "unknown element": ("Observation", put(["finding"], "x"), True),
    "subject of a wrong type": ("Observation", put(["subject"], {"reference": "Practitioner/1"}), True),
    "effective that is no date": ("Observation", put(["effectiveDateTime"], "12 March"), True),
    "issued without a zone": ("Observation", put(["issued"], "2026-03-12T10:20:00"), True),
    "two values": ("Observation", put(["valueString"], "x"), True),
    "value beside its absence": (
        "Observation",
        put(
            ["dataAbsentReason"], {"coding": [{"system": f"{SYSTEM}/data-absent-reason", "code": "unknown"}]}
        ),
        True,
    ),
    "component without a code": ("Observation", put(["component"], [{"valueString": "x"}]), True),
    "empty component": ("Observation", put(["component"], []), True),
    "quantity as text": (
        "Observation",
        put(["component"], [{"code": {"text": "p"}, "valueQuantity": {"value": "0.91"}}]),
        True,
    ),
    "quantity with a code and no system": (
        "Observation",
        put(["component"], [{"code": {"text": "p"}, "valueQuantity": {"value": 1, "code": "1"}}]),
        True,
    ),
    "device of a wrong type": ("Observation", put(["device"], {"reference": "Patient/1"}), True),
    "derivedFrom a report": (
        "Observation",
        put(["derivedFrom"], [{"reference": "DiagnosticReport/1"}]),
        True,
    ),
    "confidence without a value": (
        "Observation",
        put(
            ["extension"],
            [{"url": "http://hl7.org/fhir/uv/aitransparency/StructureDefinition/AIconfidence"}],
        ),
        True,
    ),
    "report without a code": ("DiagnosticReport", put(["code"], None), True),
    "report of no value set": ("DiagnosticReport", put(["status"], "done"), True),
    "a Device performs": ("DiagnosticReport", put(["performer"], [{"reference": "Device/1"}]), True),
    "result that is no Observation": (
        "DiagnosticReport",
        put(["result"], [{"reference": "Condition/1"}]),
        True,
    ),
    "form without a type": ("DiagnosticReport", put(["presentedForm"], [{"data": "eA=="}]), True),
    "form that is not base64": (
        "DiagnosticReport",
        put(["presentedForm"], [{"contentType": "text/html", "data": "***"}]),
        True,
    ),
    "narrative without a namespace": (
        "DiagnosticReport",
        put(["text"], {"status": "generated", "div": "<div>x</div>"}),
        False,
    ),
    "narrative with a script": (
        "DiagnosticReport",
        put(
            ["text"],
            {
                "status": "generated",
                "div": '<div xmlns="http://www.w3.org/1999/xhtml"><script>x</script></div>',
            },
        ),
        False,
    ),
    "device of another kind": ("Device", put(["type"], {"text": "a model"}), False),
    "device status of no value set": ("Device", put(["status"], "on"), True),
    "name without its type": ("Device", put(["deviceName"], [{"name": "x"}]), True),
    "contained that nobody names": ("Device", put(["extension"], None), False),
    "card of another kind": ("Device", put(["contained", 0, "status"], "new"), True),
    "provenance without a target": ("Provenance", put(["target"], None), True),
    "provenance without an agent": ("Provenance", put(["agent"], None), True),
    "provenance without a reason": ("Provenance", put(["reason"], None), False),
    "agent without who": ("Provenance", put(["agent", 0, "who"], None), True),
    "no AI among the agents": ("Provenance", put(["agent", 0, "role"], None), False),
    "entity of no role": ("Provenance", put(["entity", 0, "role"], "input"), True),
    "recorded as a date": ("Provenance", put(["recorded"], "2026-03-12"), True),
}
UNSEEN_BY_PYROFILE = {"form without a type", "quantity with a code and no system"}


def broken(name):
    resource_type, change, _ = BREAKS[name]
    resources = [one for one in build() if one["resourceType"] == resource_type]
    return change(resources[-1])  # of Observations, that of a finding


def is_refused_at_run_time(resource):
    from rayhook.fhir.errors import InvalidRequest
    from rayhook.fhir.r4 import validate

    try:
        validate(resource)
    except InvalidRequest:
        return True
    return False


@pytest.mark.parametrize("name", BREAKS)
def test_the_run_time_check_sees_what_is_said_here(name):
    assert is_refused_at_run_time(broken(name)) is BREAKS[name][2]


@pytest.mark.parametrize("name", sorted(set(BREAKS) - UNSEEN_BY_PYROFILE))
def test_pyrofile_sees_what_is_broken(judges, name):
    assert judges.pyrofile(broken(name))


def test_nothing_broken_goes_unseen():
    at_run_time = {name for name, (_, _, is_seen) in BREAKS.items() if is_seen}
    assert (len(BREAKS), len(at_run_time)) == (36, 30)
    assert at_run_time >= UNSEEN_BY_PYROFILE
