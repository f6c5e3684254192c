"""The composition root: one process's parts, wired once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial

import structlog

from rayhook.audit.record import AuditLog
from rayhook.audit.unusual import Watching
from rayhook.audit.verification import Verifier
from rayhook.auth.backend import BackendTokens
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, EHRRegistry
from rayhook.auth.tokens import JWKSCache
from rayhook.deploy.analysis import Analysis, analysis_checks, analysis_parts
from rayhook.deploy.arrivals import Arrivals
from rayhook.deploy.audit_watch import load_thresholds
from rayhook.deploy.database import Database
from rayhook.deploy.erasures import ErasureUpkeep
from rayhook.deploy.health import Check
from rayhook.deploy.health_checks import storage_checks
from rayhook.deploy.outside import open_outside
from rayhook.deploy.settings import Settings, WorkerMode
from rayhook.deploy.shared_limits import SharedLimits, shared_limits
from rayhook.fhir.errors import RayhookError
from rayhook.fhir.transport import Transport
from rayhook.inference.decode import Decoder
from rayhook.inference.job_table import Authorization
from rayhook.inference.pipeline import Pipeline
from rayhook.inference.queue import AnalysisQueue
from rayhook.inference.registry import Manifest, ModelPackage
from rayhook.inference.results import StoredResult
from rayhook.inference.sign_off_queue import SignOffQueue

log = structlog.get_logger(__name__)


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
    with ExitStack() as stack:
        outside, erasures = stack.enter_context(open_outside(settings, registry, application="rayhook serve"))
        jwks = JWKSCache(outside.transport)
        stack.callback(jwks.close)
        viewer_decoder = stack.enter_context(Decoder(children=settings.viewer_decoder_processes))
        database = outside.database
        trail = (database.sessions, database.reading, outside.keyring, outside.audit)
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
            keyring=outside.keyring,
            audit=outside.audit,
            transport=outside.transport,
            backend=partial(_own_token, outside.tokens),
            on_written=partial(_store_beside, couriers, analysis.pipeline),
        )
        yield Service(
            settings=settings,
            database=database,
            keyring=outside.keyring,
            registry=registry,
            audit=outside.audit,
            transport=outside.transport,
            installed=installed,
            analysis=analysis,
            arrivals=Arrivals.over(outside, analysis),
            sign_off=sign_off,
            viewer_decoder=viewer_decoder,
            jwks=jwks,
            watching=Watching(*trail, thresholds),
            verifier=Verifier(*trail),
            erasures=erasures,
            limits=stack.enter_context(shared_limits(settings, outside.keyring)),
        )


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
