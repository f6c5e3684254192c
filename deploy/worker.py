"""A worker process: it analyses what waits in its queues, and brings results to where they belong."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import Final

import structlog

from rayhook.audit.alarm import DecryptionAlarm
from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry
from rayhook.auth.registry import EHRRegistry, load_registry
from rayhook.deploy.analysis import Analysis, analysis_checks, analysis_parts
from rayhook.deploy.decoded_types import make_ready
from rayhook.deploy.health import Check, Health
from rayhook.deploy.health_checks import storage_checks
from rayhook.deploy.key_use import note_until
from rayhook.deploy.kms import await_kms
from rayhook.deploy.late_deliveries import deliver_until
from rayhook.deploy.outside import open_outside
from rayhook.deploy.production import require_secure
from rayhook.deploy.settings import Settings
from rayhook.deploy.stage_metrics import StageMetrics
from rayhook.deploy.threads import in_threads
from rayhook.deploy.worker_health import answering
from rayhook.inference.registry import ModelPackage, load_models, select_models

log = structlog.get_logger(__name__)

_ENDED_HARD: Final = 70  # EX_SOFTWARE of sysexits.h


def run_worker(settings: Settings) -> None:
    """Work until told to stop; then finish what is in hand, or hand it back to the others.

    Raises RayhookError, naming what is at fault, where it cannot begin.
    """
    make_ready()
    require_secure(settings)
    registry = load_registry(settings.ehr_registry, development=settings.development)
    running = select_models(load_models(), settings.models)
    health = Health()
    stopping = threading.Event()
    stages = StageMetrics()
    with (
        _told_to_stop(stopping, health, settings.shutdown_s),
        answering(settings, health, (stages.registry,)),
        ExitStack() as stack,
    ):
        await_kms(settings, health, stopping)
        analysis = stack.enter_context(_parts(settings, registry, running, stages))
        stack.enter_context(_working(analysis))
        health.begin((*_storage(analysis), *analysis_checks(analysis)))
        log.info("worker_started", queues=[queue.value for queue in settings.worker_queues])
        stopping.wait()
        log.info("worker_stopping", in_hand=analysis.leases.in_hand)
    log.info("worker_stopped")


@contextmanager
def _parts(
    settings: Settings, registry: EHRRegistry, running: tuple[ModelPackage, ...], stages: StageMetrics
) -> Iterator[Analysis]:
    with ExitStack() as stack:
        outside, erasures = stack.enter_context(
            open_outside(settings, registry, application="rayhook worker")
        )
        stack.enter_context(erasures.running())
        yield stack.enter_context(analysis_parts(outside, running, works_here=True, stages=stages))


@contextmanager
def _working(analysis: Analysis) -> Iterator[None]:
    outside = analysis.outside
    alarm = DecryptionAlarm(outside.keyring, outside.database.sessions, outside.audit)
    _record(analysis, AuditKind.APPLICATION_STARTED)
    beside = in_threads(
        {
            "key-uses": partial(note_until, outside.database.sessions, outside.keyring),
            "late-deliveries": partial(
                deliver_until, (analysis.pipeline.deliver_due, analysis.pipeline.store_due)
            ),
        }
    )
    with alarm.listening(), beside, analysis.running():
        yield
    _record(analysis, AuditKind.APPLICATION_STOPPED)


def _record(analysis: Analysis, kind: AuditKind) -> None:
    entry = AuditEntry(kind, agent="rayhook", detail={"process": "worker", "worker": analysis.worker.id})
    with analysis.outside.database.sessions() as session:
        analysis.outside.audit.record(session, entry)
        session.commit()


def _storage(analysis: Analysis) -> tuple[Check, ...]:
    outside = analysis.outside
    return tuple(
        storage_checks(
            outside.database,
            outside.keyring,
            data_dir=outside.settings.data_dir,
            keyring_path=outside.settings.keyring_path,
            anchor=outside.settings.anchor_path,
        )
    )


@contextmanager
def _told_to_stop(stopping: threading.Event, health: Health, shutdown_s: float) -> Iterator[None]:
    """The first signal to stop lets the jobs in hand end; a second one ends the process at once, as does `shutdown_s`."""

    def stop(number: int, _frame: FrameType | None) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        health.stop()
        stopping.set()
        overdue = threading.Timer(shutdown_s, os._exit, (_ENDED_HARD,))
        overdue.daemon = True
        overdue.start()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
