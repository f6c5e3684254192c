"""The composition root: one process's parts, wired once, and the web application over them."""

import asyncio
import gc
import importlib
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version

import anyio.to_thread
import structlog
from fastapi import FastAPI
from prometheus_client.registry import Collector
from starlette.concurrency import run_in_threadpool

from rayhook.audit.alarm import DecryptionAlarm
from rayhook.audit.balp import Observer
from rayhook.audit.delivery import Delivery
from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.unusual import Watching
from rayhook.audit.verification import Verifier
from rayhook.auth.backend import BackendTokens
from rayhook.auth.bearer import BearerTokens
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, EHRRegistry, load_registry
from rayhook.auth.tokens import JWKSCache
from rayhook.cds_hooks.dependencies import CDSDependencies
from rayhook.cds_hooks.rate_limit import NewAnalyses, RateLimit
from rayhook.cds_hooks.router import build_router as cds_router
from rayhook.deploy.analysis import Analysis, Outside, analysis_checks, analysis_parts
from rayhook.deploy.arrival_metrics import ArrivalCollector
from rayhook.deploy.arrivals import Arrivals
from rayhook.deploy.audit_forwarding import Forwarding, audit_origins
from rayhook.deploy.audit_watch import load_thresholds, watching
from rayhook.deploy.backend_tokens import backend_tokens
from rayhook.deploy.configuration import Configuration, record_changes
from rayhook.deploy.database import Database, create_database, ensure_schema
from rayhook.deploy.decoded_types import make_ready
from rayhook.deploy.erasures import ErasureUpkeep, open_erasures
from rayhook.deploy.health import Check, Health
from rayhook.deploy.health import build_router as health_router
from rayhook.deploy.health_checks import storage_checks
from rayhook.deploy.job_metrics import JobCollector, refusals_counted
from rayhook.deploy.key_metrics import KeyCollector
from rayhook.deploy.key_use import note_uses
from rayhook.deploy.kms import await_kms, open_keyring
from rayhook.deploy.metrics import build_router as metrics_router
from rayhook.deploy.middleware import RequestContext, WhileStarting
from rayhook.deploy.problems import install_problem_handlers
from rayhook.deploy.production import require_secure
from rayhook.deploy.request_metrics import HealthCollector, RequestMetrics
from rayhook.deploy.settings import Settings, WorkerMode
from rayhook.deploy.settings_view import settings_view
from rayhook.deploy.shared_limits import SharedLimits, shared_limits
from rayhook.fhir.errors import RayhookError
from rayhook.fhir.transport import Transport
from rayhook.inference.decode import Decoder
from rayhook.inference.held_out import load_held_out
from rayhook.inference.job_table import Authorization, Priority
from rayhook.inference.pipeline import Pipeline
from rayhook.inference.queue import AnalysisQueue
from rayhook.inference.registry import Manifest, ModelPackage, load_models, select_models
from rayhook.inference.results import StoredResult
from rayhook.inference.sign_off_queue import SignOffQueue
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.fhir_limit import FHIRLimit
from rayhook.smart_app.retrievals import Retrievals
from rayhook.smart_app.router import build_router as smart_router
from rayhook.smart_app.sign_in_limit import SignInLimit
from rayhook.smart_app.stow import StowService
from rayhook.smart_app.stow import build_stow_router as stow_router

log = structlog.get_logger(__name__)

# A hook gives up the interpreter at each of its twenty database calls, and waits so long to have it back from a
# thread that decodes or renders: the usual 5 ms would be a tenth of a second a call.
_SWITCH_S = 0.001
_DELIVER_EVERY_S = 5.0
_THREADS = 64  # hooks wait up to 0.4 s in their thread; 64 of them leave room beside 20 callers


@dataclass(frozen=True, slots=True)
class Service:
    """What one process is made of."""

    settings: Settings
    database: Database
    keyring: Keyring
    registry: EHRRegistry
    audit: AuditLog
    transport: Transport
    installed: tuple[ModelPackage, ...]
    analysis: Analysis
    arrivals: Arrivals
    sign_off: SignOffQueue
    viewer_decoder: Decoder
    jwks: JWKSCache
    watching: Watching
    verifier: Verifier
    erasures: ErasureUpkeep
    limits: SharedLimits

    @property
    def queue(self) -> AnalysisQueue:
        return self.analysis.queue

    @property
    def pipeline(self) -> Pipeline:
        return self.analysis.pipeline

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """Those of every installed model: a result outlasts the choice of the models that run."""
        return tuple(package.manifest for package in self.installed)

    @property
    def checks(self) -> tuple[Check, ...]:
        """Return what this process needs for its work."""
        settings = self.settings
        storage = storage_checks(
            self.database,
            self.keyring,
            data_dir=settings.data_dir,
            keyring_path=settings.keyring_path,
            anchor=settings.anchor_path,
        )
        return (*storage, *analysis_checks(self.analysis))


