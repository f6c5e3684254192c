"""The watch and its items on a real PostgreSQL, with two processes that look at once."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.unusual import ReviewState, Watching, count_items, review_items
from rayhook.audit.verification import Verifier, is_alarmed, last_verification
from rayhook.audit.watch import Rule, Thresholds
from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database, migrate

pytestmark = pytest.mark.postgresql
ROUNDS = 5


@pytest.fixture(scope="module")
def parts(server, tmp_path_factory):
    server.psql("CREATE DATABASE unusual")
    url = server.get_uri("unusual")
    migrate(url)
    database = create_database(url)
    folder = tmp_path_factory.mktemp("keys")
    keyring = Keyring.load_or_create(folder / "keyring.json")
    yield database.sessions, database.reading, keyring, AuditLog(keyring, anchor=folder / "anchor.jsonl")
    database.close()


def deny(parts, agent):
    sessions, _, _, audit = parts
    with sessions() as session:
        for _ in range(5):
            audit.record(session, AuditEntry(AuditKind.SMART_APP_ACCESS_DENIED, ehr_id="north", agent=agent))
        session.commit()


def test_two_that_look_at_once_find_each_thing_once(parts):
    watches = [Watching(*parts, Thresholds()) for _ in range(2)]
    for number in range(ROUNDS):
        deny(parts, f"Practitioner/{number}")
        both = Barrier(2)

        def look(watch, both=both):
            both.wait()
            return watch.step()

        with ThreadPoolExecutor(2) as pool:
            assert sum(pool.map(look, watches)) == 1
    with parts[1]() as session:
        assert count_items(session) == {(Rule.REPEATED_DENIALS, ReviewState.OPEN): ROUNDS}
        assert len(review_items(session, parts[2])) == ROUNDS


def test_verification_is_kept_in_the_log(parts):
    assert Verifier(*parts).run(agent="urn:rayhook:staff:olga").intact
    with parts[1]() as session:
        assert not is_alarmed(session)
        assert last_verification(session, parts[2]).by == "urn:rayhook:staff:olga"
