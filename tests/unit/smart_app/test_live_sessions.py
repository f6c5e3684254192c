"""A session's token is renewed in time, once, and ends the session where the EHR says so."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from rayhook.auth.sessions import SMARTSession
from rayhook.smart_app.live_sessions import MARGIN_S

TOKEN_LIFE_S = 300.0
COOKIE = "rayhook-development-session"


@pytest.fixture
def launched(world, one_time):
    with world.browser() as browser:
        world.launch(browser, "phantom-a")
        yield browser


def tokens_of(world):
    with world.database.engine.connect() as connection:
        query = "SELECT access_token, refresh_token, access_token_expires_at FROM smart_session"
        return connection.execute(text(query)).one()


def patient_page(world, browser):
    return browser.get(f"{world.base_url}/patient")


def last(world, kind):
    return next(record for record in world.audited() if str(record.kind) == kind)


def test_a_token_with_time_left_is_kept(world, launched):
    before = tokens_of(world)
    world.clock.ahead_s = TOKEN_LIFE_S - MARGIN_S - 10
    patient_page(world, launched)
    assert tokens_of(world) == before


def test_a_token_about_to_run_out_is_renewed(world, launched):
    before = tokens_of(world)
    world.clock.ahead_s = TOKEN_LIFE_S - MARGIN_S + 5
    assert patient_page(world, launched).status_code == 200
    after = tokens_of(world)
    assert after.access_token != before.access_token
    assert after.access_token_expires_at > before.access_token_expires_at


def test_a_rotated_refresh_token_replaces_the_old(world, launched):
    for ahead_s in (TOKEN_LIFE_S, 2 * TOKEN_LIFE_S, 3 * TOKEN_LIFE_S):
        world.clock.ahead_s = ahead_s
        assert patient_page(world, launched).status_code == 200


def test_renewal_is_audited(world, launched):
    world.clock.ahead_s = TOKEN_LIFE_S
    patient_page(world, launched)
    assert last(world, "smart_app:session:refreshed").patient_id == "phantom-a"


def test_of_many_who_ask_at_once_one_renews(world, launched, monkeypatch):
    asked = []
    redeem = type(world.ehr.authorization.tokens).redeem_refresh
    gate = threading.Event()

    def counted(store, token):
        asked.append(token)
        gate.wait(0.3)
        return redeem(store, token)

    monkeypatch.setattr(type(world.ehr.authorization.tokens), "redeem_refresh", counted)
    world.clock.ahead_s = TOKEN_LIFE_S
    with ThreadPoolExecutor(6) as pool:
        pages = list(pool.map(lambda _: patient_page(world, launched), range(6)))
    assert [page.status_code for page in pages] == [200] * 6
    assert len(asked) == 1


def test_a_renewal_that_died_is_taken_over_when_its_lease_ends(world, launched):
    world.clock.ahead_s = TOKEN_LIFE_S
    with world.database.engine.begin() as connection:
        connection.execute(text("UPDATE smart_session SET refresh_until = :past"), {"past": 1.0})
    assert patient_page(world, launched).status_code == 200


def test_a_refresh_token_used_elsewhere_ends_the_session(world, launched):
    world.ehr.authorization.tokens.redeem_refresh(list(world.ehr.authorization.tokens._refresh)[-1])
    world.clock.ahead_s = TOKEN_LIFE_S
    page = patient_page(world, launched)
    assert page.status_code == 401
    assert last(world, "smart_app:session:closed").detail["reason"] == "oauth_invalid_grant"


def test_an_ehr_that_is_down_leaves_a_living_token_in_use(world, launched):
    world.clock.ahead_s = TOKEN_LIFE_S - MARGIN_S + 5
    world.ehr.faults.fhir_status = 500
    assert patient_page(world, launched).status_code == 200
    assert last(world, "smart_app:session:refreshed").outcome != 0


def test_an_ehr_that_is_down_does_not_end_the_session(world, launched):
    world.clock.ahead_s = TOKEN_LIFE_S + 1
    world.ehr.faults.fhir_status = 500
    down = patient_page(world, launched)
    world.ehr.faults.fhir_status = None
    assert (down.status_code, patient_page(world, launched).status_code) == (502, 200)


def test_a_session_without_a_refresh_token_ends_with_its_token(world, launched):
    with world.database.engine.begin() as connection:
        connection.execute(text("UPDATE smart_session SET refresh_token = NULL"))
    world.clock.ahead_s = TOKEN_LIFE_S - 5
    alive = patient_page(world, launched)
    world.clock.ahead_s = TOKEN_LIFE_S + 1
    ended = patient_page(world, launched)
    assert (alive.status_code, ended.status_code) == (200, 401)
    assert last(world, "smart_app:session:closed").detail["reason"] == "authorization_expired"


def test_a_session_that_ended_says_how_to_come_back(world, launched):
    with world.database.engine.begin() as connection:
        connection.execute(text("DELETE FROM smart_session"))
    page = patient_page(world, launched)
    assert "Open Rayhook again" in page.text


def test_a_renewed_token_for_another_patient_ends_the_session(world, launched, monkeypatch):
    store = type(world.ehr.authorization.tokens)
    redeem = store.redeem_refresh

    def of_another(self, token):
        grant = redeem(self, token)
        return type(grant)("phantom-b", grant.scope, grant.client_id, grant.user)

    monkeypatch.setattr(store, "redeem_refresh", of_another)
    world.clock.ahead_s = TOKEN_LIFE_S
    assert patient_page(world, launched).status_code == 401
    assert last(world, "smart_app:session:closed").detail["reason"] == "patient_changed"


def test_logout_revokes_refresh_and_access_token(world, launched):
    tokens = world.ehr.authorization.tokens
    refresh_token, access_token = list(tokens._refresh)[-1], list(tokens._access)[-1]
    launched.post(f"{world.base_url}/smart/logout", headers={"Origin": world.base_url})
    assert refresh_token not in tokens._refresh
    assert access_token not in tokens._access
    assert last(world, "smart_app:session:closed").detail["reason"] == "logout"


def test_tokens_that_come_after_the_logout_are_revoked(world, launched, monkeypatch):
    redeem = type(world.ehr.authorization.tokens).redeem_refresh
    came = []
    before = {*world.ehr.authorization.tokens._access, *world.ehr.authorization.tokens._refresh}

    def late(store, token):
        with world.database.engine.begin() as connection:
            connection.execute(text("DELETE FROM smart_session"))
        came.append(redeem(store, token))
        return came[-1]

    monkeypatch.setattr(type(world.ehr.authorization.tokens), "redeem_refresh", late)
    world.clock.ahead_s = TOKEN_LIFE_S
    assert patient_page(world, launched).status_code == 401
    tokens = world.ehr.authorization.tokens
    assert len(came) == 1
    assert not set(tokens._access) - before
    assert not set(tokens._refresh) - before


def test_tokens_are_stored_sealed(world, launched):
    tokens = [*world.ehr.authorization.tokens._access, *world.ehr.authorization.tokens._refresh]
    stored = tokens_of(world)
    assert not any(token.encode() in stored.access_token + stored.refresh_token for token in tokens)


def test_a_session_does_not_show_its_tokens():
    session = SMARTSession(
        ehr_id="x",
        fhir_base_url="https://x.example",
        client_id="c",
        scopes=None,
        access_token="access-canary",
        access_token_expires_at=0.0,
        patient_id=None,
        fhir_user=None,
        refresh_token="refresh-canary",
    )
    assert "canary" not in repr(session)


PROCESS = """
import hashlib, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from rayhook.audit.record import AuditLog
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import load_registry
from rayhook.deploy.database import create_database
from rayhook.fhir.transport import Transport
from rayhook.smart_app.live_sessions import LiveSessions