def create_app(settings: Settings, health: Health) -> FastAPI:
    """Return the web application; its parts are made while it is served already, and closed when it stops.

    `health` is told when they are there, or why they cannot be: where the keyring, the database or a model cannot
    be trusted. Until then everything but the health routes is answered with a 503.
    Raises RayhookError for settings that production does not start with, a registry that is not one, and a model
    that is not installed.
    """
    make_ready()
    require_secure(settings)
    registry = load_registry(settings.ehr_registry, development=settings.development)
    installed = load_models()
    running = select_models(installed, settings.models)

    stopping = threading.Event()
    requests = RequestMetrics()

    def start(app: FastAPI, stack: ExitStack) -> None:
        await_kms(settings, health, stopping)
        service = stack.enter_context(build_service(settings, registry, installed=installed, running=running))
        jobs = JobCollector(service.database.reading)
        refused = refusals_counted(requests.registry)
        stages = service.analysis.stages.registry
        arrivals = ArrivalCollector(service.database.reading, service.arrivals.received)
        keys = KeyCollector(service.database.reading, service.keyring)
        collectors = (requests.registry, stages, HealthCollector(health), jobs, arrivals, keys)
        mount(app, service, refused=refused, collectors=collectors)
        stack.enter_context(_working(service))
        health.begin(service.checks)
        log.info("service_started", models=len(running), ehrs=len(registry))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        sys.setswitchinterval(_SWITCH_S)
        stack = ExitStack()
        starting = asyncio.create_task(run_in_threadpool(start, app, stack))
        starting.add_done_callback(partial(_tell_failure, health))
        yield
        log.info("service_stopping")
        stopping.set()
        await asyncio.wait([starting])
        await run_in_threadpool(stack.close)

    app = FastAPI(
        title="Rayhook",
        summary="Clinical decision support for medical imaging. Investigational: not cleared for diagnosis.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.development else None,
    )
    app.include_router(health_router(health))
    app.add_middleware(WhileStarting, health=health)
    app.add_middleware(RequestContext, https=settings.public_base_url.startswith("https:"), metrics=requests)
    install_problem_handlers(app)
    return app


def _tell_failure(health: Health, starting: asyncio.Task[None]) -> None:
    failure = starting.exception()
    if failure is not None:
        health.fail(failure)


@contextmanager
def build_service(
    settings: Settings,
    registry: EHRRegistry,
    *,
    installed: tuple[ModelPackage, ...],
    running: tuple[ModelPackage, ...],
) -> Iterator[Service]:
    """Make the parts in the order they need each other, and close them in the reverse."""
    thresholds = load_thresholds(settings.audit_watch)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    keyring = open_keyring(settings)
    ensure_schema(settings.resolved_database_url, settings.connection_settings)
    with ExitStack() as stack:
        database = create_database(
            settings.resolved_database_url, settings.connection_settings, application="rayhook serve"
        )
        stack.callback(database.close)
        transport = Transport(
            ca_bundle=settings.ca_bundle,
            allow_loopback_http=settings.development,
            private_origins=registry.private_origins | audit_origins(settings),
        )
        stack.callback(transport.close)
        jwks = JWKSCache(transport)
        stack.callback(jwks.close)
        viewer_decoder = stack.enter_context(Decoder(children=settings.viewer_decoder_processes))
        audit = AuditLog(keyring, anchor=settings.anchor_path)
        trail = (database.sessions, database.reading, keyring, audit)
        erasures = open_erasures(settings, database, keyring, audit)
        erasures.begin()
        tokens = backend_tokens(transport, keyring, database.sessions, audit)
        outside = Outside(
            settings=settings,
            database=database,
            keyring=keyring,
            registry=registry,
            audit=audit,
            transport=transport,
            tokens=tokens,
        )
        analysis = stack.enter_context(
            analysis_parts(
                outside,
                running,
                works_here=settings.worker is WorkerMode.EMBEDDED,
                decoder=viewer_decoder,
            )
        )
        couriers = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="dicom-objects"))
        sign_off = SignOffQueue(
            registry=registry,
            sessions=database.sessions,
            keyring=keyring,
            audit=audit,
            transport=transport,
            backend=partial(_own_token, tokens),
            on_written=partial(_store_beside, couriers, analysis.pipeline),
        )
        yield Service(
            settings=settings,
            database=database,
            keyring=keyring,
            registry=registry,
            audit=audit,
            transport=transport,
            installed=installed,
            analysis=analysis,
            arrivals=Arrivals.over(outside, analysis),
            sign_off=sign_off,
            viewer_decoder=viewer_decoder,
            jwks=jwks,
            watching=Watching(*trail, thresholds),
            verifier=Verifier(*trail),
            erasures=erasures,
            limits=stack.enter_context(shared_limits(settings, keyring)),
        )


