"""A running process goes on under the audit's new key, and never again under the old one."""

import shutil

import pytest

from rayhook.audit.chain import verify
from rayhook.audit.checkpoint import latest_tree, stored_trees
from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.key_rotation import rotate_audit_key
from rayhook.auth.keyring_file import KeyringFile
from rayhook.auth.keys import Keyring


@pytest.fixture
def source(keyring, tmp_path):
    return KeyringFile(shutil.copy(keyring._source.path, tmp_path / "keyring.json"))


@pytest.fixture
def running(source):
    return Keyring.load_or_create(source.path)


def record(database, keyring, anchor=None):
    """Add an event, and a checkpoint over it."""
    audit = AuditLog(keyring, anchor=anchor)
    with database.sessions() as session:
        audit.record(session, AuditEntry(AuditKind.APPLICATION_STARTED, agent="rayhook"))
        audit.checkpoint(session)
        session.commit()


def hand_over(database, source):
    audit = AuditLog(Keyring.load_or_create(source.path))

    def act(key):
        with database.sessions() as session:
            audit.hand_over(session, key, agent="officer")
            session.commit()

    return act


def rotate(database, source):
    rotate_audit_key(source, hand_over(database, source))


def latest(database):
    with database.reading() as session:
        return latest_tree(session).checkpoint


def test_a_running_process_signs_by_the_new_key(database, source, running):
    record(database, running)
    rotate(database, source)
    record(database, running)
    new = Keyring.load_or_create(source.path).audit_public_key
    assert latest(database).is_signed_by(new)


def test_the_log_verifies_across_it(database, source, running, anchor):
    before = running.audit_public_key
    record(database, running, anchor)
    rotate(database, source)
    record(database, running, anchor)
    with database.reading() as session:
        assert verify(session, before, anchor, keyring=running).problems == ()


def test_a_process_that_missed_two_rotations_signs_by_the_newest(database, source, running):
    record(database, running)
    rotate(database, source)
    rotate(database, source)
    record(database, running)
    assert latest(database).is_signed_by(Keyring.load_or_create(source.path).audit_public_key)


def test_after_an_interrupted_rotation_the_next_key_signs(database, source, running):
    """The hand-over is on record, and the file still names the old key first."""
    record(database, running)
    hand = hand_over(database, source)

    def interrupted(key):
        hand(key)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rotate_audit_key(source, interrupted)
    next_key = running.next_audit_signing_key().public_key()
    record(database, running)
    assert latest(database).is_signed_by(next_key)


@pytest.mark.parametrize("rotations", [1, 2])
def test_a_process_without_the_new_key_signs_nothing_more(database, source, running, tmp_path, rotations):
    lone = Keyring.load_or_create(shutil.copy(source.path, tmp_path / "copy.json"))
    record(database, lone)
    for _ in range(rotations):
        rotate(database, source)
    with database.reading() as session:
        before = len(stored_trees(session))
    record(database, lone)
    with database.reading() as session:
        assert len(stored_trees(session)) == before
