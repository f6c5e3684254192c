"""The rotation of the encryption keys as it is done: step by step, while others read and write, killed half-way."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from sqlalchemy import func, insert, select, update
from sqlmodel import SQLModel

from rayhook.audit.record import AuditLog
from rayhook.audit.review import recent
from rayhook.auth.encryption import key_of
from rayhook.auth.key_rotation import add_encryption_key, promote_encryption_key
from rayhook.auth.key_tables import KEY_ROTATION, KeyRotationRow
from rayhook.auth.keyring_file import KeyringFile
from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import PatientKeyRow, clinical, seal, unseal
from rayhook.auth.sessions import SMARTSessionRow
from rayhook.deploy.database import create_database
from rayhook.deploy.reencryption import Reencryption, needs
from rayhook.deploy.sealed_columns import SEALED_COLUMNS
from rayhook.fhir.errors import Forbidden, RayhookError, ServiceUnavailable

SESSIONS = SQLModel.metadata.tables[str(SMARTSessionRow.__tablename__)]
COLUMN = next(one for one in SEALED_COLUMNS if str(one) == "smart_session.access_token")
MANY = 100_000


@pytest.fixture
def source(keyring_to_copy, tmp_path):
    (tmp_path / "data").mkdir(mode=0o700)
    return KeyringFile(shutil.copy(keyring_to_copy, tmp_path / "data" / "keyring.json"))


@pytest.fixture
def keyring(source):
    return Keyring.load_or_create(source.path)


@pytest.fixture
def database(both):
    made = create_database(both.owner_url)
    yield made
    made.close()


def place(row, column="access_token"):
    return {"table": "smart_session", "column": column, "row": row}


def name_of(number):
    return f"{number:064x}"


def fill(database, keyring, count):
    rows = [
        {
            "id_hash": name_of(number),
            "ehr_id": "ehr",
            "fhir_base_url": "https://ehr.example/fhir",
            "client_id": "rayhook",
            "scopes": "launch",
            "roles": "",
            "access_token": keyring.seal(b"token %d" % number, **place(name_of(number))),
            "access_token_expires_at": 1e12,
            "need_patient_banner": True,
            "expires_at": 1e12,
            "last_used_at": 1e12,
            "window_mark": "",
        }
        for number in range(count)
    ]
    with database.sessions() as session:
        session.connection().execute(insert(SESSIONS), rows)
        session.commit()


def rotate(source):
    add_encryption_key(source, distribution_s=0.0)
    return promote_encryption_key(source).key_id


def stored(database, number=0):
    with database.reading() as session:
        query = select(SESSIONS.c.access_token).where(SESSIONS.c.id_hash == name_of(number))
        return bytes(session.execute(query).scalar_one())


def work(database, keyring, **given):
    audit = AuditLog(keyring)
    given = {"batch": 10, "rows_per_s": 1e6, "columns": [COLUMN]} | given
    return Reencryption(database.sessions, keyring, audit, "officer", **given)


def needed(database, keyring, key_id):
    with database.reading() as session:
        return sum(need.under(key_id) for need in needs(session, keyring.opening_keys, [COLUMN]))


def progress(database):
    with database.reading() as session:
        return session.get(KeyRotationRow, ("smart_session", "access_token"))


def test_everything_is_sealed_anew(database, source, keyring):
    fill(database, keyring, 25)
    old, new = keyring.sealing_key, rotate(source)
    done = work(database, keyring).run()
    assert (done.rewritten, done.refused, done.left) == (25, 0, 0)
    assert needed(database, keyring, old) == 0
    assert needed(database, keyring, new) == 25


def test_every_value_is_what_it_was(database, source, keyring):
    fill(database, keyring, 25)
    rotate(source)
    work(database, keyring).run()
    opened = [keyring.open(stored(database, number), **place(name_of(number))) for number in range(25)]
    assert opened == [b"token %d" % number for number in range(25)]


def test_a_second_run_finds_nothing_to_do(database, source, keyring):
    fill(database, keyring, 25)
    rotate(source)
    work(database, keyring).run()
    assert work(database, keyring).run().rewritten == 0


def test_a_run_after_another_rotation_begins_anew(database, source, keyring):
    fill(database, keyring, 25)
    rotate(source)
    work(database, keyring).run()
    rotate(source)
    assert work(database, keyring).run().rewritten == 25


def test_a_run_that_was_cut_off_goes_on_where_it_was(database, source, keyring):
    fill(database, keyring, 25)
    rotate(source)

    def cut_off(_column, _rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(database, keyring).run(cut_off)
    assert (progress(database).position, progress(database).rewritten) == (name_of(9), 10)
    assert work(database, keyring).run().rewritten == 15
    assert progress(database).rewritten == 25


class Overtaken(Reencryption):
    """Another writer comes between what is read and what is replaced, in the same transaction: SQLite has one."""

    def _change(self, session, column, row, stored):
        made = super()._change(session, column, row, stored)
        if row == name_of(0):
            written = self.keyring.seal(b"renewed", **place(row))
            session.execute(update(SESSIONS).where(SESSIONS.c.id_hash == row).values(access_token=written))
        return made


def test_who_writes_meanwhile_wins(database, source, keyring):
    fill(database, keyring, 25)
    rotate(source)
    run = Overtaken(
        database.sessions,
        keyring,
        AuditLog(keyring),
        "officer",
        batch=25,
        rows_per_s=1e6,
        columns=[COLUMN],
    )
    done = run.run()
    assert keyring.open(stored(database), **place(name_of(0))) == b"renewed"
    assert (done.rewritten, done.left) == (24, 0)


def test_what_does_not_open_is_left_told_and_counted(database, source, keyring):
    fill(database, keyring, 25)
    old = keyring.sealing_key
    moved = stored(database, 1)
    with database.sessions() as session:
        session.execute(update(SESSIONS).where(SESSIONS.c.id_hash == name_of(0)).values(access_token=moved))
        session.commit()
    rotate(source)
    done = work(database, keyring).run()
    assert (done.rewritten, done.refused, done.left) == (24, 1, 1)
    assert stored(database) == moved
    assert needed(database, keyring, old) == 1
    with database.reading() as session:
        [event] = recent(session, keyring, limit=5)
    assert str(event.kind) == "auth:decryption:failed"
    assert event.detail["column"] == "smart_session.access_token"


class Yielding(Reencryption):
    """The database ends its first transaction, as it does with one of two that wait for each other."""

    def _rewrite(self, session, column, target, older):
        batch = super()._rewrite(session, column, target, older)
        if not self.audit.yielded:
            self.audit.yielded = True
            raise ServiceUnavailable("the database does not answer", code="database_unavailable")
        return batch


def test_a_batch_that_had_to_give_way_is_done_again(database, source, keyring, monkeypatch):
    monkeypatch.setattr("rayhook.deploy.reencryption._PAUSES_S", (0.0,))
    fill(database, keyring, 25)
    rotate(source)
    audit = AuditLog(keyring)
    audit.yielded = False
    run = Yielding(database.sessions, keyring, audit, "officer", batch=10, rows_per_s=1e6, columns=[COLUMN])
    assert run.run().rewritten == 25
    assert progress(database).rewritten == 25


@pytest.fixture
def roles(wheel_of_postgresql):
    with wheel_of_postgresql.copied() as made:
        yield made


@pytest.mark.postgresql
def test_a_role_that_may_not_is_told_whose_it_takes(roles, source, keyring):
    columns = [one for one in SEALED_COLUMNS if str(one) == "audit_hold.reason_sealed"]
    owner, service = create_database(roles.owner_url), create_database(roles.url)
    try:
        with owner.sessions() as session:
            row = {
                "id": "h",
                "subject_sealed": b"",
                "placed_at": "",
                "reason_sealed": keyring.seal(b"r", table="audit_hold", column="reason_sealed", row="h"),
            }
            session.connection().execute(insert(columns[0].table), row)
            session.commit()
        rotate(source)
        with pytest.raises(Forbidden) as refusal:
            work(service, keyring, columns=columns).run()
    finally:
        owner.close()
        service.close()
    assert refusal.value.code == "database_role"


def test_a_patients_data_key_is_wrapped_anew_and_its_values_stay(database, source, keyring):
    with database.sessions() as session:
        sealed = seal(session, keyring, clinical("0" * 64), b"value", table="t", column="c", row="1")
        session.commit()
    old = keyring.sealing_key
    rotate(source)
    columns = [one for one in SEALED_COLUMNS if one.model is PatientKeyRow]
    assert work(database, keyring, columns=columns).run().rewritten >= 1
    with database.reading() as session:
        assert sum(need.under(old) for need in needs(session, keyring.opening_keys, columns)) == 0
        other = Keyring.load_or_create(source.path)
        assert unseal(session, other, sealed, table="t", column="c", row="1") == b"value"


def test_the_audit_is_never_written_anew(database, source, keyring):
    hashed = [one for one in SEALED_COLUMNS if one.is_hashed]
    assert {one.table.name for one in hashed} == {"audit_event"}
    rotate(source)
    work(database, keyring, columns=hashed).run()
    with database.reading() as session:
        assert session.execute(select(func.count()).select_from(KEY_ROTATION)).scalar() == 0


@contextmanager
def reading(database, keyring, count):
    """Let three readers open values by chance, all the while; yield how many they opened, and what failed."""
    opened, failures, stopping = [0, 0, 0], [], threading.Event()

    def read(reader):
        chance = random.Random(reader)
        while not stopping.is_set():
            number = chance.randrange(count)
            try:
                value = keyring.open(stored(database, number), **place(name_of(number)))
                assert value == b"token %d" % number
                opened[reader] += 1
            except (AssertionError, RayhookError) as error:
                failures.append(error)
            time.sleep(0.002)

    readers = [threading.Thread(target=read, args=(reader,)) for reader in range(3)]
    for reader in readers:
        reader.start()
    try:
        yield opened, failures
    finally:
        stopping.set()
        for reader in readers:
            reader.join()


def started(source, both, *, rows_per_s=12_000):
    command = "from rayhook.deploy.cli import main; main()"
    arguments = ["keys", "encryption", "reencrypt", "--rows-per-second", str(rows_per_s)]
    environment = os.environ | {
        "DATABASE_URL": both.owner_url,
        "RAYHOOK_DATA_DIR": str(source.path.parent),
    }
    return subprocess.Popen([sys.executable, "-c", command, *arguments], env=environment)


def kill_after(process, database, rows):
    """Kill once so many values are done; return how many were."""
    while process.poll() is None:
        found = progress(database)
        if found is not None and found.rewritten >= rows:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    assert process.wait() == -signal.SIGKILL
    return progress(database).rewritten


def test_killed_twice_it_completes_and_no_reader_notices(both, database, source, keyring):
    fill(database, keyring, MANY)
    old, new = keyring.sealing_key, rotate(source)
    with reading(database, keyring, MANY) as (opened, failures):
        first = kill_after(started(source, both), database, 20_000)
        second = kill_after(started(source, both), database, first + 20_000)
        assert started(source, both, rows_per_s=1_000_000).wait() == 0
    assert failures == []
    assert min(opened) > 100
    assert first < second < MANY
    assert progress(database).rewritten == MANY
    assert needed(database, keyring, old) == 0
    assert key_of(stored(database, MANY - 1)) == new
