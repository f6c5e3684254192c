"""What all processes of an installation share, and at what rate it is full: `python -m tests.benchmarks.bench_limits`.

Audit events go into one chain, whoever records them: one transaction at a time. Jobs are claimed from one table.
Both are done by 1, 2 and 4 processes, each for `--seconds`, on a real PostgreSQL that commits to the disk.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from rayhook.audit.record import AuditLog
from rayhook.auth.keys import Keyring
from rayhook.deploy.bench_report import machine
from rayhook.deploy.database import Database, create_database, migrate
from rayhook.inference.claims import claim_next
from rayhook.inference.job_table import WorkerQueue
from rayhook.inference.jobs import enqueue
from rayhook.inference.study import StudyReference
from tests.benchmarks.bench_audit import entry
from tests.storage import wheel

PROCESSES = (1, 2, 4)
TOGETHER = 5  # events of one transaction, as where a study ends
JOBS = 3000


def opened(url: str, folder: str) -> tuple[Database, Keyring]:
    return create_database(url), Keyring.load_or_create(Path(folder) / "keyring.json")


def append(url: str, folder: str, seconds: float, together: int) -> tuple[int, float]:
    """Return how many events were recorded, `together` in each transaction, and the CPU seconds of it here."""

    database, keyring = opened(url, folder)
    audit, chance, count = AuditLog(keyring), random.Random(os.getpid()), 0
    until, cpu = time.monotonic() + seconds, time.process_time()
    while time.monotonic() < until:
        with database.sessions() as session:
            for _ in range(together):
                audit.record(session, entry(count, chance))
                count += 1
            session.commit()
    database.close()
    return count, time.process_time() - cpu


def take(url: str, folder: str, seconds: float, _: int) -> tuple[int, float]:
    """Return how many jobs were claimed, and the CPU seconds of it here."""
    database, keyring = opened(url, folder)
    count = 0
    until, cpu = time.monotonic() + seconds, time.process_time()
    while time.monotonic() < until:
        with database.sessions() as session:
            found = claim_next(session, keyring, queues=tuple(WorkerQueue), lease_s=3600.0)
            session.commit()
        if found.job is None:
            raise RuntimeError("no job was left: the rate would be too low")
        count += 1
    database.close()
    return count, time.process_time() - cpu


def queue(database: Database, keyring: Keyring, count: int, first: int) -> None:
    for number in range(first, first + count):
        reference = StudyReference(
            ehr_id="north",
            fhir_base_url="https://north.example/fhir",
            patient_id=f"patient-{number % 500}",
            imaging_study_id=f"study-{number}",
            study_instance_uid=f"1.2.826.{number}",
            dicomweb_url="https://pacs.example/dicom-web",
            token_required=True,
        )
        with database.unsynced() as session:
            enqueue(session, keyring, reference, None, key=f"{number:064x}", request_id="bench")
            session.commit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    told: dict[str, object] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder, wheel(Path(folder)) as postgresql:
        postgresql.server.psql("CREATE DATABASE limits")
        url = str(postgresql.server.get_uri("limits"))
        migrate(url)
        database, keyring = opened(url, folder)
        for name, act, together in (
            ("events", append, 1),
            (f"events, {TOGETHER} together", append, TOGETHER),
            ("claims", take, 1),
        ):
            for processes in PROCESSES:
                if act is take:
                    queue(database, keyring, JOBS, JOBS * processes)
                with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                    list(pool.map(abs, range(processes)))  # started before the time begins
                    work = [
                        pool.submit(act, url, folder, arguments.seconds, together) for _ in range(processes)
                    ]
                    done = [one.result() for one in work]
                count, cpu = (sum(each) for each in zip(*done, strict=True))
                told[f"{name}, {processes} processes"] = {
                    "a_second": round(count / arguments.seconds, 1),
                    "client_cpu_ms": round(cpu / count * 1000, 3),
                    "load": round(os.getloadavg()[0], 1),
                }
        database.close()
    sys.stdout.write(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
