import json
import time

import pyotp
import pytest
from typer.testing import CliRunner

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.audit.review import recent
from rayhook.auth.accounts import create_account
from rayhook.auth.encryption import MAX_USES
from rayhook.auth.key_rotation import add_encryption_key, encryption_key_statuses, promote_encryption_key
from rayhook.auth.key_tables import KEY_USE
from rayhook.auth.keyring_file import KeyringFile
from rayhook.auth.roles import Role
from rayhook.deploy.cli import app
from rayhook.deploy.encryption_desk import EncryptionDesk
from rayhook.deploy.key_approval import approver
from rayhook.deploy.key_use import note_uses, told_uses
from rayhook.fhir.errors import Conflict, Forbidden
from rayhook.inference.sealed_spool import SealedSpool
from rayhook.smart_app.account_acts import AccountActs

PASSWORD = "correct-horse-battery-9x"


@pytest.fixture
def source(settings):
    return KeyringFile(settings.keyring_path)


@pytest.fixture
def desk(installation):
    return EncryptionDesk(installation, clock=lambda: 1000.0)


def run(settings, *arguments, **given):
    return CliRunner().invoke(
        app, ["keys", "encryption", *arguments, "--data-dir", str(settings.data_dir)], **given
    )


def rotated(source):
    """Return the ids of the old and the new key, as they are long after a rotation."""
    [old] = encryption_key_statuses(source)
    new = add_encryption_key(source, distribution_s=0.0, clock=lambda: 100.0)
    promote_encryption_key(source, clock=lambda: 100.0)
    return old.key_id, new.key_id


def status(settings):
    return json.loads(run(settings, "status", "--json").stdout)


def account(installation, name, role=Role.ADMINISTRATOR):
    """Return the secret of a new account's app."""
    acts = AccountActs(
        installation.database.sessions, installation.keyring, installation.audit, lambda: time.time() - 120
    )
    return acts.create_enrolled(name, [role], PASSWORD, agent="test").secret


def events(installation):
    with installation.database.reading() as session:
        found = recent(session, installation.keyring, limit=20)
    return [one for one in found if str(one.kind) == "auth:encryption_key:changed"]


def test_status_counts_what_needs_each_key(settings, installation):
    with installation.database.sessions() as session:
        create_account(session, installation.keyring, "anna", [Role.ADMINISTRATOR])
        session.commit()
    [key] = status(settings)["keys"]
    assert (key["state"], key["values"], key["is_worn"]) == ("primary", 1, False)


