import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rayhook.audit.checkpoint import latest_tree, parse_checkpoint, printed
from rayhook.audit.events import AuditKind
from rayhook.audit.merkle import leaf_hash
from rayhook.audit.proof import (
    Proof,
    consistency_path,
    inclusion_path,
    is_consistent,
    is_included,
    prove,
    root_of,
)
from rayhook.audit.record import AuditEntry
from rayhook.fhir.errors import InvalidRequest, NotFound

ENTRY = AuditEntry(AuditKind.FHIR_RESOURCE_READ, ehr_id="north", patient_id="canary", detail={"a": "b"})
LEAVES = [leaf_hash(bytes([number])) for number in range(40)]


def fill(database, audit, count):
    with database.sessions() as session:
        for _ in range(count):
            audit.record(session, ENTRY)
        audit.checkpoint(session)
        session.commit()
    with database.reading() as session:
        return latest_tree(session).checkpoint


@pytest.fixture
def proof(database, audit):
    older = fill(database, audit, 13)
    newer = fill(database, audit, 24)
    with database.reading() as session:
        return prove(session, 5, newer, since=older)


@pytest.mark.parametrize("size", range(1, 41))
def test_every_leaf_of_every_tree_is_included(size):
    leaves = LEAVES[:size]
    root = root_of(leaves)
    for index, leaf in enumerate(leaves):
        path = inclusion_path(index, leaves)
        assert is_included(leaf, index, size, path, root)
        assert not is_included(leaf, index, size, (*path, leaf), root)
        assert not is_included(leaf_hash(b"other"), index, size, path, root)


@pytest.mark.parametrize("newer", range(1, 41))
def test_every_two_states_of_one_log_are_consistent(newer):
    for older in range(newer + 1):
        path = consistency_path(older, LEAVES[:newer])
        assert is_consistent(older, newer, path, root_of(LEAVES[:older]), root_of(LEAVES[:newer]))


def test_states_of_two_logs_are_not_consistent():
    other = [*LEAVES[:5], leaf_hash(b"other"), *LEAVES[6:]]
    for older in range(6, 40):
        path = consistency_path(older, other)
        assert not is_consistent(older, 40, path, root_of(LEAVES[:older]), root_of(other))


def test_proof_holds_without_the_database(proof, keyring):
    assert Proof.from_json(proof.to_json()).problems(keyring.audit_public_key) == []


def test_proof_tells_no_patient(proof):
    assert "canary" not in proof.to_json()


@pytest.mark.parametrize("name", ["kind", "outcome", "recorded_at", "patient_sealed", "previous_hash", "seq"])
def test_changed_event_is_not_proved(proof, keyring, name):
    value = proof.event[name]
    changed = value + 1 if isinstance(value, int) else ("00" if name == "patient_sealed" else f"{value}0")
    forged = replace(proof, event={**proof.event, name: changed})
    assert forged.problems(keyring.audit_public_key)


def test_proof_of_another_place_does_not_hold(proof, keyring):
    assert replace(proof, seq=6, event={**proof.event, "seq": 6}).problems(keyring.audit_public_key)


def test_proof_under_another_key_does_not_hold(proof):
    assert "the checkpoint is not signed by the pinned key" in proof.problems(
        Ed25519PrivateKey.generate().public_key()
    )


def test_rewritten_log_is_not_a_continuation(proof, keyring):
    path = ("00" * 32, *proof.consistency[1:])
    assert replace(proof, consistency=path).problems(keyring.audit_public_key) == [
        "the log was rewritten since the older checkpoint"
    ]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"form": "other"}', "\x00"])
def test_what_is_no_proof_is_refused(text):
    with pytest.raises(InvalidRequest):
        Proof.from_json(text)


def test_damaged_proof_does_not_hold(proof, keyring):
    content = json.loads(proof.to_json())
    content["path"] = ["zz"]
    assert Proof.from_json(json.dumps(content)).problems(keyring.audit_public_key) == ["the proof is damaged"]


def test_absent_event_has_no_proof(database, audit):
    checkpoint = fill(database, audit, 3)
    with database.reading() as session, pytest.raises(NotFound):
        prove(session, 4, checkpoint)


def test_event_newer_than_the_checkpoint_has_no_proof_yet(database, audit):
    older = fill(database, audit, 3)
    fill(database, audit, 1)
    with database.reading() as session, pytest.raises(InvalidRequest):
        prove(session, 4, older)


def test_printed_digest_reads_back(database, audit):
    checkpoint = fill(database, audit, 3)
    assert parse_checkpoint(printed(checkpoint)) == checkpoint
