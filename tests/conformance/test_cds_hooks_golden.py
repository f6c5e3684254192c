"""The examples of the specification: what it shows we take, and what we say has its form.

Spec: CDS Hooks 2.0 (HL7/cds-hooks-hl7-site, docs/2.0/index.md); Library (HL7/cds-hooks-library)
"""

import json
from pathlib import Path

import msgspec
import pytest

from rayhook.auth.scopes import ScopeSet
from rayhook.cds_hooks import contexts
from rayhook.cds_hooks.feedback import read_feedback
from rayhook.cds_hooks.models import Action, Card, Coding, HookRequest, Link, ReasonCoding, Source, read
from rayhook.cds_hooks.prefetch import fill, tokens_of
from rayhook.fhir.errors import InvalidRequest

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "cds_hooks" / "golden.json").read_text())


def test_the_example_call_is_read():
    request = read(GOLDEN["request"], HookRequest)
    context = read(request.context, contexts.PatientViewContext)
    assert (request.hook, context.patient_id, context.encounter_id) == ("patient-view", "1288992", "89284")
    assert request.fhir_authorization.access_token == "some-opaque-fhir-access-token"


def test_the_example_scopes_are_of_smart_1():
    scopes = ScopeSet.parse(GOLDEN["request"]["fhirAuthorization"]["scope"])
    assert scopes.permits("user", "Patient", "rs")
    assert not scopes.permits("user", "Patient", "c")


@pytest.mark.parametrize("example", GOLDEN["feedback"])
def test_the_example_feedback_is_read(example):
    assert len(read_feedback(example)) == len(example["feedback"])


@pytest.mark.parametrize("name", sorted(GOLDEN["contexts"]))
def test_the_example_context_of_each_hook_is_read(name):
    types = {
        "appointment-book": contexts.AppointmentBookContext,
        "encounter-start": contexts.EncounterStartContext,
        "order-dispatch": contexts.OrderDispatchContext,
        "order-select": contexts.OrderSelectContext,
        "order-sign": contexts.OrderSignContext,
        "patient-view": contexts.PatientViewContext,
    }
    example = GOLDEN["contexts"][name]
    assert read(example, types[name]).patient_id == example["patientId"]


def test_the_old_names_of_order_dispatch_are_refused():
    """The definition's own example still has the names of version 1.0."""
    old = {"patientId": "1", "dispatched-orders": ["ServiceRequest/proc002"], "performer": "Organization/p"}
    with pytest.raises(InvalidRequest, match=r"dispatchedOrders is missing"):
        read(old, contexts.OrderDispatchContext, under="context")


@pytest.mark.parametrize("example", GOLDEN["cards"], ids=lambda card: card["summary"])
def test_an_example_card_can_be_written_with_our_types(example):
    """uuid and topic, which the specification leaves open, are what ours always have."""
    source = example["source"]
    topic = source.get("topic", {"code": "c", "system": "urn:s"})
    card = Card(
        uuid=example.get("uuid", "4e0a3a1e-3283-4575-ab82-028d55fe2719"),
        summary=example["summary"],
        indicator=example["indicator"],
        detail=example.get("detail"),
        source=Source(label=source["label"], url=source.get("url"), topic=Coding(**topic)),
        override_reasons=tuple(ReasonCoding(**reason) for reason in example.get("overrideReasons", ())),
        links=tuple(
            Link(label=link["label"], url=link["url"], type=link["type"], app_context=link.get("appContext"))
            for link in example.get("links", ())
        ),
    )
    written = json.loads(msgspec.json.encode(card))
    for member, value in example.items():
        if member != "source":
            assert written[member] == value
    assert written["source"]["label"] == source["label"]


@pytest.mark.parametrize("example", GOLDEN["actions"], ids=lambda action: action["type"])
def test_an_example_action_can_be_written_with_our_types(example):
    action = Action(
        type=example["type"],
        description=example["description"],
        resource=example.get("resource"),
        resource_id=example.get("resourceId"),
    )
    assert json.loads(msgspec.json.encode(action)) == example


@pytest.mark.parametrize(("template", "context", "query"), GOLDEN["templates"])
def test_an_example_template_is_filled(template, context, query):
    assert fill(template, tokens_of(read(context, contexts.PatientViewContext))) == query


def test_the_call_that_the_specification_shows_is_answered(service, make):
    """With our own server and patient in it, and the prefetch of another service ignored."""
    example = GOLDEN["request"] | {"fhirServer": make.fhir_base_url}
    example["prefetch"] = example["prefetch"] | {
        "patient": {"resourceType": "Patient", "id": "1288992"},
        "imagingStudies": None,
    }
    assert service.cards(example) == []