def mount(
    app: FastAPI,
    service: Service,
    *,
    collectors: Iterable[Collector] = (),
    refused: Callable[[Priority], None] | None = None,
) -> None:
    """Add all routes, over the parts of `service`; `collectors` are counted beside the audit.

    refused: is told the priority of each analysis that may not wait.
    """
    settings = service.settings
    intake = settings.intake if refused is None else replace(settings.intake, refused=refused)
    cds = CDSDependencies(
        registry=service.registry,
        jwks=service.jwks,
        sessions=service.database.sessions,
        reading=service.database.reading,
        unsynced=service.database.unsynced,
        keyring=service.keyring,
        audit=service.audit,
        queue=service.queue,
        transport=service.transport,
        manifests=service.manifests,
        models=service.pipeline.analyser.identities,
        deliver_again=service.pipeline.deliver_again,
        public_base_url=settings.public_base_url,
        intake=intake,
        wait_s=settings.hook_wait_s,
        rate_limit=RateLimit(service.limits.calls()),
        new_analyses=NewAnalyses(service.limits.calls()),
    )
    smart = SMARTDependencies(
        registry=service.registry,
        sessions=service.database.sessions,
        reading=service.database.reading,
        keyring=service.keyring,
        audit=service.audit,
        transport=service.transport,
        decoder=service.viewer_decoder,
        jwks=service.jwks,
        manifests=service.manifests,
        models=service.pipeline.analyser.identities,
        queue=service.queue,
        sign_off=service.sign_off,
        held_out=load_held_out(service.installed),
        report_changed=cds.results.forget_result,
        public_base_url=settings.public_base_url,
        intake=intake,
        organization=settings.organization,
        watching=service.watching,
        verifier=service.verifier,
        retention=settings.retention_policy,
        erasures=service.erasures.erasures,
        erased=service.erasures.told,
        forgetting=service.erasures.forgetting,
        version=version("rayhook"),
        settings=settings_view(settings),
        fhir_limit=FHIRLimit(service.limits.calls()),
        sign_in_limit=SignInLimit(service.limits.tries()),
        retrievals=Retrievals(settings.viewer_retrievals),
    )
    service.erasures.forgetting.append(cds.results.clear)
    app.include_router(cds_router(cds))
    app.include_router(smart_router(smart))
    app.include_router(stow_router(_stow(service, smart)))
    app.include_router(
        metrics_router(service.database.reading, settings.metrics_token_file, others=collectors)
    )


def _stow(service: Service, smart: SMARTDependencies) -> StowService:
    tokens = BearerTokens(
        registry=service.registry,
        transport=service.transport,
        keyring=service.keyring,
        jwks=service.jwks,
        audience=f"{service.settings.public_base_url}/dicom-web",
    )
    return StowService(smart, service.arrivals.received, tokens, service.settings.arrival_quiet_s)


@contextmanager
def _working(service: Service) -> Iterator[None]:
    """Run the pipeline and the audit's checkpoints while the service is up."""
    stopping = threading.Event()
    checkpoints = threading.Thread(
        target=_checkpoint_until, args=(service, stopping), name="audit-checkpoints", daemon=True
    )
    couriers = threading.Thread(
        target=_deliver_until, args=(service, stopping), name="signed-reports", daemon=True
    )
    _record(service, AuditKind.APPLICATION_STARTED)
    _record_configuration(service)
    checkpoints.start()
    couriers.start()
    for ehr in service.registry:
        if ehr.cds_client.jwks_url is not None:
            service.jwks.warm(
                ehr.cds_client.issuer, ehr.cds_client.jwks_url, allowed_origins=ehr.jwks_origins
            )
    threading.Thread(target=_warm_up, args=(service,), name="warm-up", daemon=True).start()
    try:
        alarm = DecryptionAlarm(service.keyring, service.database.sessions, service.audit)
        watch = watching(
            service.watching, service.verifier, verify_every_s=service.settings.audit_verify_interval_s
        )
        with (
            _forwarding(service).running(),
            alarm.listening(),
            watch,
            service.analysis.running(),
            service.arrivals.running(),
            service.erasures.running(),
        ):
            yield
    finally:
        stopping.set()
        checkpoints.join()
        _record(service, AuditKind.APPLICATION_STOPPED)
        _checkpoint(service)


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


def _own_token(tokens: BackendTokens, ehr: EHR) -> Authorization | None:
    """Return our own token for an EHR; None where we are not registered there as a service."""
    if ehr.backend is None:
        return None
    token = tokens.token(ehr)
    return Authorization(token.access_token, str(token.scopes), token.expires_at)


def _store_beside(
    couriers: ThreadPoolExecutor, pipeline: Pipeline, stored: StoredResult, authorization: Authorization
) -> None:
    """Bring a signed report to the PACS while its signer goes on reading: the PACS may take a minute."""

    def store() -> None:
        try:
            pipeline.store_signed(stored, authorization)
        except RayhookError:
            log.exception("signed_object_not_stored")

    couriers.submit(copy_context().run, store)


def _deliver_until(service: Service, stopping: threading.Event) -> None:
    """Try again what an EHR or a PACS did not take: signed reports, the models' own, DICOM objects and their links."""
    couriers = (service.sign_off.deliver_due, service.pipeline.deliver_due, service.pipeline.store_due)
    while not stopping.wait(_DELIVER_EVERY_S):
        for courier in couriers:
            try:
                courier()
            except RayhookError:
                log.exception("late_delivery_failed")


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
