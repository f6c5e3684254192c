import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import select

from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.scopes import ScopeSet
from rayhook.auth.sessions import (
    PendingLaunch,
    SMARTSession,
    SMARTSessionRow,
    _hash,
    begin_launch,
    close_session,
    create_session,
    find_session,
    new_browser_binding,
    take_launch,
)
from rayhook.fhir.errors import RayhookError

from .conftest import FHIR_BASE, Clock

LAUNCH = PendingLaunch("north", FHIR_BASE, nonce="nonce-canary", code_verifier="verifier-canary")
SESSION = SMARTSession(
    ehr_id="north",
    fhir_base_url=FHIR_BASE,
    client_id="rayhook",
    scopes=ScopeSet.parse("openid patient/Patient.r"),
    access_token="token-canary",
    access_token_expires_at=1000.0,
    patient_id="patient-canary",
    fhir_user="Practitioner/user-canary",
    name="name-canary",
)

Begin = Callable[[], tuple[str, str]]
Take = Callable[[str, str], PendingLaunch | None]
Find = Callable[[str], SMARTSession | None]


@pytest.fixture
def begin(sessions: Sessions, keyring: Keyring, clock: Clock) -> Begin:
    def call() -> tuple[str, str]:
        state, browser = new_browser_binding(), new_browser_binding()
        with sessions() as session:
            begin_launch(session, keyring, LAUNCH, state=state, browser=browser, clock=clock)
            session.commit()
        return state, browser

    return call


@pytest.fixture
def take(sessions: Sessions, keyring: Keyring, clock: Clock) -> Take:
    def call(state: str, browser: str) -> PendingLaunch | None:
        with sessions() as session:
            launch = take_launch(session, keyring, state=state, browser=browser, clock=clock)
            session.commit()
            return launch

    return call


@pytest.fixture
def find(sessions: Sessions, keyring: Keyring, clock: Clock) -> Find:
    def call(session_id: str) -> SMARTSession | None:
        with sessions() as session:
            found = find_session(session, keyring, session_id, clock=clock)
            session.commit()
            return found

    return call


@pytest.fixture
def session_id(sessions: Sessions, keyring: Keyring, clock: Clock) -> str:
    with sessions() as session:
        session_id = create_session(session, keyring, SESSION, clock=clock)
        session.commit()
        return session_id


def test_a_launch_comes_back(begin: Begin, take: Take) -> None:
    assert take(*begin()) == LAUNCH


def test_a_state_is_used_once(begin: Begin, take: Take) -> None:
    state, browser = begin()
    take(state, browser)
    assert take(state, browser) is None


def test_of_many_callbacks_at_once_one_gets_the_launch(begin: Begin, take: Take) -> None:
    state, browser = begin()
    barrier = threading.Barrier(10)

    def call(_: int) -> PendingLaunch | None:
        barrier.wait()
        return take(state, browser)

    with ThreadPoolExecutor(10) as pool:
        assert sum(launch is not None for launch in pool.map(call, range(10))) == 1


def test_an_unknown_state(take: Take) -> None:
    assert take("unknown", "browser") is None


def test_another_browser_gets_nothing_and_takes_nothing(begin: Begin, take: Take) -> None:
    state, browser = begin()
    assert take(state, new_browser_binding()) is None
    assert take(state, browser) == LAUNCH


def test_a_launch_ends_after_ten_minutes(begin: Begin, take: Take, clock: Clock) -> None:
    state, browser = begin()
    clock.advance(600.0)
    assert take(state, browser) is None


def test_launches_that_ended_are_erased(begin: Begin, sessions: Sessions, clock: Clock) -> None:
    begin()
    clock.advance(601.0)
    begin()
    with sessions() as session:
        assert session.connection().execute(text("select count(*) from smart_launch")).scalar_one() == 1


def test_a_session_comes_back(session_id: str, find: Find) -> None:
    assert find(session_id) == SESSION


def test_a_session_without_a_person(sessions: Sessions, keyring: Keyring, clock: Clock, find: Find) -> None:
    bare = replace(SESSION, patient_id=None, fhir_user=None, name=None)
    with sessions() as session:
        session_id = create_session(session, keyring, bare, clock=clock)
        session.commit()
    assert find(session_id) == bare


@pytest.mark.parametrize("guess", ["", "x", "é", "' or 1=1 --"])
def test_an_unknown_id(find: Find, guess: str) -> None:
    assert find(guess) is None


def test_the_hash_in_the_database_opens_nothing(session_id: str, sessions: Sessions, find: Find) -> None:
    with sessions() as session:
        hashes = session.exec(select(SMARTSessionRow.id_hash)).all()
    assert [find(stored) for stored in hashes] == [None] * len(hashes)
    assert session_id not in hashes


def test_idle_for_a_quarter_of_an_hour(session_id: str, find: Find, clock: Clock) -> None:
    clock.advance(15 * 60.0)
    assert find(session_id) is None


def test_an_idle_session_does_not_come_back(session_id: str, find: Find, clock: Clock) -> None:
    clock.advance(15 * 60.0)
    find(session_id)
    clock.advance(-15 * 60.0)
    assert find(session_id) is None


def test_use_keeps_it_alive_but_not_beyond_half_a_day(session_id: str, find: Find, clock: Clock) -> None:
    for _ in range(71):
        clock.advance(600.0)
        assert find(session_id) is not None
    clock.advance(600.0)
    assert find(session_id) is None


def test_closed(session_id: str, sessions: Sessions, find: Find) -> None:
    with sessions() as session:
        assert close_session(session, session_id)
        session.commit()
    assert find(session_id) is None


def test_closing_what_is_not_there(sessions: Sessions) -> None:
    with sessions() as session:
        assert not close_session(session, "unknown")


def test_a_rolled_back_session_was_never_there(
    sessions: Sessions, keyring: Keyring, clock: Clock, find: Find
) -> None:
    with sessions() as session:
        session_id = create_session(session, keyring, SESSION, clock=clock)
        session.rollback()
    assert find(session_id) is None


def test_another_row_s_token_does_not_open(
    session_id: str, sessions: Sessions, keyring: Keyring, clock: Clock, find: Find
) -> None:
    with sessions() as session:
        other = create_session(session, keyring, SESSION, clock=clock)
        session.commit()
        mine, theirs = (session.get_one(SMARTSessionRow, _hash(found)) for found in (session_id, other))
        mine.access_token, theirs.access_token = theirs.access_token, mine.access_token
        session.commit()
    with pytest.raises(RayhookError, match="does not belong"):
        find(other)


def test_nothing_lies_open_in_the_file(
    begin: Begin, session_id: str, database_url: str, sessions: Sessions
) -> None:
    state, browser = begin()
    with sessions() as session:
        session.connection().execute(text("select 1"))
    folder = database_url.removeprefix("sqlite:///").rpartition("/")[0]
    content = b"".join(path.read_bytes() for path in _files(folder))
    canaries = [b"canary", session_id.encode(), state.encode(), browser.encode()]
    assert [canary for canary in canaries if canary in content] == []


def _files(folder: str) -> list[Path]:
    return [path for path in Path(folder).iterdir() if path.is_file()]


def test_representations_hide_what_is_secret() -> None:
    assert "canary" not in repr(LAUNCH) + repr(SESSION).replace("user-canary", "")
