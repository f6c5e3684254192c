"""Accounts of the staff on a real PostgreSQL, whose transactions truly run side by side."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from rayhook.auth.accounts import (
    create_account,
    enrol,
    enrol_at_once,
    find_enrolment,
    invite,
    list_accounts,
    set_disabled,
)
from rayhook.auth.keys import Keyring
from rayhook.auth.roles import Role
from rayhook.deploy.database import create_database, migrate
from rayhook.fhir.errors import Conflict, NotFound, ServiceUnavailable

pytestmark = pytest.mark.postgresql

PASSWORD = "a heron over the wet meadow"


@pytest.fixture(scope="module")
def database(server):
    server.psql("CREATE DATABASE accounts")
    url = server.get_uri("accounts")
    migrate(url)
    database = create_database(url)
    yield database
    database.close()


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keys") / "keyring.json")


def at_once(database, acts):
    """Let each act go as far as its commit, and all begin together; return what became of each."""
    start = Barrier(len(acts))

    def run(act):
        start.wait()
        try:
            with database.sessions() as session:
                act(session)
                session.commit()
        except (Conflict, NotFound, ServiceUnavailable) as error:
            return type(error)
        return None

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(run, acts))


def test_of_two_administrators_who_close_each_other_one_stays(database, keyring):
    for _ in range(5):
        with database.sessions() as session:
            for account in list_accounts(session, keyring):
                set_disabled(session, keyring, account.id, disabled=False)
            both = [
                account.id
                for account in list_accounts(session, keyring)
                if Role.ADMINISTRATOR in account.roles
            ]
            for name in ("anna", "ben")[len(both) :]:
                account = create_account(session, keyring, name, [Role.ADMINISTRATOR])
                enrol_at_once(session, keyring, account.id, password=PASSWORD)
                both.append(account.id)
            session.commit()
        ends = at_once(
            database,
            [lambda session, who=who: set_disabled(session, keyring, who, disabled=True) for who in both],
        )
        with database.reading() as session:
            left = [account for account in list_accounts(session, keyring) if not account.disabled]
        assert (len(left), ends.count(None)) == (1, 1)


def test_of_two_who_use_one_invitation_one_is_enrolled(database, keyring):
    with database.sessions() as session:
        account = create_account(session, keyring, "officer", [Role.COMPLIANCE_OFFICER])
        token = invite(session, keyring, account.id)
        session.commit()

    def use(session):
        found, _ = find_enrolment(session, keyring, token)
        enrol(session, keyring, found.id, password_hash="hash", totp_step=1)

    ends = at_once(database, [use, use])
    assert sorted(map(str, ends)) == sorted(map(str, [None, NotFound]))
