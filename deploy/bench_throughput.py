"""Studies through the whole pipeline: real workers, a real database, and the demo's EHR and PACS at the other end."""

import json
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psutil
from sqlalchemy import inspect, text

from rayhook.auth.keys import Keyring
from rayhook.deploy.bench_processes import (
    Use,
    await_health,
    await_word,
    database_processes,
    process,
    use_of,
)
from rayhook.deploy.bench_report import Phase
from rayhook.deploy.database import Database, create_database, ensure_schema
from rayhook.deploy.demo.catalogue import DemoStudy, many_heads
from rayhook.deploy.demo.ehr import EHR_ID
from rayhook.deploy.demo.ehr_seed import imaging_study_id
from rayhook.deploy.demo.run import DemoAddresses
from rayhook.deploy.redis import connect
from rayhook.deploy.redis_doorbell import RedisDoorbell
from rayhook.deploy.settings import load_model_settings
from rayhook.fhir.errors import Conflict, ServiceUnavailable
from rayhook.inference.job_table import WorkerQueue
from rayhook.inference.jobs import enqueue, job_key
from rayhook.inference.registry import identify, load_models, select_models
from rayhook.inference.stages import Stage
from rayhook.inference.study import ModelIdentity, StudyReference

_LOOK_EVERY_S: Final = 0.5
_WARM_UP: Final = 2
_TIMED: Final = "study_timed"
_NAMESPACE: Final = "rayhook-bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """workers: how many at once, side by side.  rate: studies a second; None for all at once.

    stalled_s: without a study that ends, the bench gives up.
    """

    studies: int
    growth: tuple[int, ...]
    workers: tuple[int, ...]
    repeats: int
    images: int
    rate: float | None
    stalled_s: float

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Yield repeat, studies and workers: those to be compared are next to each other."""
        for repeat in range(1, self.repeats + 1):
            for factor in self.growth:
                for workers in self.workers:
                    yield repeat, self.studies * factor, workers

    @property
    def total(self) -> int:
        return sum(studies + _WARM_UP * workers for _, studies, workers in self.runs())


