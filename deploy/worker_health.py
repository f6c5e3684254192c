"""What a process without a web application answers to the probes and the scraper."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
from fastapi import FastAPI
from prometheus_client.registry import Collector

from rayhook.deploy.health import Health, build_router
from rayhook.deploy.metrics import build_router as metrics_router
from rayhook.deploy.problems import install_problem_handlers
from rayhook.deploy.request_metrics import HealthCollector
from rayhook.deploy.server import served_certificate
from rayhook.deploy.settings import Settings
from rayhook.fhir.errors import ServiceUnavailable

_STOP_S: Final = 5.0


@contextmanager
def answering(settings: Settings, health: Health, collectors: Iterable[Collector] = ()) -> Iterator[None]:
    """Answer `/health/...` and `/metrics` at `worker_health_port` from a thread, until the block ends.

    collectors: what is counted beside the health.  It is https where the settings have a certificate. Nothing
    answers where they have no port.
    Raises ServiceUnavailable where the port is taken.
    """
    if settings.worker_health_port is None:
        yield
        return
    with served_certificate(settings) as certificate:
        if certificate is not None:
            health.certificate_left_s = certificate.left_s
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.include_router(build_router(health))
        others = (HealthCollector(health), *collectors)
        app.include_router(metrics_router(None, settings.metrics_token_file, others=others))
        install_problem_handlers(app)
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.worker_health_port,
            ssl_context_factory=None
            if certificate is None
            else lambda _config, _default: certificate.context,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
        )
        with _serving(uvicorn.Server(config)):
            yield


@contextmanager
def _serving(server: uvicorn.Server) -> Iterator[None]:
    thread = threading.Thread(target=server.run, name="worker-health", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise ServiceUnavailable(
                "the port of RAYHOOK_WORKER_HEALTH_PORT is taken", code="port_unavailable"
            )
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(_STOP_S)
