"""The web application over one process's parts."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version

import anyio.to_thread
import structlog
from fastapi import FastAPI
from prometheus_client.registry import Collector
from starlette.concurrency import run_in_threadpool

from rayhook.audit.refusals import RefusalLimit
from rayhook.auth.bearer import BearerTokens
from rayhook.auth.registry import load_registry
from rayhook.cds_hooks.dependencies import CDSDependencies
from rayhook.cds_hooks.rate_limit import NewAnalyses, RateLimit
from rayhook.cds_hooks.router import build_router as cds_router
from rayhook.deploy.arrival_metrics import ArrivalCollector
from rayhook.deploy.background import working
from rayhook.deploy.decoded_types import make_ready
from rayhook.deploy.health import Health
from rayhook.deploy.health import build_router as health_router
from rayhook.deploy.job_metrics import JobCollector, refusals_counted
from rayhook.deploy.key_metrics import KeyCollector
from rayhook.deploy.kms import await_kms
from rayhook.deploy.metrics import build_router as metrics_router
from rayhook.deploy.middleware import RequestContext, WhileStarting
from rayhook.deploy.problems import install_problem_handlers
from rayhook.deploy.production import require_secure
from rayhook.deploy.request_metrics import HealthCollector, RequestMetrics
from rayhook.deploy.service import Service, build_service
from rayhook.deploy.settings import Settings
from rayhook.deploy.settings_view import settings_view
from rayhook.inference.held_out import load_held_out
from rayhook.inference.job_table import Priority
from rayhook.inference.registry import load_models, select_models
from rayhook.smart_app.address_limit import LaunchLimit, SignInLimit
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.fhir_limit import FHIRLimit
from rayhook.smart_app.retrievals import Retrievals
from rayhook.smart_app.router import build_router as smart_router
from rayhook.smart_app.stow import StowService
from rayhook.smart_app.stow import build_stow_router as stow_router

log = structlog.get_logger(__name__)

# A hook gives up the interpreter at each of its twenty database calls, and waits so long to have it back from a
# thread that decodes or renders: the usual 5 ms would be a tenth of a second a call.
_SWITCH_S = 0.001
_THREADS = 64  # hooks wait up to 0.4 s in their thread; 64 of them leave room beside 20 callers


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
        stack.enter_context(working(service))
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
        refusals=RefusalLimit(service.limits.calls()),
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
        launch_limit=LaunchLimit(service.limits.calls()),
        refusals=cds.refusals,
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
