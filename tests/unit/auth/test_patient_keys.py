"""Keys of patients: made, used, rolled back, destroyed."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import update

from rayhook.auth.data_key import MARK, OpenedKeys, data_key_of
from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import (
    PATIENT_KEY,
    Subject,
    audited,
    clinical,
    destroy_keys,
    installation,
    patient_index,
    ready_installation_key,
    retire_keys,
    seal,
    sealing_keys,
    unseal,
)
from rayhook.deploy.database import Database, create_database, migrate
from rayhook.fhir.errors import Erased, RayhookError

PLACE = {"table": "analysis_result", "column": "result", "row": "r1"}
ANNA = clinical("a" * 64)
BELA = clinical("b" * 64)


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/rayhook.db"
    migrate(url)
    return url


@pytest.fixture
def database(url: str):
    database = create_database(url)
    yield database
    database.close()


def sealed_for(database: Database, keyring: Keyring, subject: Subject, plaintext: bytes = b"mass") -> bytes:
    with database.sessions() as session:
        sealed = seal(session, keyring, subject, plaintext, **PLACE)
        session.commit()
    return sealed


def opened(database: Database, keyring: Keyring, sealed: bytes, **place: str) -> bytes:
    with database.reading() as session:
        return unseal(session, keyring, sealed, **(PLACE | place))


def erase(database: Database, subject: Subject) -> list[str]:
    with database.sessions() as session:
        ids = destroy_keys(session, subject, erasure_id="e1", now=1.0)
        session.commit()
    return ids


def keys(database: Database) -> int:
    with database.reading() as session:
        return len(session.execute(PATIENT_KEY.select()).all())


def test_opens_what_it_sealed(database, keyring):
    assert opened(database, keyring, sealed_for(database, keyring, ANNA)) == b"mass"


def test_what_the_keyring_sealed_before_stays_readable(database, keyring):
    assert opened(database, keyring, keyring.seal(b"mass", **PLACE)) == b"mass"


def test_the_mark_is_none_of_the_keyrings(database, keyring):
    assert data_key_of(keyring.seal(b"mass", **PLACE)) is None
    assert sealed_for(database, keyring, ANNA).startswith(MARK)


def test_a_patient_has_one_key(database, keyring):
    first, second = (sealed_for(database, keyring, ANNA) for _ in range(2))
    assert data_key_of(first) == data_key_of(second)


def test_patients_have_different_keys(database, keyring):
    ours, theirs = sealed_for(database, keyring, ANNA), sealed_for(database, keyring, BELA)
    assert data_key_of(ours) != data_key_of(theirs)


def test_clinical_and_audit_keys_differ(database, keyring):
    ours, theirs = sealed_for(database, keyring, ANNA), sealed_for(database, keyring, audited(ANNA.index))
    assert data_key_of(ours) != data_key_of(theirs)


def test_equal_ids_of_two_ehrs_are_two_patients(keyring):
    assert patient_index(keyring, "north", "1") != patient_index(keyring, "south", "1")


@pytest.mark.parametrize("place", [{"table": "x"}, {"column": "x"}, {"row": "x"}])
def test_nothing_opens_in_another_place(database, keyring, place):
    with pytest.raises(RayhookError) as refused:
        opened(database, keyring, sealed_for(database, keyring, ANNA), **place)
    assert refused.value.code == "decryption_failed"


def test_nothing_opens_under_another_patients_key(database, keyring):
    ours, theirs = sealed_for(database, keyring, ANNA), sealed_for(database, keyring, BELA)
    with pytest.raises(RayhookError) as refused:
        opened(database, keyring, theirs[:17] + ours[17:])
    assert refused.value.code == "decryption_failed"


def test_a_key_moved_to_another_row_does_not_open(database, url):
    keyring, again = (Keyring.load_or_create(Path(url[10:]).parent / "keyring.json") for _ in range(2))
    ours, theirs = sealed_for(database, keyring, ANNA), sealed_for(database, keyring, BELA)
    with database.sessions() as session:
        wrapped = (
            session.execute(PATIENT_KEY.select().where(PATIENT_KEY.c.id == data_key_of(theirs))).one().wrapped
        )
        change = update(PATIENT_KEY).where(PATIENT_KEY.c.id == data_key_of(ours))
        session.execute(change.values(wrapped=wrapped))
        session.commit()
    with pytest.raises(RayhookError) as refused:
        opened(database, again, ours)
    assert refused.value.code == "decryption_failed"


def test_a_refusal_is_told(database, keyring):
    told = []
    sealed = sealed_for(database, keyring, ANNA)
    keyring.told_of_refusals = lambda *place: told.append(place)
    try:
        with pytest.raises(RayhookError):
            opened(database, keyring, sealed[:-1] + bytes([sealed[-1] ^ 1]))
    finally:
        keyring.told_of_refusals = None
    assert told == [("analysis_result", "result", "r1")]


def test_an_unknown_key_is_refused(database, keyring):
    sealed = sealed_for(database, keyring, ANNA)
    with pytest.raises(RayhookError) as refused:
        opened(database, keyring, MARK + bytes(16) + sealed[17:])
    assert refused.value.code == "decryption_failed"


def test_a_key_of_a_transaction_that_was_rolled_back_is_nobodys(database, keyring):
    with database.sessions() as session:
        lost = seal(session, keyring, ANNA, b"mass", **PLACE)
        session.rollback()
        kept = seal(session, keyring, ANNA, b"mass", **PLACE)
        session.commit()
    assert data_key_of(lost) != data_key_of(kept)
    assert opened(database, keyring, kept) == b"mass"


def test_a_key_of_a_savepoint_that_was_rolled_back_is_nobodys(database, keyring):
    with database.sessions() as session:
        nested = session.begin_nested()
        lost = seal(session, keyring, ANNA, b"mass", **PLACE)
        nested.rollback()
        kept = seal(session, keyring, ANNA, b"mass", **PLACE)
        session.commit()
    assert data_key_of(lost) != data_key_of(kept)
    assert opened(database, keyring, kept) == b"mass"


def test_one_transaction_asks_once(database, keyring):
    with database.sessions() as session:
        one, two = (sealing_keys(session, keyring, [ANNA])[0] for _ in range(2))
    assert one is two


def test_a_destroyed_key_opens_nothing(database, keyring):
    sealed = sealed_for(database, keyring, ANNA)
    keyring.opened_keys.forget(erase(database, ANNA))
    with pytest.raises(Erased):
        opened(database, keyring, sealed)


def test_another_patient_is_untouched(database, keyring):
    sealed_for(database, keyring, ANNA)
    theirs = sealed_for(database, keyring, BELA)
    erase(database, ANNA)
    assert opened(database, keyring, theirs) == b"mass"


def test_the_row_stays_without_the_key(database, keyring):
    sealed_for(database, keyring, ANNA)
    [id_] = erase(database, ANNA)
    with database.reading() as session:
        row = session.execute(PATIENT_KEY.select()).one()
    assert (row.id, row.wrapped, row.destroyed_at, row.erasure_id) == (id_, None, 1.0, "e1")


def test_a_patient_who_comes_again_gets_a_new_key(database, keyring):
    old = sealed_for(database, keyring, ANNA)
    erase(database, ANNA)
    new = sealed_for(database, keyring, ANNA)
    assert data_key_of(old) != data_key_of(new)
    assert opened(database, keyring, new) == b"mass"


def test_nothing_is_sealed_for_rows_that_were_erased(database, keyring):
    with database.sessions() as session, pytest.raises(Erased):
        seal(session, keyring, clinical("erased:1"), b"mass", **PLACE)


def test_an_erasure_that_was_rolled_back_takes_nothing(database, keyring):
    sealed = sealed_for(database, keyring, ANNA)
    with database.sessions() as session:
        destroy_keys(session, ANNA, erasure_id="e1", now=1.0)
        session.rollback()
    assert opened(database, keyring, sealed) == b"mass"


def test_a_retired_key_opens_and_seals_no_more(database, keyring):
    old = sealed_for(database, keyring, ANNA)
    with database.sessions() as session:
        retire_keys(session, ANNA, erasure_id="e1", now=1.0, due_at=2.0)
        session.commit()
    assert data_key_of(sealed_for(database, keyring, ANNA)) != data_key_of(old)
    assert opened(database, keyring, old) == b"mass"


def test_a_key_is_not_trusted_for_ever():
    now = [0.0]
    kept = OpenedKeys(clock=lambda: now[0])
    from rayhook.auth.data_key import DataKey

    key, _ = DataKey.new()
    kept.keep(key)
    assert kept.trusted(key.id) is key
    now[0] = 5.1
    assert kept.trusted(key.id) is None


def test_a_process_that_was_not_told_reads_no_longer_than_it_trusts(database, url):
    now = [0.0]
    keyring = Keyring.load_or_create(Path(url[10:]).parent / "keyring.json")
    keyring.opened_keys = OpenedKeys(clock=lambda: now[0])
    sealed = sealed_for(database, keyring, ANNA)
    assert opened(database, keyring, sealed) == b"mass"
    erase(database, ANNA)
    now[0] = 5.1
    with pytest.raises(Erased):
        opened(database, keyring, sealed)


def test_threads_make_one_key(database, keyring):
    sealed = []
    barrier = threading.Barrier(8)

    def work():
        barrier.wait()
        sealed.append(sealed_for(database, keyring, ANNA))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keys(database) == 1
    assert {opened(database, keyring, one) for one in sealed} == {b"mass"}


def test_the_installation_has_a_key_of_each_month(database, keyring):
    with database.sessions() as session:
        ready_installation_key(session, keyring)
    sealed = sealed_for(database, keyring, installation())
    assert (keys(database), opened(database, keyring, sealed)) == (1, b"mass")


def test_what_one_database_knows_of_the_installation_is_not_anothers(database, keyring, tmp_path):
    with database.sessions() as session:
        ready_installation_key(session, keyring)
    url = f"sqlite:///{tmp_path}/other.db"
    migrate(url)
    other = create_database(url)
    sealed = sealed_for(other, keyring, installation())
    assert opened(other, keyring, sealed) == b"mass"
    other.close()


def test_the_keyset_is_nowhere_in_the_database(database, keyring, url):
    sealed_for(database, keyring, ANNA, b"CANARY^MASS")
    files = list(Path(url[10:]).parent.glob("rayhook.db*"))
    assert all(b"CANARY" not in path.read_bytes() for path in files)
    assert all(b"AesGcmKey" not in path.read_bytes() for path in files)
