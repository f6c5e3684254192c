"""Every kind of event, succeeded and failed, as BALP would have it: by validators that are not ours."""

import base64
import json
from datetime import UTC, datetime

import pytest

from rayhook.audit.balp import Observer, audit_event
from rayhook.audit.balp_forms import FORMS
from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.review import AuditRecord

OBSERVER = Observer("Test site", "https://rayhook.example", "1.2.3", {"north": "https://north.example/fhir"})
PROFILES = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit."
# What pyrofile says of the guide's own examples too, so that it is no fault of ours.
_SAID_OF_THE_EXAMPLES = (
    "'AuthZ-",  # BALP's own codes, which R4's extensible value sets do not have
    "'XrequestId'",
    "dom-6",  # a narrative would tell a patient's story a second time
    "detail[0].value[x] is required",  # it has valueString; pyrofile looks for the bare name inside of entities
)
_ONLY_OF_THE_EXAMPLES = ("extensible", "Wrong Display Name", "value[x] is required")


def record(kind=AuditKind.SMART_APP_RESULT_VIEWED, outcome=Outcome.SUCCESS, **changes):
    parts = {
        "seq": 7,
        "recorded_at": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        "kind": kind,
        "outcome": outcome,
        "ehr_id": "north",
        "request_id": "3f0e0b3e-1c9e-4f7a-9d0a-6a3f7a1c2b3d",
        "agent": "Practitioner/ada",
        "patient_id": "p1",
        "entities": ("DiagnosticReport/r1", "urn:oid:1.2.826.777"),
        "detail": {"code": "why"},
        "client_id": "rayhook-app",
        "context": {
            "client_address": "2001:db8::7",
            "server_address": "192.0.2.1",
            "jti": "token-1",
            "query": "GET /fhir/Observation?patient=p1",
        },
        "hash": "ab" * 32,
    }
    return AuditRecord(**(parts | changes))


def errors(judges, event):
    return [
        said for said in judges.errors(event) if not any(known in said for known in _SAID_OF_THE_EXAMPLES)
    ]


def entity_of(resource, role):
    return [entity for entity in resource["entity"] if entity.get("role", {}).get("code") == role]


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("kind", AuditKind)
def test_every_kind_is_valid(judges, kind, outcome):
    assert errors(judges, audit_event(record(kind, outcome), OBSERVER)) == []


@pytest.mark.parametrize("kind", AuditKind)
def test_every_kind_is_valid_with_nothing_known(judges, kind):
    bare = record(
        kind, agent=None, patient_id=None, ehr_id=None, entities=(), detail={}, client_id=None, context={}
    )
    assert errors(judges, audit_event(bare, OBSERVER)) == []


@pytest.mark.parametrize("kind", AuditKind)
def test_every_kind_has_its_own_form(kind):
    assert kind in FORMS


@pytest.mark.parametrize("kind", [kind for kind, form in FORMS.items() if form.profile])
def test_a_success_claims_its_profile_and_a_failure_none(kind):
    assert audit_event(record(kind), OBSERVER)["meta"]["profile"] == [FORMS[kind].profile]
    for outcome in (Outcome.MINOR_FAILURE, Outcome.SERIOUS_FAILURE, Outcome.MAJOR_FAILURE):
        assert "profile" not in audit_event(record(kind, outcome), OBSERVER)["meta"]


def test_the_validators_know_what_a_profile_asks(judges):
    """Each of these breaks one rule of PatientRead or PatientQuery, and only the profile knows it."""
    read = audit_event(record(), OBSERVER)
    query = audit_event(record(AuditKind.SMART_APP_FHIR_SEARCHED), OBSERVER)
    broken = []
    for change in (
        lambda event: event.update(action="C"),
        lambda event: event.update(agent=event["agent"][:1]),
        lambda event: event["agent"][1].pop("network"),
        lambda event: event.update(
            entity=[one for one in event["entity"] if one.get("role", {}).get("code") != "1"]
        ),
        lambda event: event.update(outcome="8"),
    ):
        one = json.loads(json.dumps(read))
        change(one)
        broken.append(one)
    without_query = json.loads(json.dumps(query))
    without_query["entity"][0].pop("query")
    assert all(errors(judges, one) for one in [*broken, without_query])


def test_official_examples_pass(judges, fhir_examples):
    """The oracle: were the set-up wrong, the guide's own resources would fail with ours."""
    examples = sorted(path for path in fhir_examples.rglob("AuditEvent-ex-*.json") if "SAML" not in path.name)
    assert len(examples) == 41
    for path in examples:
        said = errors(judges, json.loads(path.read_text()))
        assert [one for one in said if not any(known in one for known in _ONLY_OF_THE_EXAMPLES)] == [], (
            path.name
        )


def test_token_is_told_by_its_id_alone():
    [user] = [agent for agent in audit_event(record(), OBSERVER)["agent"] if "policy" in agent]
    assert user["policy"] == ["urn:ietf:params:oauth:jti:token-1"]


def test_query_is_base64_of_the_request():
    [query] = entity_of(audit_event(record(AuditKind.SMART_APP_FHIR_SEARCHED), OBSERVER), "24")
    assert base64.b64decode(query["query"]) == b"GET /fhir/Observation?patient=p1"
    assert not query.keys() & {"what", "detail", "lifecycle"}


def test_search_tells_which_resources_came_back():
    event = audit_event(record(AuditKind.SMART_APP_FHIR_SEARCHED), OBSERVER)
    assert {"reference": "https://north.example/fhir/DiagnosticReport/r1"} in [
        entity.get("what") for entity in event["entity"]
    ]


def test_search_is_asked_by_the_source_and_read_by_the_destination():
    """BALP turns the roles of a search around, against those of a read."""
    roles = {
        kind: [agent["type"]["coding"][0]["code"] for agent in audit_event(record(kind), OBSERVER)["agent"]]
        for kind in (AuditKind.SMART_APP_FHIR_SEARCHED, AuditKind.SMART_APP_FHIR_READ)
    }
    assert roles[AuditKind.SMART_APP_FHIR_SEARCHED][:2] == ["110153", "110152"]
    assert roles[AuditKind.SMART_APP_FHIR_READ][:2] == ["110152", "110153"]


def test_request_id_joins_the_events():
    [joined] = [
        entity
        for entity in audit_event(record(), OBSERVER)["entity"]
        if entity["type"]["code"] == "XrequestId"
    ]
    assert joined["what"]["identifier"]["value"] == "3f0e0b3e-1c9e-4f7a-9d0a-6a3f7a1c2b3d"


def test_exactly_one_agent_asked():
    for kind in AuditKind:
        agents = audit_event(record(kind), OBSERVER)["agent"]
        assert sum(agent["requestor"] for agent in agents) == 1


@pytest.mark.parametrize(
    ("address", "type_"), [("192.0.2.1", "2"), ("2001:db8::7", "2"), ("pacs.example", "1")]
)
def test_network_is_told_by_its_type(address, type_):
    event = audit_event(record(context={"client_address": address}), OBSERVER)
    assert event["agent"][0]["network"] == {"address": address, "type": type_}


def test_same_event_is_the_same_resource():
    assert audit_event(record(), OBSERVER) == audit_event(record(), OBSERVER)
