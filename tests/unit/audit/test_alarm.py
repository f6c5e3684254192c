import pytest
from sqlalchemy import text

from rayhook.audit.alarm import DecryptionAlarm
from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.review import recent
from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import RayhookError


@pytest.fixture
def own(tmp_path):
    return Keyring.load_or_create(tmp_path / "own.json")


def test_value_that_does_not_open_is_told(database, audit, own):
    sealed = own.seal(b"x", table="t", column="c", row="1")
    with DecryptionAlarm(own, database.sessions, audit).listening(), pytest.raises(RayhookError):
        own.open(sealed, table="t", column="c", row="2")
    with database.reading() as session:
        [event] = recent(session, audit._keyring, limit=5)
    assert (event.kind, event.outcome) == (AuditKind.AUTH_DECRYPTION_FAILED, Outcome.SERIOUS_FAILURE)
    assert event.detail == {"column": "t.c", "row": "2", "code": "decryption_failed"}


def test_it_is_noticed_inside_of_a_transaction_without_waiting(database, audit, own):
    """SQLite has one writer: were the event written at once, the transaction would wait for itself."""
    sealed = own.seal(b"x", table="t", column="c", row="1")
    with DecryptionAlarm(own, database.sessions, audit).listening(), database.sessions() as session:
        session.execute(text("INSERT INTO used_jti VALUES ('issuer', 'jti', 0)"))
        with pytest.raises(RayhookError):
            own.open(sealed, table="t", column="other", row="1")
        session.commit()
    with database.reading() as session:
        assert [event.kind for event in recent(session, audit._keyring, limit=5)] == [
            AuditKind.AUTH_DECRYPTION_FAILED
        ]


def test_what_opens_is_not_told(database, audit, own):
    with DecryptionAlarm(own, database.sessions, audit).listening():
        assert (
            own.open(own.seal(b"x", table="t", column="c", row="1"), table="t", column="c", row="1") == b"x"
        )
    with database.reading() as session:
        assert recent(session, audit._keyring, limit=5) == []