folder, url, session_id, ahead_s, starts_at = Path(sys.argv[1]), *sys.argv[2:]
keyring = Keyring.load_or_create(folder / "keyring.json")
live = LiveSessions(SimpleNamespace(
    registry=load_registry(folder / "ehrs.toml", development=True),
    sessions=create_database(url).sessions,
    keyring=keyring,
    audit=AuditLog(keyring),
    transport=Transport(allow_loopback_http=True),
    clock=lambda: time.time() + float(ahead_s),
))
time.sleep(max(0.0, float(starts_at) - time.time()))
with ThreadPoolExecutor(4) as pool:
    found = pool.map(lambda _: live.find(session_id).access_token, range(4))
    print(",".join(hashlib.sha256(token.encode()).hexdigest()[:16] for token in found))
"""


def test_of_two_processes_one_renews_and_the_other_finds_the_new_token(world, launched):
    asked = len(world.ehr.authorization.tokens._refresh)
    folder, url = world.keyring._source.path.parent, str(world.database.engine.url)
    world.clock.ahead_s = TOKEN_LIFE_S
    arguments = [folder, url, launched.cookies[COOKIE], TOKEN_LIFE_S, time.time() + 4]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, *map(str, arguments)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=60)[0].splitlines()[-1] for process in processes]
    assert len({token for answer in answers for token in answer.split(",")}) == 1
    assert len(world.ehr.authorization.tokens._refresh) == asked + 1
