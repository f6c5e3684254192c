import time

import pyotp
import pytest
from typer.testing import CliRunner

from rayhook.auth.roles import Role
from rayhook.deploy.cli import app
from rayhook.fhir.errors import Erased
from rayhook.inference import jobs
from rayhook.inference.report import build_resources
from rayhook.smart_app.account_acts import AccountActs
from tests.unit.inference.samples import analysed, manifest, reference

PASSWORD = "correct-horse-battery-9x"


@pytest.fixture
def secrets(installation):
    acts = AccountActs(
        installation.database.sessions, installation.keyring, installation.audit, lambda: time.time() - 120
    )
    people = {"anna": Role.ADMINISTRATOR, "bela": Role.COMPLIANCE_OFFICER}
    return {
        name: acts.create_enrolled(name, [role], PASSWORD, agent="test").secret
        for name, role in people.items()
    }


@pytest.fixture
def result_id(installation):
    about = reference()
    with installation.database.sessions() as session:
        row, _ = jobs.enqueue(session, installation.keyring, about, None, key="k", request_id="r")
        claimed = jobs.claim(session, installation.keyring, row.id, lease_s=60)
        resources = build_resources(about, analysed(), manifest(), organization="Site")
        id_ = jobs.complete(session, installation.keyring, claimed, analysed(), resources)
        session.commit()
    return id_


def run(settings, *arguments, typed=""):
    return CliRunner().invoke(app, ["patient", *arguments, "--data-dir", str(settings.data_dir)], input=typed)


def shred(settings, secrets, name, *, again=None):
    about = reference()
    typed = f"{PASSWORD}\n{pyotp.TOTP(secrets[name]).now()}\n{again or about.patient_id}\n"
    subject = ("--ehr", about.ehr_id, "--patient", about.patient_id, "--reason", "request 17")
    return run(settings, "shred", *subject, "--account", name, "--proof-stdin", typed=typed)


def load(installation, result_id):
    with installation.database.reading() as session:
        return jobs.load_result(session, installation.keyring, result_id)


def test_two_people_erase(settings, installation, secrets, result_id):
    asked, done = (shred(settings, secrets, name) for name in ("anna", "bela"))
    assert (asked.exit_code, done.exit_code) == (0, 0), asked.output + done.output
    assert "somebody else" in asked.output
    assert "1 keys destroyed" in done.output
    with pytest.raises(Erased):
        load(installation, result_id)


def test_one_person_does_not(settings, installation, secrets, result_id):
    first = shred(settings, secrets, "anna")
    assert first.exit_code == 0
    id_ = first.output.split("erasure ")[1].split()[0]
    assert load(installation, result_id) is not None
    assert id_ in run(settings, "list").output


def test_nothing_is_done_where_the_id_is_not_typed_again(settings, installation, secrets, result_id):
    shred(settings, secrets, "anna")
    assert shred(settings, secrets, "bela", again="other").exit_code != 0
    assert load(installation, result_id) is not None


def test_nothing_is_done_for_a_wrong_code(settings, installation, secrets, result_id):
    shred(settings, secrets, "anna")
    assert shred(settings, {"bela": "A" * 32}, "bela").exit_code != 0
    assert load(installation, result_id) is not None


def test_a_wish_is_withdrawn(settings, secrets):
    id_ = shred(settings, secrets, "anna").output.split("erasure ")[1].split()[0]
    typed = f"{PASSWORD}\n{pyotp.TOTP(secrets['bela']).now()}\n"
    done = run(settings, "withdraw", id_, "--account", "bela", "--proof-stdin", typed=typed)
    assert (done.exit_code, "withdrawn" in run(settings, "list").output) == (0, True), done.output


def test_the_list_names_no_patient(settings, secrets):
    shred(settings, secrets, "anna")
    assert reference().patient_id not in run(settings, "list").output
