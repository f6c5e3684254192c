"""What a running service does beside answering: started together, and stopped in the reverse order."""

import gc
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version

import structlog

from rayhook.audit.alarm import DecryptionAlarm
from rayhook.audit.balp import Observer
from rayhook.audit.delivery import Delivery
from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry
from rayhook.deploy.audit_forwarding import Forwarding
from rayhook.deploy.audit_watch import watching
from rayhook.deploy.configuration import Configuration, record_changes
from rayhook.deploy.key_use import note_uses
from rayhook.deploy.late_deliveries import deliver_until
from rayhook.deploy.service import Service
from rayhook.deploy.threads import in_threads
from rayhook.fhir.errors import RayhookError

log = structlog.get_logger(__name__)


@contextmanager
def working(service: Service) -> Iterator[None]:
    """Run the pipeline, the audit's checkpoints and all that is done beside answering while the service is up."""
    _record(service, AuditKind.APPLICATION_STARTED)
    _record_configuration(service)
    _warm_keys(service)
    threading.Thread(target=_warm_up, args=(service,), name="warm-up", daemon=True).start()
    couriers = (service.sign_off.deliver_due, service.pipeline.deliver_due, service.pipeline.store_due)
    beside = {
        "audit-checkpoints": partial(_checkpoint_until, service),
        "late-deliveries": partial(deliver_until, couriers),
    }
    alarm = DecryptionAlarm(service.keyring, service.database.sessions, service.audit)
    watch = watching(
        service.watching, service.verifier, verify_every_s=service.settings.audit_verify_interval_s
    )
    try:
        with (
            in_threads(beside),
            _forwarding(service).running(),
            alarm.listening(),
            watch,
            service.analysis.running(),
            service.arrivals.running(),
            service.erasures.running(),
        ):
            yield
    finally:
        _record(service, AuditKind.APPLICATION_STOPPED)
        _checkpoint(service)


def _warm_keys(service: Service) -> None:
    for ehr in service.registry:
        if ehr.cds_client.jwks_url is not None:
            service.jwks.warm(
                ehr.cds_client.issuer, ehr.cds_client.jwks_url, allowed_origins=ehr.jwks_origins
            )


def _record_configuration(service: Service) -> None:
    running = service.analysis.models
    configuration = Configuration.of(service.keyring, service.settings, service.registry, running)
    with service.database.sessions() as session:
        changed = record_changes(session, service.keyring, service.audit, configuration)
        session.commit()
    log.info("configuration_compared", changed=len(changed))


def _forwarding(service: Service) -> Forwarding:
    database = service.database
    delivery = Delivery(database.sessions, database.reading, service.keyring, service.audit)
    bases = {ehr.id: ehr.fhir_base_urls[0] for ehr in service.registry}
    observer = Observer(
        service.settings.organization, service.settings.public_base_url, version("rayhook"), bases
    )
    return Forwarding.of(service.settings, delivery, service.transport, observer)


def _warm_up(service: Service) -> None:
    """Import what the first study needs, beside the start: together it takes two seconds.

    What is there by then stays: the collector need not go through it again, in the middle of somebody's call.
    """
    modules = ["pydicom.datadict", "rayhook.fhir.validation"]
    if any(ehr.dicom_results for ehr in service.registry):
        modules += ["rayhook.inference.structured_report", "rayhook.inference.parametric_map"]
        modules += ["rayhook.inference.secondary_capture"]
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()


def _record(service: Service, kind: AuditKind) -> None:
    with service.database.sessions() as session:
        service.audit.record(session, AuditEntry(kind, agent="rayhook"))
        session.commit()


def _checkpoint(service: Service) -> None:
    with service.database.sessions() as session:
        note_uses(session, service.keyring)
        service.audit.checkpoint(session)
        session.commit()


def _checkpoint_until(service: Service, stopping: threading.Event) -> None:
    while not stopping.wait(service.settings.checkpoint_interval_s):
        try:
            _checkpoint(service)
        except RayhookError:
            log.exception("audit_checkpoint_failed")
