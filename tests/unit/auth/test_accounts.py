"""Local accounts of the staff: what is kept, who may sign in, and how many times they may be wrong."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from rayhook.auth.account_sign_in import (
    Attempt,
    SignedIn,
    SignInRefusal,
    begin_attempt,
    begin_proof,
    judge_attempt,
    renew_hash,
)
from rayhook.auth.accounts import (
    StaffAccount,
    create_account,
    enrol,
    enrol_at_once,
    find_account,
    find_enrolment,
    invite,
    list_accounts,
    load_account,
    set_disabled,
    set_roles,
)
from rayhook.auth.keys import Keyring
from rayhook.auth.one_time_codes import current_code
from rayhook.auth.passwords import hash_password, is_password
from rayhook.auth.roles import Role
from rayhook.auth.staff_oidc_requests import PendingSignIn, begin_sign_in, take_sign_in
from rayhook.auth.staff_sessions import (
    PROOF_LIFE_S,
    close_sessions_of,
    close_staff_session,
    find_staff_session,
    note_proof,
    open_account_session,
    open_provider_session,
)
from rayhook.deploy.database import Database, create_database, migrate
from rayhook.fhir.errors import Conflict, InvalidRequest, NotFound, RayhookError

from .conftest import Clock

NAME = "officer-canary"
PASSWORD = "purple lantern seven orchard"
OFFICER = frozenset({Role.COMPLIANCE_OFFICER})
ADMINISTRATOR = frozenset({Role.ADMINISTRATOR})


@dataclass(frozen=True)
class Accounts:
    """One account that is enrolled, and short words for what the tests do with it."""

    database: Database
    keyring: Keyring
    clock: Clock
    account: StaffAccount
    secret: str
    recovery_codes: tuple[str, ...]

    @property
    def code(self) -> str:
        return current_code(self.secret, self.clock())

    @property
    def on_disk(self) -> bytes:
        path = Path(str(self.database.engine.url.database))
        return path.read_bytes() + path.with_name(f"{path.name}-wal").read_bytes()

    def attempt(self, *, name: str = NAME, password: str = PASSWORD, code: str | None = None) -> object:
        with self.database.sessions() as session:
            attempt = begin_attempt(session, self.keyring, name, clock=self.clock)
            session.commit()
        return self.judge(attempt, password=password, code=self.code if code is None else code)

    def judge(self, attempt: Attempt, *, password: str = PASSWORD, code: str) -> object:
        matches = is_password(password, attempt.password_hash)
        with self.database.sessions() as session:
            outcome = judge_attempt(
                session, self.keyring, attempt, password_matches=matches, code=code, clock=self.clock
            )
            session.commit()
        return outcome

    def wrong(self, times: int) -> list[object]:
        return [self.attempt(password="wrong") for _ in range(times)]

    def open_session(self) -> str:
        with self.database.sessions() as session:
            session_id = open_account_session(session, self.account.id, clock=self.clock)
            session.commit()
        return session_id

    def member(self, session_id: str) -> object:
        with self.database.sessions() as session:
            found = find_staff_session(session, self.keyring, session_id, clock=self.clock)
            session.commit()
        return found

    def count(self, table: str) -> int:
        with self.database.sessions() as session:
            return int(session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path_factory.mktemp('accounts') / 'accounts.sqlite3'}"
    migrate(url)
    database = create_database(url)
    yield database
    database.close()


@pytest.fixture
def accounts(store: Database, keyring: Keyring, clock: Clock) -> Accounts:
    with store.sessions() as session:
        for table in ("staff_account", "staff_session", "staff_oidc_request"):
            session.execute(text(f"DELETE FROM {table}"))
        account = create_account(session, keyring, NAME, OFFICER, clock=clock)
        secret, codes = enrol_at_once(session, keyring, account.id, password=PASSWORD, clock=clock)
        account = load_account(session, keyring, account.id)
        session.commit()
    return Accounts(store, keyring, clock, account, secret, codes)


def test_name_password_and_code_sign_in(accounts):
    assert isinstance(accounts.attempt(), SignedIn)


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({"name": "nobody"}, SignInRefusal.ACCOUNT_UNKNOWN),
        ({"name": "'; DROP TABLE staff_account; --"}, SignInRefusal.ACCOUNT_UNKNOWN),
        ({"password": "wrong"}, SignInRefusal.PASSWORD_WRONG),
        ({"password": ""}, SignInRefusal.PASSWORD_WRONG),
        ({"code": "000000"}, SignInRefusal.CODE_WRONG),
        ({"code": ""}, SignInRefusal.CODE_WRONG),
        ({"code": "abcd-efgh-ijkl-mnop"}, SignInRefusal.CODE_WRONG),
    ],
)
def test_each_that_is_wrong_is_refused(accounts, given, refusal):
    assert accounts.attempt(**given) is refusal


@pytest.mark.parametrize("name", ["Officer-Canary", "  officer-canary ", "\uff4ffficer-canary"])
def test_a_name_is_found_however_it_is_written(accounts, name):
    assert isinstance(accounts.attempt(name=name), SignedIn)


def test_a_code_signs_in_once(accounts):
    code = accounts.code
    accounts.attempt(code=code)
    assert accounts.attempt(code=code) is SignInRefusal.CODE_WRONG


def test_of_two_at_once_one_code_lets_one_in(accounts):
    attempts = []
    for _ in range(2):
        with accounts.database.sessions() as session:
            attempts.append(begin_attempt(session, accounts.keyring, NAME, clock=accounts.clock))
            session.commit()
    code, barrier = accounts.code, threading.Barrier(2)

    def judge(attempt: Attempt) -> object:
        barrier.wait()
        return accounts.judge(attempt, code=code)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(judge, attempts))
    assert sum(isinstance(one, SignedIn) for one in outcomes) == 1


def test_a_code_with_a_wrong_password_is_not_used_up(accounts):
    accounts.attempt(password="wrong")
    assert isinstance(accounts.attempt(), SignedIn)


def test_a_recovery_code_stands_in_once(accounts):
    code = accounts.recovery_codes[3]
    first, again = accounts.attempt(code=code), accounts.attempt(code=code)
    assert (first.with_recovery_code, first.recovery_codes_left, again) == (True, 9, SignInRefusal.CODE_WRONG)


def test_five_wrong_attempts_close_the_account(accounts):
    accounts.wrong(5)
    assert accounts.attempt() is SignInRefusal.LOCKED_OUT


def test_four_wrong_attempts_do_not(accounts):
    accounts.wrong(4)
    assert isinstance(accounts.attempt(), SignedIn)


def test_wrong_codes_count_as_wrong_passwords_do(accounts):
    for _ in range(5):
        accounts.attempt(code="000000")
    assert accounts.attempt() is SignInRefusal.LOCKED_OUT


def test_the_true_person_is_let_in_after_the_first_minute(accounts):
    accounts.wrong(5)
    accounts.clock.advance(61)
    assert isinstance(accounts.attempt(), SignedIn)


def test_the_longest_wait_is_a_quarter_of_an_hour(accounts):
    for _ in range(30):
        accounts.wrong(1)
        accounts.clock.advance(901)
    assert isinstance(accounts.attempt(), SignedIn)


def test_attempts_while_it_is_closed_do_not_make_it_longer(accounts):
    accounts.wrong(5)
    accounts.wrong(20)
    accounts.clock.advance(61)
    assert isinstance(accounts.attempt(), SignedIn)


def test_each_further_failure_doubles_the_wait(accounts):
    accounts.wrong(5)
    accounts.clock.advance(61)
    accounts.wrong(1)
    accounts.clock.advance(61)
    assert accounts.attempt() is SignInRefusal.LOCKED_OUT


def test_a_success_forgets_the_failures(accounts):
    accounts.wrong(4)
    accounts.attempt()
    accounts.clock.advance(30)
    accounts.wrong(4)
    assert isinstance(accounts.attempt(), SignedIn)


def test_many_guesses_at_once_are_counted_one_by_one(accounts):
    def guess(_: int) -> object:
        return accounts.attempt(password="wrong")

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(guess, range(12)))
    assert outcomes.count(SignInRefusal.PASSWORD_WRONG) == 5


def test_a_disabled_account_is_closed(accounts):
    with accounts.database.sessions() as session:
        set_disabled(session, accounts.keyring, accounts.account.id, disabled=True)
        session.commit()
    assert accounts.attempt() is SignInRefusal.ACCOUNT_DISABLED


def test_an_account_that_was_reset_during_an_attempt_stays_closed(accounts):
    with accounts.database.sessions() as session:
        attempt = begin_attempt(session, accounts.keyring, NAME, clock=accounts.clock)
        invite(session, accounts.keyring, accounts.account.id, clock=accounts.clock)
        session.commit()
    assert accounts.judge(attempt, code=accounts.code) is SignInRefusal.ACCOUNT_DISABLED


def test_an_account_that_is_only_invited_takes_no_password(accounts):
    with accounts.database.sessions() as session:
        account = create_account(session, accounts.keyring, "newcomer", OFFICER)
        invite(session, accounts.keyring, account.id)
        session.commit()
    assert accounts.attempt(name="newcomer", password="") is SignInRefusal.NOT_ENROLLED


def test_a_proof_needs_the_code_alone(accounts):
    with accounts.database.sessions() as session:
        attempt = begin_proof(session, accounts.keyring, accounts.account.id, clock=accounts.clock)
        session.commit()
        proved = judge_attempt(
            session,
            accounts.keyring,
            attempt,
            password_matches=True,
            code=accounts.code,
            clock=accounts.clock,
        )
    assert isinstance(proved, SignedIn)


def test_a_renewed_hash_is_of_the_same_password(accounts):
    with accounts.database.sessions() as session:
        renew_hash(session, accounts.keyring, accounts.account.id, hash_password(PASSWORD))
        session.commit()
    assert isinstance(accounts.attempt(), SignedIn)


def test_nothing_of_an_account_lies_open_in_the_database(accounts):
    secrets = (NAME, PASSWORD, accounts.secret, "argon2id", *accounts.recovery_codes)
    kept = accounts.on_disk
    assert [one for one in secrets if one.encode() in kept] == []


def test_a_sealed_column_of_one_account_does_not_open_for_another(accounts):
    with accounts.database.sessions() as session:
        other = create_account(session, accounts.keyring, "other", OFFICER)
        enrol_at_once(session, accounts.keyring, other.id, password="another seven orchards lamp")
        for column in ("password_hash", "totp_secret"):
            statement = (
                f"UPDATE staff_account SET {column} = "
                f"(SELECT {column} FROM staff_account WHERE id = :own) WHERE id = :other"
            )
            session.execute(text(statement), {"own": accounts.account.id, "other": other.id})
        session.commit()
    with pytest.raises(RayhookError) as refused:
        accounts.attempt(name="other")
    assert refused.value.code == "decryption_failed"


@pytest.mark.parametrize(
    "name", ["", "ab", ".officer", "o fficer", "officer/", "o" * 64, "offi\nzier", "öfficer"]
)
def test_a_name_that_an_account_cannot_have_is_refused(accounts, name):
    with accounts.database.sessions() as session, pytest.raises(InvalidRequest):
        create_account(session, accounts.keyring, name, OFFICER)


def test_a_name_is_given_once(accounts):
    with accounts.database.sessions() as session, pytest.raises(Conflict):
        create_account(session, accounts.keyring, NAME.upper(), OFFICER)


@pytest.mark.parametrize(
    "roles", [[], [Role.CLINICIAN], [Role.RADIOLOGIST, Role.ADMINISTRATOR], [Role.SERVICE]]
)
def test_an_account_has_roles_of_the_staff_and_no_others(accounts, roles):
    with accounts.database.sessions() as session, pytest.raises(InvalidRequest):
        create_account(session, accounts.keyring, "somebody", roles)


def test_accounts_are_listed_by_name(accounts):
    with accounts.database.sessions() as session:
        create_account(session, accounts.keyring, "a-first", ADMINISTRATOR)
        assert [one.name for one in list_accounts(session, accounts.keyring)] == ["a-first", NAME]


def test_an_account_is_found_by_name(accounts):
    with accounts.database.sessions() as session:
        assert find_account(session, accounts.keyring, NAME) == accounts.account


def test_nothing_secret_is_in_what_an_account_prints(accounts):
    attempt = Attempt(accounts.account.id, None, "$argon2id$canary")
    assert "canary$" not in repr(attempt)
    assert not re.search(r"argon2|secret", repr(accounts.account))


class TestInvitation:
    @pytest.fixture
    def token(self, accounts: Accounts) -> str:
        with accounts.database.sessions() as session:
            account = create_account(session, accounts.keyring, "newcomer", OFFICER, clock=accounts.clock)
            token = invite(session, accounts.keyring, account.id, clock=accounts.clock)
            session.commit()
        return token

    def find(self, accounts: Accounts, token: str) -> StaffAccount:
        with accounts.database.sessions() as session:
            return find_enrolment(session, accounts.keyring, token, clock=accounts.clock)[0]

    def test_it_is_for_the_account(self, accounts, token):
        assert self.find(accounts, token).name == "newcomer"

    def test_it_is_good_for_a_day(self, accounts, token):
        accounts.clock.advance(24 * 3600 + 1)
        with pytest.raises(NotFound):
            self.find(accounts, token)

    def test_it_is_good_once(self, accounts, token):
        account = self.find(accounts, token)
        with accounts.database.sessions() as session:
            enrol(session, accounts.keyring, account.id, password_hash=hash_password(PASSWORD), totp_step=1)
            session.commit()
        with pytest.raises(NotFound):
            self.find(accounts, token)

    def test_a_new_one_voids_it(self, accounts, token):
        account = self.find(accounts, token)
        with accounts.database.sessions() as session:
            invite(session, accounts.keyring, account.id, clock=accounts.clock)
            session.commit()
        with pytest.raises(NotFound):
            self.find(accounts, token)

    def test_a_disabled_account_is_not_invited(self, accounts, token):
        account = self.find(accounts, token)
        with accounts.database.sessions() as session:
            set_disabled(session, accounts.keyring, account.id, disabled=True)
            session.commit()
        with pytest.raises(NotFound):
            self.find(accounts, token)

    def test_it_voids_the_password_that_there_was(self, accounts):
        with accounts.database.sessions() as session:
            invite(session, accounts.keyring, accounts.account.id, clock=accounts.clock)
            session.commit()
        assert accounts.attempt() is SignInRefusal.NOT_ENROLLED


class TestLastAdministrator:
    @pytest.fixture
    def administrator(self, accounts: Accounts) -> str:
        with accounts.database.sessions() as session:
            account = create_account(session, accounts.keyring, "administrator", ADMINISTRATOR)
            enrol_at_once(session, accounts.keyring, account.id, password=PASSWORD)
            session.commit()
        return account.id

    def test_is_not_disabled(self, accounts, administrator):
        with accounts.database.sessions() as session, pytest.raises(Conflict):
            set_disabled(session, accounts.keyring, administrator, disabled=True)

    def test_keeps_the_role(self, accounts, administrator):
        with accounts.database.sessions() as session, pytest.raises(Conflict):
            set_roles(session, accounts.keyring, administrator, OFFICER)

    def test_may_go_when_another_can_sign_in(self, accounts, administrator):
        with accounts.database.sessions() as session:
            other = create_account(session, accounts.keyring, "other", ADMINISTRATOR)
            enrol_at_once(session, accounts.keyring, other.id, password=PASSWORD)
            gone = set_disabled(session, accounts.keyring, administrator, disabled=True)
        assert gone.disabled

    def test_stays_when_the_other_is_only_invited(self, accounts, administrator):
        with accounts.database.sessions() as session:
            other = create_account(session, accounts.keyring, "other", ADMINISTRATOR)
            invite(session, accounts.keyring, other.id)
            with pytest.raises(Conflict):
                set_disabled(session, accounts.keyring, administrator, disabled=True)


class TestSession:
    def test_it_is_the_accounts(self, accounts):
        member = accounts.member(accounts.open_session())
        assert (member.name, member.roles, member.agent) == (NAME, OFFICER, f"urn:rayhook:staff:{NAME}")

    @pytest.mark.parametrize("session_id", ["", "x" * 43, "' OR 1=1 --"])
    def test_another_id_is_nobodys(self, accounts, session_id):
        accounts.open_session()
        assert accounts.member(session_id) is None

    def test_only_its_hash_is_kept(self, accounts):
        session_id = accounts.open_session()
        assert session_id.encode() not in accounts.on_disk

    def test_it_ends_after_a_quarter_of_an_hour_without_use(self, accounts):
        session_id = accounts.open_session()
        accounts.clock.advance(15 * 60)
        assert accounts.member(session_id) is None

    def test_an_ended_one_is_erased(self, accounts):
        session_id = accounts.open_session()
        accounts.clock.advance(15 * 60)
        accounts.member(session_id)
        assert accounts.count("staff_session") == 0

    def test_use_keeps_it_alive(self, accounts):
        session_id = accounts.open_session()
        for _ in range(4):
            accounts.clock.advance(10 * 60)
            assert accounts.member(session_id) is not None

    def test_use_does_not_keep_it_for_more_than_twelve_hours(self, accounts):
        session_id = accounts.open_session()
        for _ in range(12 * 6):
            accounts.member(session_id)
            accounts.clock.advance(10 * 60)
        assert accounts.member(session_id) is None

    def test_a_change_of_roles_holds_at_once(self, accounts):
        session_id = accounts.open_session()
        with accounts.database.sessions() as session:
            set_roles(session, accounts.keyring, accounts.account.id, [Role.MODEL_MANAGER])
            session.commit()
        assert accounts.member(session_id).roles == {Role.MODEL_MANAGER}

    def test_it_ends_when_the_account_is_disabled(self, accounts):
        session_id = accounts.open_session()
        with accounts.database.sessions() as session:
            set_disabled(session, accounts.keyring, accounts.account.id, disabled=True)
            session.commit()
        assert accounts.member(session_id) is None

    def test_it_ends_when_the_account_is_reset(self, accounts):
        session_id = accounts.open_session()
        with accounts.database.sessions() as session:
            invite(session, accounts.keyring, accounts.account.id)
            session.commit()
        assert accounts.member(session_id) is None

    def test_all_of_an_account_end_together(self, accounts):
        ids = [accounts.open_session() for _ in range(3)]
        with accounts.database.sessions() as session:
            closed = close_sessions_of(session, accounts.account.id)
            session.commit()
        assert (closed, [accounts.member(one) for one in ids]) == (3, [None] * 3)

    def test_one_is_closed_by_itself(self, accounts):
        left, gone = accounts.open_session(), accounts.open_session()
        with accounts.database.sessions() as session:
            close_staff_session(session, accounts.member(gone))
            session.commit()
        assert (accounts.member(left) is not None, accounts.member(gone)) == (True, None)

    def test_the_second_factor_is_fresh_for_ten_minutes(self, accounts):
        member = accounts.member(accounts.open_session())
        now = accounts.clock()
        fresh = [member.proved_within(PROOF_LIFE_S, now + later) for later in (0, 599, 600)]
        assert fresh == [True, True, False]

    def test_a_proof_makes_it_fresh_again(self, accounts):
        session_id = accounts.open_session()
        accounts.clock.advance(601)
        with accounts.database.sessions() as session:
            note_proof(session, accounts.member(session_id), clock=accounts.clock)
            session.commit()
        assert accounts.member(session_id).proved_within(PROOF_LIFE_S, accounts.clock())

    def test_the_account_remembers_the_last_sign_in(self, accounts):
        accounts.open_session()
        with accounts.database.sessions() as session:
            assert (
                load_account(session, accounts.keyring, accounts.account.id).signed_in_at == accounts.clock()
            )

    def test_a_providers_never_holds_a_role_of_an_ehr(self, accounts):
        with accounts.database.sessions() as session:
            session_id = open_provider_session(
                session,
                accounts.keyring,
                provider="sso",
                agent="https://sso.example#1",
                name="Officer",
                roles=[Role.RADIOLOGIST, Role.COMPLIANCE_OFFICER],
                proved_at=accounts.clock(),
                clock=accounts.clock,
            )
            session.commit()
        assert accounts.member(session_id).roles == OFFICER


class TestPendingSignIn:
    PENDING = PendingSignIn("sso", "/staff", nonce="nonce-canary", code_verifier="verifier-canary")

    @pytest.fixture
    def begun(self, accounts: Accounts) -> Accounts:
        with accounts.database.sessions() as session:
            begin_sign_in(
                session,
                accounts.keyring,
                self.PENDING,
                state="state",
                browser="browser",
                clock=accounts.clock,
            )
            session.commit()
        return accounts

    def take(self, accounts: Accounts, *, state: str = "state", browser: str = "browser") -> object:
        with accounts.database.sessions() as session:
            found = take_sign_in(
                session, accounts.keyring, state=state, browser=browser, clock=accounts.clock
            )
            session.commit()
        return found

    def test_it_is_taken_once(self, begun):
        assert [self.take(begun), self.take(begun)] == [self.PENDING, None]

    @pytest.mark.parametrize("wrong", [{"state": "other"}, {"browser": "other"}, {"browser": ""}])
    def test_not_by_another(self, begun, wrong):
        assert self.take(begun, **wrong) is None

    def test_not_after_ten_minutes(self, begun):
        begun.clock.advance(600)
        assert self.take(begun) is None
