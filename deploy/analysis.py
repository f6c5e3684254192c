"""What a process needs to have studies analysed: by itself, or by workers elsewhere."""

import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import redis
import structlog
from sqlmodel import Session

from rayhook.audit.record import AuditLog
from rayhook.auth.backend import BackendTokens
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHRRegistry
from rayhook.deploy.database import Database
from rayhook.deploy.health import Check
from rayhook.deploy.health_checks import engine_check, redis_check, workers_check
from rayhook.deploy.received_images import received_images
from rayhook.deploy.redis import connect
from rayhook.deploy.redis_doorbell import RedisDoorbell
from rayhook.deploy.settings import Settings
from rayhook.deploy.stage_metrics import StageMetrics
from rayhook.fhir.errors import RayhookError
from rayhook.fhir.transport import Transport
from rayhook.inference.analysis import Analyser
from rayhook.inference.decode import Decoder
from rayhook.inference.device import PROCESSOR, choose_devices
from rayhook.inference.engine import Engine, export_all
from rayhook.inference.engine_pool import EnginePool
from rayhook.inference.lease import Leases
from rayhook.inference.pipeline import Pipeline
from rayhook.inference.queue import AnalysisQueue
from rayhook.inference.registry import ModelPackage
from rayhook.inference.workers import Worker, forget_worker, living_workers, note_worker

log = structlog.get_logger(__name__)

_STOP_WAIT_S = 30.0  # for the jobs in hand; what takes longer is handed back


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What an analysis reaches beyond this process, made by whoever runs it."""

    settings: Settings
    database: Database
    keyring: Keyring
    registry: EHRRegistry
    audit: AuditLog
    transport: Transport
    tokens: BackendTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """Where workers elsewhere do the work, there are no engines here, and nothing to start.

    models: those that are run, here or there.
    """

    outside: Outside
    works_here: bool
    models: tuple[ModelPackage, ...]
    engines: dict[str, Engine | EnginePool]
    queue: AnalysisQueue
    pipeline: Pipeline
    leases: Leases
    worker: Worker
    redis: redis.Redis | None
    stages: StageMetrics

    def living(self) -> int:
        """Return how many workers there are, this process among them if it is one."""
        with self.outside.database.reading() as session:
            return len(living_workers(session, now=time.time()))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Work on jobs until the end, where that is done here; what is in hand then is finished or handed back."""
        if not self.works_here:
            try:
                yield
            finally:
                self.queue.close()
            return
        self._note(is_stopping=False)
        self.leases.start()
        self.queue.start(self.pipeline.run_next, self.outside.settings.pipeline_threads)
        try:
            yield
        finally:
            self._note(is_stopping=True)
            wait_s = min(_STOP_WAIT_S, self.outside.settings.shutdown_s / 2)
            self.queue.close(wait_s, self.leases.hand_back)
            self.leases.close()
            self._forget()

    def _note(self, *, is_stopping: bool) -> None:
        try:
            with self.outside.database.unsynced() as session:
                note_worker(session, self.worker, now=time.time(), is_stopping=is_stopping)
                session.commit()
        except RayhookError as error:
            log.warning("worker_not_noted", code=error.code)

    def _forget(self) -> None:
        try:
            with self.outside.database.unsynced() as session:
                forget_worker(session, self.worker.id)
                session.commit()
        except RayhookError as error:
            log.warning("worker_not_forgotten", code=error.code)


@contextmanager
def analysis_parts(
    outside: Outside,
    running: tuple[ModelPackage, ...],
    *,
    works_here: bool,
    decoder: Decoder | None = None,
    stages: StageMetrics | None = None,
) -> Iterator[Analysis]:
    """Make the parts, and close them.

    decoder: one that may be shared where no images are decoded for analyses.  stages: who is told their times.
    """
    settings, database = outside.settings, outside.database
    stages = stages or StageMetrics()
    with ExitStack() as stack:
        devices = choose_devices(settings.engine_device.value) if works_here else ()
        engines = _engines(stack, settings, running, devices)
        if works_here or decoder is None:
            decoder = stack.enter_context(Decoder(children=settings.decoder_processes))
        worker = _this_process(settings, devices)
        client = None
        doorbell = None
        if settings.redis_url is not None:
            client = connect(settings.redis_url, ca_bundle=settings.ca_bundle)
            doorbell = RedisDoorbell(client, outside.keyring, namespace=settings.redis_namespace)
        queue = AnalysisQueue(
            database.reading, doorbell=doorbell, queues=settings.worker_queues, works_here=works_here
        )
        leases = Leases(
            database.unsynced, lease_s=settings.job_lease_s, present=lambda session: _present(session, worker)
        )
        yield Analysis(
            outside=outside,
            works_here=works_here,
            models=running,
            engines=engines,
            queue=queue,
            pipeline=Pipeline(
                sessions=database.sessions,
                registry=outside.registry,
                transport=outside.transport,
                keyring=outside.keyring,
                audit=outside.audit,
                analyser=Analyser(running, engines, decoder),
                organization=settings.organization,
                backend=outside.tokens,
                lease_s=settings.job_lease_s,
                leases=leases,
                queues=settings.worker_queues,
                worker_id=worker.id,
                received=received_images(settings, database, outside.keyring),
                ended=queue.ended,
                note_times=stages.note,
            ),
            leases=leases,
            worker=worker,
            redis=client,
            stages=stages,
        )


def analysis_checks(analysis: Analysis) -> tuple[Check, ...]:
    """Return what an analysis needs beside the storage: engines here or workers elsewhere, and the way to them."""
    work = engine_check(analysis.engines.values()) if analysis.works_here else workers_check(analysis.living)
    return (work,) if analysis.redis is None else (work, redis_check(partial(_ping, analysis.redis)))


def _ping(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def _engines(
    stack: ExitStack, settings: Settings, running: tuple[ModelPackage, ...], devices: tuple[str, ...]
) -> dict[str, Engine | EnginePool]:
    if PROCESSOR in devices:
        export_all(running, settings.engine_cache)
    engines: dict[str, Engine | EnginePool] = {}
    for package in running if devices else ():
        made = []
        for device in devices:
            cache, threads = settings.engine_cache, settings.engine_threads
            made.append(Engine.start(package, cache, threads=threads, device=device))
            stack.callback(made[-1].close)
        engines[package.manifest.id] = made[0] if len(made) == 1 else EnginePool(made)
    return engines


def _this_process(settings: Settings, devices: tuple[str, ...]) -> Worker:
    now = time.time()
    return Worker(
        id=uuid.uuid4().hex,
        name=f"{socket.gethostname()}:{os.getpid()}"[:128],
        queues=settings.worker_queues,
        threads=settings.pipeline_threads,
        device=", ".join(devices)[:64],
        version=version("rayhook"),
        started_at=now,
        seen_at=now,
    )


def _present(session: Session, worker: Worker) -> None:
    note_worker(session, worker, now=time.time())