def test_a_worn_key_is_told_of(settings, installation):
    key_id = installation.keyring.sealing_key
    with installation.database.sessions() as session:
        session.execute(KEY_USE.insert().values(key_id=key_id, uses=MAX_USES // 2, updated_at=0.0))
        session.commit()
    assert status(settings)["keys"][0]["is_worn"]
    assert "rotate" in run(settings, "status").stdout


def test_uses_add_up(installation):
    place = {"table": "t", "column": "c", "row": "1"}
    for _ in range(2):
        installation.keyring.seal(b"value", **place)
        with installation.database.sessions() as session:
            note_uses(session, installation.keyring)
            session.commit()
    with installation.database.reading() as session:
        assert told_uses(session) == {installation.keyring.sealing_key: 2}


def test_the_steps_are_recorded_when_they_begin_and_end(settings, installation):
    run(settings, "add")
    assert [one.detail["phase"] for one in events(installation)] == ["done", "begun"]


def test_a_refused_step_is_recorded_too(settings, installation):
    run(settings, "add")
    assert run(settings, "promote").exit_code != 0
    last = events(installation)[0]
    assert (last.detail["code"], last.outcome) == ("key_not_distributed", Outcome.MINOR_FAILURE)


def test_a_key_that_a_value_needs_is_not_disabled(desk, source):
    installation = desk.installation
    with installation.database.sessions() as session:
        create_account(session, installation.keyring, "anna", [Role.ADMINISTRATOR])
        session.commit()
    old, _ = rotated(source)
    with pytest.raises(Conflict, match=r"staff_account\.name 1") as refusal:
        desk.disable(old)
    assert refusal.value.code == "key_needed"


def test_a_key_that_a_file_needs_is_not_disabled(desk, source, settings):
    SealedSpool(settings.data_dir / "received", desk.installation.keyring, 1 << 20).write("a", [b"image"])
    old, _ = rotated(source)
    with pytest.raises(Conflict, match="files in received 1"):
        desk.disable(old)


def test_it_is_disabled_once_all_is_sealed_anew(desk, source):
    installation = desk.installation
    with installation.database.sessions() as session:
        create_account(session, installation.keyring, "anna", [Role.ADMINISTRATOR])
        installation.audit.record(session, AuditEntry(AuditKind.APPLICATION_STARTED, agent="x"))
        session.commit()
    old, _ = rotated(source)
    desk.reencrypt(rows_per_s=1e6)
    assert desk.disable(old).state == "disabled"


def test_a_key_is_not_disabled_while_a_process_may_seal_by_it(desk, source):
    [old] = encryption_key_statuses(source)
    add_encryption_key(source, distribution_s=600.0, clock=lambda: 100.0)
    promote_encryption_key(source, clock=lambda: 800.0)
    with pytest.raises(Conflict) as refusal:
        desk.disable(old.key_id)
    assert refusal.value.code == "key_not_distributed"


def disabled(desk, source):
    old, _ = rotated(source)
    desk.reencrypt(rows_per_s=1e6)
    desk.disable(old)
    return old


def person(desk, name, role=Role.ADMINISTRATOR):
    secret = account(desk.installation, name, role)
    code = pyotp.TOTP(secret).now()
    return approver(desk.installation, name, password=PASSWORD, code=code)


def test_one_person_alone_does_not_destroy_a_key(desk, source):
    old = disabled(desk, source)
    anna = person(desk, "anna")
    assert [desk.destroy(old, anna), desk.destroy(old, anna)] == [False, False]
    assert old in [one.key_id for one in encryption_key_statuses(source)]


def test_two_people_do(desk, source):
    old = disabled(desk, source)
    assert not desk.destroy(old, person(desk, "anna"))
    assert desk.destroy(old, person(desk, "otto", Role.COMPLIANCE_OFFICER))
    assert old not in [one.key_id for one in encryption_key_statuses(source)]


def test_the_second_person_has_a_day(desk, source):
    old = disabled(desk, source)
    desk.destroy(old, person(desk, "anna"))
    late = EncryptionDesk(desk.installation, clock=lambda: 1000.0 + 24 * 3600.0 + 1)
    assert not late.destroy(old, person(desk, "otto"))


def test_a_key_that_is_not_disabled_is_not_destroyed(desk, source):
    old, _ = rotated(source)
    with pytest.raises(Conflict) as refusal:
        desk.destroy(old, person(desk, "anna"))
    assert refusal.value.code == "key_state"


def test_who_destroyed_it_is_recorded(desk, source):
    old = disabled(desk, source)
    desk.destroy(old, person(desk, "anna"))
    desk.destroy(old, person(desk, "otto"))
    last = events(desk.installation)[0]
    assert (last.detail["act"], last.detail["key"]) == ("destroy", str(old))
    assert last.detail["approver"] == "urn:rayhook:staff:otto"


@pytest.mark.parametrize(
    ("password", "role"), [("wrong", Role.ADMINISTRATOR), (PASSWORD, Role.MODEL_MANAGER)]
)
def test_who_may_not_approve_is_refused(installation, password, role):
    secret = account(installation, "eve", role)
    with pytest.raises(Forbidden):
        approver(installation, "eve", password=password, code=pyotp.TOTP(secret).now())


def test_a_wrong_code_approves_nothing(installation):
    account(installation, "anna")
    with pytest.raises(Forbidden):
        approver(installation, "anna", password=PASSWORD, code="000000")


def test_the_whole_rotation_from_the_command_line(settings, installation, source):
    secrets = {name: account(installation, name) for name in ("anna", "otto")}
    old, _ = rotated(source)
    assert run(settings, "reencrypt").exit_code == 0
    assert run(settings, "disable", str(old)).exit_code == 0
    assert run(settings, "enable", str(old)).exit_code == 0
    assert run(settings, "disable", str(old)).exit_code == 0
    for name, secret in secrets.items():
        proof = f"{PASSWORD}\n{pyotp.TOTP(secret).now()}\n"
        done = run(settings, "destroy", str(old), "--account", name, "--proof-stdin", input=proof)
        assert done.exit_code == 0
    assert [one["state"] for one in status(settings)["keys"]] == ["primary"]
    assert status(settings)["unknown"] == 0