@dataclass(slots=True)
class Bench:
    """An installation of the bench's own, with its EHR and PACS up; `taken` is how many studies were used."""

    plan: Plan
    folder: Path
    database: Database
    keyring: Keyring
    addresses: DemoAddresses
    environment: Mapping[str, str]
    studies: Sequence[DemoStudy]
    models: tuple[ModelIdentity, ...]
    ring: Callable[[str], None]
    processes: dict[str, list[int]] = field(default_factory=dict)
    taken: int = 0

    def measure(self, repeat: int, studies: int, workers: int) -> Phase:
        """Raises ServiceUnavailable where studies stop ending."""
        with self._workers(f"{repeat}-{studies}-{workers}", workers) as logs:
            self._done(_WARM_UP * workers, logs, None)
            grown = self._sizes()
            load, before = os.getloadavg()[0], use_of(self.processes)
            lines, began, most = self._done(studies, logs, self.plan.rate)
            after = use_of(self.processes)
            sizes = self._sizes()
        times: dict[Stage, list[float]] = {stage: [] for stage in Stage}
        for line in lines:
            for stage in Stage:
                if (seconds := line.get(f"{stage.value}_s")) is not None:
                    times[stage].append(seconds)
        return Phase(
            studies=studies,
            workers=workers,
            repeat=repeat,
            done=len(lines),
            elapsed_s=max(map(_ended_at, lines)) - began,
            waits_s=tuple(times[Stage.QUEUE]),
            stages_s={stage: tuple(seconds) for stage, seconds in times.items()},
            cpu_s=after.since(before),
            resident_bytes=most,
            table_rows={table: rows - grown[table][0] for table, (rows, _) in sizes.items()},
            table_bytes={table: size - grown[table][1] for table, (_, size) in sizes.items()},
            load=round(load, 2),
        )

    @contextmanager
    def _workers(self, name: str, count: int) -> Iterator[list[Path]]:
        logs = [self.folder / f"worker-{name}-{number}.log" for number in range(count)]
        with ExitStack() as stack:
            started = []
            for log in logs:
                port = free_port()
                own = {**self.environment, "RAYHOOK_WORKER_HEALTH_PORT": str(port)}
                arguments = ["-m", "rayhook.deploy.cli", "worker"]
                started.append((stack.enter_context(process(arguments, log, own)), port))
            for worker, port in started:
                await_health(worker, port, "a worker")
            self.processes["worker"] = [worker.pid for worker, _ in started]
            yield logs

    def _done(
        self, count: int, logs: Sequence[Path], rate: float | None
    ) -> tuple[list[dict[str, Any]], float, dict[str, int]]:
        """Queue the next studies and wait for them; return their times, when it began, and the most memory seen."""
        known = len(_timed(logs))
        chosen = self.studies[self.taken : self.taken + count]
        self.taken += count
        began = time.time()
        self._queue(chosen, rate)
        most: dict[str, int] = {}
        done, moved_at = 0, time.monotonic()
        while done < count:
            time.sleep(_LOOK_EVERY_S)
            most = _higher(most, use_of(self.processes))
            seen = len(_timed(logs)) - known
            if seen > done:
                done, moved_at = seen, time.monotonic()
            if time.monotonic() - moved_at > self.plan.stalled_s:
                raise ServiceUnavailable(
                    f"{count - done} of {count} studies did not end; the logs are in {self.folder}",
                    code="bench_stalled",
                )
        self._require_done(chosen)
        return _timed(logs)[known:], began, most

    def _queue(self, studies: Sequence[DemoStudy], rate: float | None) -> None:
        for study in studies:
            reference = self._reference(study)
            with self.database.sessions() as session:
                job, _ = enqueue(
                    session,
                    self.keyring,
                    reference,
                    None,
                    key=job_key(reference, self.models),
                    request_id="bench",
                )
                session.commit()
            self.ring(job.id)
            if rate is not None:
                time.sleep(random.expovariate(rate))

    def _reference(self, study: DemoStudy) -> StudyReference:
        return StudyReference(
            ehr_id=EHR_ID,
            fhir_base_url=f"{self.addresses.ehr}/fhir",
            patient_id=study.patient_id,
            imaging_study_id=imaging_study_id(study),
            study_instance_uid=study.study_instance_uid,
            dicomweb_url=f"{self.addresses.pacs}/dicom-web",
            token_required=True,
            started=study.started,
            modalities=(study.modality,),
            description=study.description,
        )

    def _require_done(self, studies: Sequence[DemoStudy]) -> None:
        """A study that was refused or failed costs less than one that was analysed: its figures would flatter."""
        query = "SELECT state, error_code, count(*) FROM analysis_job GROUP BY state, error_code"
        with self.database.reading() as session:
            counts = session.execute(text(query)).all()
        other = {f"{state} {code or ''}".strip(): count for state, code, count in counts if state != "done"}
        if other:
            raise ServiceUnavailable(
                f"not every one of {len(studies)} studies was analysed: {other}; the logs are in {self.folder}",
                code="bench_not_done",
            )

    def _sizes(self) -> dict[str, tuple[int, int]]:
        """Return rows and bytes of each table, its indexes included; SQLite knows its bytes as a whole only."""
        with self.database.reading() as session:
            tables = sorted(inspect(session.connection()).get_table_names())
            rows = {
                table: int(session.execute(text(f'SELECT count(*) FROM "{table}"')).scalar_one())  # noqa: S608
                for table in tables
            }
            if self.database.engine.dialect.name == "sqlite":
                pages = session.execute(
                    text("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
                )
                return {table: (count, 0) for table, count in rows.items()} | {"all": (0, pages.scalar_one())}
            sizes = text("SELECT pg_total_relation_size(CAST(:table AS regclass))")
            return {
                table: (count, int(session.execute(sizes, {"table": f'"{table}"'}).scalar_one()))
                for table, count in rows.items()
            }


def _timed(logs: Sequence[Path]) -> list[dict[str, Any]]:
    lines = [
        line for log in logs for line in log.read_text("utf-8", "replace").splitlines() if _TIMED in line
    ]
    return [one for line in lines if line.endswith("}") and (one := json.loads(line))["event"] == _TIMED]


def _ended_at(line: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def _higher(most: Mapping[str, int], use: Use) -> dict[str, int]:
    kinds = {*most, *use.resident_bytes}
    return {kind: max(most.get(kind, 0), use.resident_bytes.get(kind, 0)) for kind in kinds}


def free_port(count: int = 1) -> int:
    """Return the first of `count` ports in a row that nobody listens on."""
    for _ in range(100):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise ServiceUnavailable("no ports are free", code="port_unavailable")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@contextmanager
def bench(plan: Plan, folder: Path, *, database_url: str | None, redis_url: str | None) -> Iterator[Bench]:
    """Set up everything but the workers.

    Raises Conflict for a database that was used before: a bench fills it, and counts what is in it.
    """
    url = database_url or f"sqlite:///{(folder / 'rayhook.sqlite3').resolve()}"
    first = free_port(3)
    addresses = DemoAddresses.from_port(first)
    environment = _environment(folder, url, redis_url, addresses, first)
    with ExitStack() as stack:
        keyring = Keyring.load_or_create(folder / "keyring.json")
        ensure_schema(url)
        database = create_database(url, application="rayhook bench")
        stack.callback(database.close)
        _require_unused(database)
        log = folder / "peers.log"
        arguments = [
            "-m",
            "rayhook.deploy.demo.peers",
            str(folder),
            str(first),
            str(plan.total),
            str(plan.images),
        ]
        peers = stack.enter_context(process(arguments, log, {}))
        await_word(peers, log, "the EHR and PACS")
        arguments = ["-m", "rayhook.deploy.cli", "serve"]
        # Where no Redis wakes workers it has to work itself: on a queue that nothing waits in.
        own = environment if redis_url is not None else {**environment, "RAYHOOK_WORKER_QUEUES": "gpu"}
        service = stack.enter_context(process(arguments, folder / "serve.log", own))
        await_health(service, first, "the service")
        processes = {"service": [service.pid], "EHR and PACS": [peers.pid]}
        if found := database_processes(database):
            processes["database"] = found
        ring, redis_process = _doorbell(stack, redis_url, keyring)
        if redis_process is not None:
            processes["Redis"] = [redis_process]
        yield Bench(
            plan=plan,
            folder=folder,
            database=database,
            keyring=keyring,
            addresses=addresses,
            environment=environment,
            studies=many_heads(folder / "pacs", plan.total, images=plan.images).studies,
            models=identify(select_models(load_models(), load_model_settings().models)),
            ring=ring,
            processes=processes,
        )


def _environment(
    folder: Path, url: str, redis_url: str | None, addresses: DemoAddresses, port: int
) -> dict[str, str]:
    given = {
        "DATABASE_URL": url,
        "RAYHOOK_DATA_DIR": str(folder),
        "RAYHOOK_EHR_REGISTRY": str(folder / "ehrs.toml"),
        "RAYHOOK_ENVIRONMENT": "development",
        "RAYHOOK_LOG_FORMAT": "json",
        "RAYHOOK_PORT": str(port),
        "RAYHOOK_PUBLIC_BASE_URL": addresses.rayhook,
    }
    if redis_url is None:
        return given
    return given | {
        "RAYHOOK_REDIS_URL": redis_url,
        "RAYHOOK_REDIS_NAMESPACE": _NAMESPACE,
        "RAYHOOK_WORKER": "separate",
    }


def _doorbell(
    stack: ExitStack, redis_url: str | None, keyring: Keyring
) -> tuple[Callable[[str], None], int | None]:
    """Without Redis nobody is woken: workers look every two seconds."""
    if redis_url is None:
        return (lambda _: None), None
    client = connect(redis_url)
    stack.callback(client.close)
    doorbell = RedisDoorbell(client, keyring, namespace=_NAMESPACE)
    stack.callback(doorbell.close)
    number = int(client.info("server")["process_id"])
    is_here = psutil.pid_exists(number) and "redis" in psutil.Process(number).name()
    return (lambda job_id: doorbell.ring(job_id, WorkerQueue.CPU)), number if is_here else None


def _require_unused(database: Database) -> None:
    with database.reading() as session:
        if session.execute(text("SELECT count(*) FROM audit_event")).scalar():
            raise Conflict("the database of a bench must be empty", code="bench_database_used")
